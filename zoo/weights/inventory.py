"""What lies in the weights folder: which files a model's weights are, and whether they are a stand-in.

A stand-in (see `workers/models/standins/`) carries a `STAND-IN` file with the digest and size of each of its files.
What `zoo pull` fetched is told by `PULLED.json`. Weights that neither of them names are a user's own. A broker looks at
names and sizes only; `zoo pull`, which has the time, compares digests. Nothing here parses a checkpoint.
"""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path

import msgspec

from zoo.system import files as safe
from zoo.weights.source import is_file, is_inside

MARKER, RECORD = "STAND-IN", "PULLED.json"
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".onnx")  # files that hold weights
PICKLES = (".pt", ".pth", ".bin")  # of those, the ones that can run code of their own while they are read
SAFE = (  # the names under which the zoo's adapters look for weights that are no pickle, before they look for one
    "model.safetensors", "model.safetensors.index.json", "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
)  # fmt: skip
NOTE = """\
The weights in this folder are a random stand-in for {name}, made by `zoo standins`.
They are not the published weights, and what they answer means nothing.
`zoo pull {name}` puts the published ones in their place.
"""
MAX_RECORD = 1 << 20  # bytes of what is kept about weights
_NAMED = re.compile(r"^sha256 ([0-9a-f]{64}) (\d+) (.+)$", re.MULTILINE)


class Pulled(msgspec.Struct, frozen=True):
    """A file that `zoo pull` put here: where it came from (see `zoo.weights.source`), and what it was then."""

    source: str
    revision: str
    commit: str | None
    size: int
    sha256: str


def home(target: Path) -> Path:
    """The folder that the weights at `target` are in, and what is kept about them."""
    return target.parent if is_file(target) else target


def state(target: Path | None) -> str:
    """As far as names and sizes tell: "here", "missing", "stand-in" or "damaged"; "-" where none are needed."""
    if target is None:
        return "-"
    if is_missing(target):
        return "missing"
    if is_stand_in(target, quick=True):
        return "stand-in"
    return "damaged" if damage(target) else "here"


def is_missing(target: Path) -> bool:
    """Whether there is nothing at `target`, or an empty folder."""
    if target.is_dir():
        with os.scandir(target) as entries:
            return all(entry.name.startswith(".") for entry in itertools.islice(entries, safe.MAX_ENTRIES))
    return not target.exists()


def is_pickled(target: Path) -> bool:
    """Whether reading the weights at `target` would mean reading a pickle. Folders: with `SAFE` names it would not, but
    other safetensors (an adapter, the state of an optimiser) are not the weights.
    """
    if any((target / name).is_file() for name in SAFE):
        return False
    return any(file.suffix in PICKLES for file in files(target) or [target])


def damage(target: Path) -> str | None:
    """Which of the pulled files at `target` is not the size it was, in words; None when all are."""
    for name, was in pulled(home(target)).items():
        file = home(target) / name
        if is_file(target) and file != target:
            continue  # another model's, in the same folder
        size = file.stat().st_size if file.is_file() else None
        if size != was.size:
            told = safe.shown(file)
            return f"{told} has {size:,} bytes, not {was.size:,}" if size is not None else f"{told} is gone"
    return None


def pulled(folder: Path) -> dict[str, Pulled]:
    """The record that `zoo pull` left in `folder`, by the files' names in it. An unreadable one counts as none."""
    try:
        found = msgspec.json.decode(safe.read_regular(folder / RECORD, MAX_RECORD), type=dict[str, Pulled])
    except (OSError, ValueError, RecursionError):  # msgspec's errors are ValueErrors
        return {}
    return {name: was for name, was in found.items() if is_inside(name)}


def write_pulled(folder: Path, records: dict[str, Pulled]) -> None:
    """Writes that record, whole or not at all."""
    safe.write_whole(folder / RECORD, msgspec.json.format(msgspec.json.encode(records), indent=2) + b"\n", 0o666)


def files(target: Path) -> list[Path]:
    """The files that hold weights: `target` itself, or those in the folder that it is."""
    if target.is_dir():
        return [p for name in safe.names(target) if (p := target / name).suffix in SUFFIXES and p.is_file()]
    return [target] if target.is_file() else []


def marker(target: Path) -> Path:
    """Where the STAND-IN file of the weights at `target` (file or folder) is, if there is one."""
    return (target if target.is_dir() else target.parent) / MARKER


def mark_stand_in(target: Path, name: str) -> Path:
    """Writes the STAND-IN file for what lies at `target`; gives its path."""
    lines = [f"sha256 {digest(file)} {file.stat().st_size} {file.name}\n" for file in files(target)]
    found = marker(target)
    found.write_text(NOTE.format(name=name) + "".join(lines))
    return found


def unmark(target: Path) -> None:
    """Removes the STAND-IN file of the weights at `target` unless it still names files of another model."""
    found = marker(target)
    left = {found.parent / name: sha for name, (sha, _) in _named(target).items()}
    if not any(file.is_file() and digest(file) == sha for file, sha in left.items()):
        found.unlink(missing_ok=True)


def is_stand_in(target: Path, *, quick: bool = False) -> bool:
    """Whether every file of weights at `target` is one that its STAND-IN file names.

    Args:
        quick: believe the sizes, where a whole checkpoint must not be waited for.
    """
    found, named = files(target), _named(target)
    return bool(found) and all(
        file.name in named
        and file.stat().st_size == named[file.name][1]
        and (quick or digest(file) == named[file.name][0])
        for file in found
    )


def _named(target: Path) -> dict[str, tuple[str, int]]:
    """SHA-256 and bytes of each file that the STAND-IN file at `target` names."""
    try:
        text = safe.read_regular(marker(target), MAX_RECORD).decode(errors="replace")
    except OSError:
        return {}
    return {name: (sha, int(size)) for sha, size, name in _NAMED.findall(text)}


def digest(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    import hashlib  # with OpenSSL, which a broker does without

    with open(safe.open_regular(file), "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
