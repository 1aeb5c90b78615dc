"""One file from a server onto this disk: what the server says of it, and then its bytes, however often they break off.

Bytes are appended to a part file. A part is continued only while it is certain to be of the same file: because a
SHA-256 will tell, or because the server promises by the ETag (If-Range) that it still has the same one. A server that
announces a length, digest or range and does not keep to it is refused.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from zoo.system.files import no_link
from zoo.weights import inventory
from zoo.weights.web import REDIRECTS, DownloadRefused, Response, Transient, ask, whole_number

LONGEST_WAIT_S = 60.0  # before another attempt, whatever the server asks for
NO_HEAD = (403, 405, 501)  # what servers say that do not answer a HEAD
NOT_FOUND = (404, 410)
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
MEANING = {
    **dict.fromkeys((401, 403), ": private, gated or not there; accept its terms where it has some, and set HF_TOKEN"),
    **dict.fromkeys(NOT_FOUND, ": not there; see source, revision and files in config.toml"),
}

T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """How patient a transfer is.

    Attributes:
        silence_s: until the first byte, and between any two.
        slowest: bytes per second; less than that for `silence_s` is a stall.
        attempts: in a row, without `progress_bytes` in between.
        back_off_s: before the second attempt; doubled before each further one.
    """

    silence_s: float = 30.0
    slowest: float = 1024.0
    attempts: int = 5
    progress_bytes: int = 1 << 20
    back_off_s: float = 0.5


@dataclass(frozen=True)
class Watch:
    """Is told what happens. `progress`: file, bytes so far, bytes in all where known. `note`: a line for people."""

    progress: Callable[[str, int, int | None], None] = lambda *_: None
    note: Callable[[str], None] = lambda _: None


LIMITS, SILENT = Limits(), Watch()


@dataclass
class Remote:
    """A file as its server announces it.

    Attributes:
        commit: of the repository, where it is one.
        etag: only one that stands for these very bytes (a strong one).
    """

    name: str
    url: str
    commit: str | None = None
    size: int | None = None
    sha256: str | None = None
    etag: str | None = None


class Transfer:
    """Asks servers for files. $HF_TOKEN goes to the hub at `hub`, and to no other."""

    def __init__(self, hub: str, watch: Watch = SILENT, limits: Limits = LIMITS) -> None:
        token = os.environ.get("HF_TOKEN", "").strip()
        self._ask = functools.partial(ask, silence_s=limits.silence_s, token=token, token_for=hub)
        self._watch = watch
        self._limits = limits

    def look(self, name: str, url: str, *, needed: bool = True, pinned: str | None = None) -> Remote | None:
        """What the server says of the file; None when it is not there and not needed.

        Args:
            pinned: the SHA-256 that it has to have.

        Raises:
            DownloadRefused: it cannot be fetched.
        """

        def attempt() -> Remote | None:
            with self._ask("HEAD", url) as response:
                if response.status not in NO_HEAD:
                    return _announced(response, name, url, needed, pinned)
            with self._ask("GET", url) as response:
                return _announced(response, name, url, needed, pinned)

        return self._retry(name, attempt)

    def fetch(self, remote: Remote, part: Path) -> None:
        """The whole file, verified, at `part`. Afterwards `remote` has its size and SHA-256.

        Raises:
            DownloadRefused: after as many attempts as `Limits` allow, or at once where no further one could help.
                What did come stays at `part`, unless it is known to be wrong.
        """
        self._retry(remote.name, lambda: self._complete(remote, part), lambda: size_of(part))

    # ------------------------------------------------------------ attempts

    def _retry(self, name: str, attempt: Callable[[], T], come: Callable[[], int] = lambda: 0) -> T:
        failures = 0
        while True:
            before = come()
            try:
                return attempt()
            except Transient as e:
                failures = 1 if come() - before >= self._limits.progress_bytes else failures + 1
                if failures >= self._limits.attempts:
                    raise DownloadRefused(f"{name}: {e}; {failures} attempts in vain", retryable=True) from e
                wait_s = min(max(e.wait_s, self._limits.back_off_s * 2 ** (failures - 1)), LONGEST_WAIT_S)
                self._watch.note(f"{name}: {e}; trying again in {wait_s:g} s")
            except DownloadRefused as e:
                raise DownloadRefused(f"{name}: {e}", retryable=e.retryable) from e
            time.sleep(wait_s)

    # ------------------------------------------------------------ bytes

    def _complete(self, remote: Remote, part: Path) -> None:
        have = size_of(part)
        if (remote.sha256 or remote.etag) is None or (remote.size is not None and have > remote.size):
            have = 0
        if have == 0 or have != remote.size:
            self._append(remote, part, have)
        digest = inventory.digest(part)
        if remote.sha256 not in (None, digest):
            part.unlink()
            if have:
                raise Transient("what came earlier does not belong to it; starting over")
            raise DownloadRefused(f"its SHA-256 is {digest}, published is {remote.sha256}; it was thrown away")
        remote.size, remote.sha256 = size_of(part), digest

    def _append(self, remote: Remote, part: Path, have: int) -> None:
        """Asks for what is missing after `have` bytes, and writes what comes."""
        headers = {"Range": f"bytes={have}-"} if have else {}
        if have and remote.etag:
            headers["If-Range"] = remote.etag
        with self._ask("GET", remote.url, headers) as response:
            if response.status == 416:
                part.unlink()
                raise Transient(f"{response.host} has no byte {have:,}; starting over")
            _require_success(response)
            if response.status != 206:
                have = 0  # it does not do ranges, or has another file by now
            elif not (response.header("Content-Range") or "").startswith(f"bytes {have}-"):
                raise DownloadRefused(f"{response.host} sends another range than was asked for")
            self._compare(remote, response, part, have)
            self._write(remote, response, part, have)

    def _compare(self, remote: Remote, response: Response, part: Path, have: int) -> None:
        """What is about to come with what was announced."""
        etag = _strong(response)
        if None not in (etag, remote.etag) and etag != remote.etag:
            remote.etag, remote.size = etag, None
            if have:
                part.unlink()
                raise Transient(f"it has changed on {response.host}; starting over")
        if (encoding := response.header("Content-Encoding") or "identity") != "identity":
            raise DownloadRefused(f"{response.host} sends it in an encoding that was not asked for ({encoding})")
        if response.length is not None:
            whole = have + response.length
            if remote.size not in (None, whole):
                raise DownloadRefused(f"{response.host} announced {remote.size:,} bytes, and then {whole:,}")
            remote.size = whole
        elif not response.is_framed and remote.sha256 is None:
            raise DownloadRefused(f"{response.host} does not say how long it is; pin its sha256 in config.toml")
        require_room(part.parent, (remote.size or have) - have)

    def _write(self, remote: Remote, response: Response, part: Path, have: int) -> None:
        with open(part, "ab" if have else "wb", opener=no_link) as file:
            for chunk in response.chunks(self._limits.slowest):
                have += len(chunk)
                if remote.size is not None and have > remote.size:
                    raise DownloadRefused(f"{response.host} sends more than the {remote.size:,} bytes it announced")
                file.write(chunk)
                self._watch.progress(remote.name, have, remote.size)
            file.flush()
            os.fsync(file.fileno())
        if remote.size is not None and have < remote.size:
            raise Transient(f"{response.host} broke off after {have:,} of {remote.size:,} bytes")


def require_room(folder: Path, needed: int) -> None:
    """Raises DownloadRefused when the disk has less free."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DownloadRefused(f"{needed:,} bytes are needed in {folder}, and {free:,} are free", retryable=True)


def size_of(file: Path) -> int:
    """Bytes; 0 where there is no file."""
    with contextlib.suppress(FileNotFoundError):
        return file.stat().st_size
    return 0


def _announced(response: Response, name: str, url: str, needed: bool, pinned: str | None) -> Remote | None:
    if response.status in NOT_FOUND and not needed and response.header("X-Error-Code") in (None, "EntryNotFound"):
        return None
    _require_success(response)
    linked = (response.passed.get("x-linked-etag") or "").strip('"')
    sha256 = linked if re.fullmatch(r"[0-9a-f]{64}", linked) else None
    if pinned and sha256 not in (None, pinned):
        raise DownloadRefused(f"config.toml pins SHA-256 {pinned}, {response.host} has {sha256}")
    commit = response.passed.get("x-repo-commit", "")
    arrived = response.status == 200  # else it is the hub's word on a file that is stored elsewhere
    return Remote(
        name=name,
        url=url,
        commit=commit if re.fullmatch(r"[0-9a-f]{40}", commit) else None,
        size=whole_number(response.passed.get("x-linked-size")) or (response.length if arrived else None),
        sha256=pinned or sha256,
        etag=_strong(response) if arrived else None,
    )


def _require_success(response: Response) -> None:
    status, host = response.status, response.host
    if status in (200, 206, *REDIRECTS):  # a redirect that was not followed: see `zoo.weights.web.ask`
        return
    if status in TRANSIENT:
        raise Transient(f"{host} answers {status}", whole_number(response.header("Retry-After")) or 0)
    code = response.header("X-Error-Code")  # the hub's, such as RevisionNotFound
    raise DownloadRefused(f"{host} answers {status}{f' ({code})' if code else ''}{MEANING.get(status, '')}")


def _strong(response: Response) -> str | None:
    etag = response.header("ETag")
    return etag if etag and etag.startswith('"') else None
