"""Fetching published weights: whole and verified in their place, or not there at all.

A pull takes the lock of the weights' folder, asks the server what there is (sizes, digests, the commit that a branch
stands for), fetches what is missing into `.pull/` in that folder, verifies it, and only then renames all of it into
place: a folder holds a new config.json beside old weights for the moment of the renames only. What was cut off stays
in `.pull/`, where this pull or the next continues it. `PULLED.json` beside the weights is all that a pull remembers (it
may be deleted): with it the next pull reads and verifies the files, and asks no server. It is a record and no cache:
weights lie under their own names where config.toml says, to be looked at, copied and replaced.

Files that do not come from a pull are never replaced without `force`. Stand-ins are, and so is what an earlier pull put
there. The commit is asked for once, and every file is fetched at that commit, though `main` may move meanwhile. A part
is named after its content (address, size, digest, ETag), so another content never continues it. With `auto_pull` a pull
is part of the load in a worker: the broker never waits, `load_timeout` ends a stuck one, and the next try continues it.

Why not huggingface_hub (measured with 2.4.0): it would delete about 40 lines here, those that read the hub's headers
and build its addresses, and need as many, for its errors, its progress and what it leaves out: of what it fetches over
https it compares sizes, no digests. It fetches only from a hub, so `zoo.weights.web` and `zoo.weights.transfer` stay
all the same, for weights that are published elsewhere. It brings 15 packages (23 MB) into a base install of 6, and
takes 115 ms to import, twice what this does.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple
from urllib.parse import quote

from zoo.errors import ModelUnavailable
from zoo.system import files as safe
from zoo.weights import inventory
from zoo.weights.source import Published, Wanted
from zoo.weights.transfer import LIMITS, SILENT, Limits, Remote, Transfer, Watch, require_room, size_of
from zoo.weights.web import DownloadRefused

HUB = "https://huggingface.co"  # what "hf:" stands for, unless $HF_ENDPOINT names a mirror of it
STAGING, LOCK = ".pull", "lock"
LOCK_TRIES = 100


class Report(NamedTuple):
    """What lies in place now, by published name, and which of it this pull has fetched."""

    files: dict[str, inventory.Pulled]
    fetched: list[str]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files.values())

    @property
    def commit(self) -> str | None:
        """Of the repository; None where there is none, or it does not say."""
        return next((file.commit for file in self.files.values()), None)

    def __str__(self) -> str:
        count = len(self.files)
        done = f"fetched {len(self.fetched)} of" if self.fetched else "here and verified:"
        at = f", commit {self.commit}" if self.commit else ""
        return f"{done} {count} file{'s' * (count != 1)}, {self.size / 1e6:,.1f} MB{at}"


def pull(
    name: str,
    published: Published,
    target: Path,
    *,
    force: bool = False,
    watch: Watch = SILENT,
    limits: Limits = LIMITS,
) -> Report:
    """Puts the published weights of the model `name` at `target` (a file or a folder, see `zoo.weights.source`).

    Args:
        force: fetch them again whatever is there, and replace it.

    Raises:
        ModelUnavailable: they are not, and why. `retryable` when another pull, which goes on where this one stopped,
            may do better.
    """
    if not published.fetchable:
        known = published.source or "config.toml does not say where they are published"
        raise ModelUnavailable(f"{name}: fetch its weights by hand ({known}) and put them at {target}")
    try:
        with _locked(inventory.home(target), watch) as staging:
            return _Pull(published, target, staging, watch, limits).run(force)
    except DownloadRefused as e:
        raise ModelUnavailable(f"{name}: {e}", retryable=e.retryable) from e
    except OSError as e:  # the disk's: those of the network are DownloadRefused by now
        raise ModelUnavailable(f"{name}: {e.filename or target}: {e.strerror or e}", retryable=True) from e


@contextlib.contextmanager
def _locked(home: Path, watch: Watch) -> Iterator[Path]:
    """The folder for parts, for this pull alone. It is removed at the end unless a part is in it."""
    staging = home / STAGING
    lock = staging / LOCK
    with _take(lock, watch):
        try:
            yield staging
        finally:
            if os.listdir(staging) == [LOCK]:
                lock.unlink()
                with contextlib.suppress(OSError):  # a pull that waited has made a new lock there
                    staging.rmdir()
                    home.rmdir()  # if it is empty


def _take(lock: Path, watch: Watch) -> BinaryIO:
    """The lock, once it is held and still in its place: the pull that had it may have removed it with its folder."""
    for left in reversed(range(LOCK_TRIES)):
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            if lock.parent.is_symlink():
                raise OSError(errno.ELOOP, "is a link; what is gathered there would go elsewhere", str(lock.parent))
            file = open(lock, "ab", opener=safe.no_link)  # noqa: SIM115
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                watch.note(f"another pull is at work in {lock.parent.parent}; waiting for it")
                fcntl.flock(file, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                return file
            file.close()
        except (FileNotFoundError, FileExistsError):  # removed just now, or for good (a link to nowhere)
            if not left:
                raise
    raise OSError(errno.EAGAIN, "other pulls come and go", str(lock))


class _Pull:
    """One pull, under the lock."""

    def __init__(self, published: Published, target: Path, staging: Path, watch: Watch, limits: Limits) -> None:
        self._published = published
        self._target = target
        self._home = inventory.home(target)
        self._staging = staging
        self._watch = watch
        self._hub = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")
        self._transfer = Transfer(self._hub, watch, limits)

    def run(self, force: bool) -> Report:
        records = inventory.pulled(self._home)
        wanted = self._published.wanted(self._target)
        intact = {} if force else {w: records[self._key(w)] for w in wanted if self._is_intact(w, records)}
        if all(w in intact or not w.needed for w in wanted):
            return Report({w.name: was for w, was in intact.items()}, [])
        remotes = self._look([w for w in wanted if w not in intact], next(iter(intact.values()), None))

        stand_in = inventory.is_stand_in(self._target)
        replace = force or stand_in
        own = {w for w in remotes if not replace and w.place.exists() and self._key(w) not in records}
        missing = {w: r for w, r in remotes.items() if w not in own or not self._is_the_same(w, r)}
        parts = {w: self._part(r) for w, r in missing.items()}
        require_room(self._staging, sum((missing[w].size or 0) - size_of(parts[w]) for w in missing))
        for w, remote in missing.items():
            self._transfer.fetch(remote, parts[w])
        for w in own & missing.keys():
            self._is_the_same(w, missing[w])  # now that its digest is known

        if stand_in and self._target.is_dir():  # all of it: what is not replaced would mix with the real files
            for file in self._target.iterdir():
                if file.is_file():
                    file.unlink()
        for w, part in parts.items():
            w.place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(part, w.place)
        fresh = {w: self._record(r) for w, r in remotes.items()}
        records |= {self._key(w): record for w, record in fresh.items()}
        inventory.write_pulled(self._home, records)
        inventory.unmark(self._target)
        return Report({w.name: now for w, now in (intact | fresh).items()}, [w.name for w in missing])

    def _look(self, wanted: list[Wanted], was: inventory.Pulled | None) -> dict[Wanted, Remote]:
        """What the server says of these files; those that are optional and not there are left out.

        All are of one commit, though a branch may move meanwhile: that of the files that are here already.
        """
        published, found = self._published, {}
        revision = was.commit if was is not None and was.commit else published.revision
        for w in wanted:
            pinned = published.sha256.get(w.name)
            remote = self._transfer.look(w.name, self._address(w, revision), needed=w.needed, pinned=pinned)
            if remote is not None:
                revision = remote.commit or revision
                remote.url = self._address(w, revision)
                found[w] = remote
        return found

    def _address(self, wanted: Wanted, revision: str) -> str:
        repository = self._published.repository
        if repository is None:
            return self._published.source
        return f"{self._hub}/{repository}/resolve/{quote(revision, safe='')}/{quote(wanted.name)}"

    # ------------------------------------------------------------ what is here

    def _key(self, wanted: Wanted) -> str:
        return wanted.place.relative_to(self._home).as_posix()

    def _is_intact(self, wanted: Wanted, records: dict[str, inventory.Pulled]) -> bool:
        """Whether the file was pulled from where config.toml says, and is still what it was."""
        was, now = records.get(self._key(wanted)), self._published
        if was is None or was.source != now.source or now.revision not in (was.revision, was.commit):
            return False
        if now.sha256.get(wanted.name, was.sha256) != was.sha256 or not wanted.place.is_file():
            return False
        if size_of(wanted.place) == was.size and inventory.digest(wanted.place) == was.sha256:
            return True
        self._watch.note(f"{wanted.place} is damaged; it is fetched again")
        return False

    def _is_the_same(self, wanted: Wanted, remote: Remote) -> bool:
        """Whether a file that no pull put there is the published one; False when the server has not told enough.

        Raises:
            DownloadRefused: it is another one.
        """
        size = size_of(wanted.place)
        if remote.size in (None, size):
            if remote.sha256 is None:
                return False
            if inventory.digest(wanted.place) == remote.sha256:
                remote.size = size
                return True
        raise DownloadRefused(
            f"{wanted.place} is not the published file, and not from a pull; move it away, or use --force"
        )

    def _part(self, remote: Remote) -> Path:
        """Where the bytes of this very content are gathered; parts of other contents of that name go."""
        content = f"{remote.url}\n{remote.size}\n{remote.sha256}\n{remote.etag}"
        flat = quote(remote.name, safe="")
        part = self._staging / f"{hashlib.sha256(content.encode()).hexdigest()[:16]}.{flat}"
        for old in self._staging.iterdir():
            if old.name.partition(".")[2] == flat and (old != part or old.is_symlink() or not old.is_file()):
                old.unlink()
        return part

    def _record(self, remote: Remote) -> inventory.Pulled:
        assert remote.size is not None
        assert remote.sha256 is not None
        now = self._published
        return inventory.Pulled(now.source, now.revision, remote.commit, remote.size, remote.sha256)
