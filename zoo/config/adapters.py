"""Where the code of a user's own adapter lies, and in which state: found without running any of it."""

from __future__ import annotations

import os
import sys
from importlib.machinery import ModuleSpec, PathFinder

OURS = "workers.models."  # these change with a release, and then the broker is another one as well


def file_of(adapter: str) -> str | None:
    """The source file of "package.module:Class"; None where the module is not found, or has none.

    `importlib.util.find_spec` would import the packages around it.
    """
    place: list[str] | None = None
    spec: ModuleSpec | None = None
    name = ""
    for part in adapter.partition(":")[0].split("."):
        name = f"{name}.{part}" if name else part
        try:
            spec = PathFinder.find_spec(name, place)
        except (ImportError, ValueError, OSError):
            return None
        if spec is None:
            return None
        place = list(spec.submodule_search_locations or [])
    return spec.origin if spec is not None and spec.has_location else None


def missing(adapter: str, base: str) -> str | None:
    """The module of "package.module:Class" that no finder knows, without importing any; None when all are there.

    Args:
        base: a folder that is searched after Python's path: the one of config.toml.
    """
    place: list[str] | None = None
    name = ""
    for part in adapter.partition(":")[0].split("."):
        name = f"{name}.{part}" if name else part
        spec: ModuleSpec | None = None
        try:
            for finder in sys.meta_path:
                if (find := getattr(finder, "find_spec", None)) is not None and (spec := find(name, place)) is not None:
                    break
            else:
                spec = PathFinder.find_spec(name, [base]) if place is None else None
        except (ImportError, ValueError, OSError):
            return None
        if spec is None:
            return name
        if spec.submodule_search_locations is None:
            return None  # what a module is asked for beyond itself, its import tells
        place = list(spec.submodule_search_locations)
    return None


def identity(adapter: str) -> str:
    """Changes when that file does; empty for an adapter of the zoo's, and for one that is not found."""
    if not adapter or adapter.startswith(OURS):
        return ""
    file = file_of(adapter)
    if file is None:
        return ""
    try:
        found = os.stat(file)
    except OSError:
        return f"{file} -"
    return f"{file} {found.st_size} {found.st_mtime_ns}"
