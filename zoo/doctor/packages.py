"""What is installed, against what this release asks for and, in a source checkout, what it was tested with."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from zoo.doctor.finding import OK, WARNING, WRONG, Finding
from zoo.system import program

OURS = "model-zoo"
FOR_DEVELOPERS = {"dev", "mutants"}
SHOWN = 6

Lists = dict[str, list[Requirement]]  # extra → what it asks for
Installed = Callable[[str], str | None]  # a package's name → its version


def installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def examine() -> Iterator[Finding]:
    lists = asked()
    if lists is None:
        message = f"{OURS} is not installed as a package, so what it needs is unknown"
        yield Finding("packages", WARNING, message, f"pip install {OURS}")
        return
    yield base(lists, installed)
    for name in lists:
        if name and name not in FOR_DEVELOPERS:
            yield extra(name, lists, installed)
    lock = Path(program.ROOT) / "requirements.lock"
    if lock.is_file():
        yield pins(lock.read_text(encoding="utf-8"), installed)


def asked() -> Lists | None:
    """What each extra asks for, and under "" what every installation does. Of a checkout its pyproject.toml counts:
    what was written down when it was installed may be of an earlier state. None: unknown.
    """
    file = Path(program.ROOT) / "pyproject.toml"
    if file.is_file():
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        texts = {"": project["dependencies"], **project["optional-dependencies"]}
        return {name: [*map(Requirement, lines)] for name, lines in texts.items()}
    try:
        needs = [Requirement(text) for text in metadata.requires(OURS) or ()]
        extras = metadata.metadata(OURS).get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return None
    every = [one for one in needs if one.marker is None or one.marker.evaluate({"extra": ""})]
    only = [one for one in needs if one not in every]
    chosen = {name: [one for one in only if one.marker and one.marker.evaluate({"extra": name})] for name in extras}
    return {"": every, **chosen}


def _needed(name: str, lists: Lists) -> list[Requirement]:
    """What an extra brings, and what the extras bring that it names."""
    found: list[Requirement] = []
    for one in lists.get(name, ()):
        if canonicalize_name(one.name) == OURS:
            found += [inner for other in sorted(one.extras) for inner in _needed(other, lists)]
        else:
            found.append(one)
    return found


def _lacking(wanted: list[Requirement], version: Installed) -> list[str]:
    """Those that are not as they should be, in words."""
    lacks = []
    for one in wanted:
        found = version(one.name)
        if found is None:
            lacks.append(f"{one.name} is missing")
        elif not one.specifier.contains(found, prereleases=True):
            lacks.append(f"{one.name} is {found}, not {one.specifier}")
    return lacks


def base(lists: Lists, version: Installed) -> Finding:
    wanted = _needed("", lists)
    if lacks := _lacking(wanted, version):
        return Finding("packages", WRONG, _some(lacks), f"pip install --upgrade {OURS}")
    return Finding("packages", OK, f"{OURS} {version(OURS) or '(a checkout)'} and the {len(wanted)} packages it needs")


def extra(name: str, lists: Lists, version: Installed) -> Finding:
    """One of which nothing is there is not wanted; one of which something lacks is a warning."""
    wanted = _needed(name, lists)
    lacks, about, remedy = _lacking(wanted, version), f"[{name}]", f"pip install --upgrade '{OURS}[{name}]'"
    if not lacks:
        return Finding(about, OK, f"installed: {_some([one.name for one in wanted])}")
    if all(version(one.name) is None for one in wanted):
        return Finding(about, OK, f"not installed: {remedy}")
    return Finding(about, WARNING, _some(lacks), f"{remedy}, if it is to be used")


def pins(lock: str, version: Installed) -> Finding:
    """Against the versions that are tested together."""
    pinned = dict(line.split("==", 1) for line in lock.split() if "==" in line)
    others = [
        f"{name} {found} (tested: {pin})"
        for name, pin in pinned.items()
        if (found := version(name)) is not None and found.partition("+")[0] != pin.partition("+")[0]
    ]
    if others:
        return Finding("pins", WARNING, _some(others), "pip install -r requirements.lock, if something does not work")
    return Finding("pins", OK, "every package of requirements.lock that is installed has its version")


def _some(texts: list[str]) -> str:
    more = f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return ", ".join(texts[:SHOWN]) + more
