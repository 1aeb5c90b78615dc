"""What lies in the weights folder: which files a model's weights are, and whether they are a stand-in.

A stand-in (see `workers/models/standins/`) carries a `STAND-IN` file with the digest and size of each of its files.
Weights that it does not vouch for are somebody's real ones. Nothing here reads more of a checkpoint than its bytes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

MARKER = "STAND-IN"
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".onnx")  # files that hold weights
NOTE = """\
The weights in this folder are a random stand-in for {name}, made by `zoo standins`.
They are not the published weights, and what they answer means nothing.
For the published ones: remove this folder, then `zoo pull {name}`.
"""
_VOUCHED = re.compile(r"^sha256 ([0-9a-f]{64}) (\d+) (.+)$", re.MULTILINE)


def files(target: Path) -> list[Path]:
    """The files that hold weights: `target` itself, or those in the folder that it is."""
    if target.is_dir():
        return sorted(p for p in target.iterdir() if p.suffix in SUFFIXES and p.is_file())
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


def is_stand_in(target: Path, *, quick: bool = False) -> bool:
    """Whether every file of weights at `target` is one that its STAND-IN file vouches for.

    Args:
        quick: believe the sizes. For those who must not wait for a whole checkpoint to be read.
    """
    found = files(target)
    vouched = {name: (sha, size) for sha, size, name in _vouched(target)}
    if not found or any(file.name not in vouched for file in found):
        return False
    return all(
        file.stat().st_size == vouched[file.name][1] and (quick or digest(file) == vouched[file.name][0])
        for file in found
    )


def _vouched(target: Path) -> Iterator[tuple[str, int, str]]:
    try:
        text = marker(target).read_text(errors="replace")
    except OSError:
        return
    for sha, size, name in _VOUCHED.findall(text):
        yield sha, int(size), name


def digest(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
