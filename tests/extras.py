"""What an extra of pyproject.toml brings, and an environment that has nothing else.

The distributions are those that are installed here, found by their own metadata, so that nothing is fetched.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

from tests.support import ROOT

OURS = "model-zoo"
PACKAGES = ("zoo", "broker", "workers")
LICENCE = re.compile(r"licen[cs]e|copying|notice|third.?party", re.IGNORECASE)
# Its title, as its text begins; those of the GPL and the MPL name it in small letters. And its short name.
AGPL = re.compile(r"GNU AFFERO GENERAL PUBLIC LICENSE|\bAGPL", re.ASCII)


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(*extras: str) -> dict[str, Distribution]:
    """Every distribution that `pip install 'model-zoo[…]'` would bring, by its name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found: dict[str, Distribution] = {}
    done: set[tuple[str, str]] = set()

    def follow(texts: Iterable[str], wanted: Iterable[str]) -> None:
        for requirement in map(Requirement, texts):
            if requirement.marker and not any(requirement.marker.evaluate({"extra": e}) for e in ("", *wanted)):
                continue
            name, more = canonical(requirement.name), sorted(requirement.extras)
            if (name, str(more)) in done:
                continue
            done.add((name, str(more)))
            if name == OURS:
                for extra in more:
                    follow(project["optional-dependencies"][extra], ())
                continue
            try:
                found[name] = distribution(name)
            except PackageNotFoundError:
                raise AssertionError(f"{name} is wanted and not installed") from None
            follow(found[name].requires or (), more)

    follow(project["dependencies"], ())
    follow([f"{OURS}[{extra}]" for extra in extras], ())
    return found


def environment(folder: Path, distributions: Iterable[Distribution]) -> Path:
    """A virtual environment that has these, and the packages of this project, by links. Gives its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=60)
    (site,) = (folder / "lib").glob("python*/site-packages")
    for one in distributions:
        tops = {Path(str(file)).parts[0] for file in one.files or ()} - {"..", "__pycache__"}
        for top in tops:
            if not (site / top).is_symlink():  # `nvidia` and `cv2` are of several
                (site / top).symlink_to(Path(str(one.locate_file(top))).resolve())
    for package in PACKAGES:
        (site / package).symlink_to(ROOT / package)
    return folder / "bin" / "python"


def licence_files(one: Distribution) -> list[Path]:
    """Files that carry licences, of itself and of what it bundles."""
    named = [file for file in one.files or () if LICENCE.search(str(file)) and file.suffix not in (".py", ".pyc")]
    return [path for path in (Path(str(one.locate_file(file))) for file in named) if path.is_file()]


def under_agpl(one: Distribution) -> list[str]:
    """Where it says that it, or a part of it, is under the AGPL: licence files, and what its metadata says."""
    said = [str(path) for path in licence_files(one) if AGPL.search(path.read_text(errors="replace"))]
    told = [f"{key}: {value}" for key in ("License", "License-Expression") for value in one.metadata.get_all(key) or ()]
    filed = [value for value in one.metadata.get_all("Classifier") or () if "Affero" in value]
    return said + [text[:100] for text in told if AGPL.search(text)] + filed
