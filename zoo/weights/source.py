"""Where a model's weights are published: the `source`, `revision`, `files` and `sha256` keys of its table.

    source = "hf:openai/clip-vit-large-patch14"      # a Hugging Face repository: `files` of it, at `revision`
    source = "https://example.org/weights/thing.pt"  # one file
    source = "torchreid model zoo: osnet_x0_25"      # anything else is for people to read

Nothing here touches disk or network: `zoo.weights.pull` does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import msgspec

HUB_PREFIX = "hf:"
OPTIONAL = "?"  # at the end of a name in `files`: it may be missing from the repository
RESERVED = ("PULLED.json", "STAND-IN", ".pull")  # what `zoo.weights` and `zoo.weights.pull` keep in a weights folder

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)*", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}")
_LOOPBACK = re.compile(r"localhost|127(\.\d{1,3}){3}|::1")


class Wanted(NamedTuple):
    """One file to fetch: its name where it is published, where it goes, and whether it has to exist."""

    name: str
    place: Path
    needed: bool


class Published(msgspec.Struct, frozen=True):
    """A model's published weights.

    Attributes:
        source: see above. revision: branch, tag or commit of the repository.
        files: names in the repository; one that ends in "?" is optional.
        sha256: digests that files must have, by name. Where there is none, the repository's own is taken.
    """

    source: str = ""
    revision: str = "main"
    files: tuple[str, ...] = ()
    sha256: dict[str, str] = {}

    @property
    def repository(self) -> str | None:
        """ "owner/name" on the hub."""
        return self.source.removeprefix(HUB_PREFIX) if self.source.startswith(HUB_PREFIX) else None

    @property
    def url(self) -> str | None:
        """The address of the one file that it is."""
        return self.source if self.source.startswith(("https://", "http://")) else None

    @property
    def fetchable(self) -> bool:
        return self.repository is not None or self.url is not None

    def wanted(self, target: Path) -> list[Wanted]:
        """The files that make up the weights at `target`: that very file, or files in that folder."""
        if self.url is not None:
            names = {target.name if is_file(target) else _last_part(self.url): True}
        else:
            names = {name.removesuffix(OPTIONAL): not name.endswith(OPTIONAL) for name in self.files}
        return [Wanted(name, target if is_file(target) else target / name, needed) for name, needed in names.items()]


def is_file(path: Path) -> bool:
    """Whether a model's `path` means one file: it has a suffix (and not just a number: `model-v2.5` is a folder)."""
    return path.suffix[1:2].isalpha()


def mistakes(published: Published, path: str) -> Iterator[tuple[str, str]]:
    """What is wrong with a model's keys, as (key, what)."""
    target = Path(path)
    if published.repository is not None:
        if not _REPOSITORY.fullmatch(published.repository):
            yield "source", f"expected hf:OWNER/NAME, got {published.source!r}"
        if all(name.endswith(OPTIONAL) for name in published.files):
            yield "files", "name at least one file of the repository that is not optional"
        elif is_file(target) and len(published.files) != 1:
            yield "files", f"path is one file, so files has to name one, not {len(published.files)}"
    elif "://" in published.source.split(" ")[0]:
        if problem := url_problem(published.source):
            yield "source", problem
        elif not is_file(target) and not is_inside(_last_part(published.source)):
            yield "source", "its last part is no file name, so path has to be a file"
    if published.fetchable and not path:
        yield "source", "path is missing: where the weights go"
    if published.repository is None:
        if published.files:
            yield "files", "only for a repository (source = 'hf:OWNER/NAME')"
        if published.revision != "main":
            yield "revision", "only for a repository (source = 'hf:OWNER/NAME')"
    elif not _REVISION.fullmatch(published.revision):
        yield "revision", f"expected a branch, a tag or a commit, got {published.revision!r}"
    for name in published.files:
        if not is_inside(name.removesuffix(OPTIONAL)):
            yield "files", f"{name!r} is no name inside a folder"
    names = {wanted.name for wanted in published.wanted(target)} if published.fetchable else set()
    for name, digest in published.sha256.items():
        if name not in names:
            yield "sha256", f"{name!r} is not among the files"
        elif not _DIGEST.fullmatch(digest):
            yield "sha256", f"{name!r}: expected 64 hexadecimal digits in lower case, got {digest[:80]!r}"


def url_problem(url: str) -> str | None:
    """Why nothing is fetched from there, or None: only https, and http from this machine."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError as e:
        return f"not an address: {e}"
    if parts.scheme not in ("https", "http") or not host or not url.isprintable() or " " in url:
        return f"expected https://HOST/PATH, got {url!r}"
    if parts.username is not None or parts.password is not None:
        return "no names or passwords in addresses: they end up in logs"
    if parts.scheme == "http" and not _LOOPBACK.fullmatch(host):
        return f"{host} is not this machine, so it has to be https"
    return None


def _last_part(url: str) -> str:
    return unquote(urlsplit(url).path).rpartition("/")[2]


def is_inside(name: str) -> bool:
    """Whether a name stays in the folder it is put into, and clear of what else is kept there."""
    parts = PurePosixPath(name).parts
    return (
        "/".join(parts) == name  # no empty, absolute or doubled parts
        and ".." not in parts
        and name.isprintable()
        and "\\" not in name
        and bool(parts)
        and parts[0] not in RESERVED
    )
