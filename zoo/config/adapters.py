"""Where the code of a user's own adapter lies, and in which state: found without running any of it.

The file's size and time are part of its model's version: an edited adapter starts learning anew, and `reload` starts
its model again.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec

OURS = "workers.models."  # these change with a release, and then the broker is another one as well

# What each of these imports, of what an installation may be without, and the extra of pyproject.toml that brings it.
LIBRARIES: dict[str, tuple[tuple[str, ...], str]] = {
    "workers.models.yolo": (("torch", "ultralytics"), "yolo"),
    "workers.models.yolo_world": (("torch", "transformers", "ultralytics"), "workers"),
    "workers.models.clip": (("torch", "transformers", "open_clip"), "models"),
    "workers.models.ocr": (("rapidocr", "onnxruntime"), "models"),
    "workers.models.onnx": (("onnxruntime", "cv2"), "models"),
    "workers.models.quality": (("brisque",), "models"),
    "workers.models.osnet": (("torch",), "models"),
    "workers.models.vehicle": (("torch",), "models"),
}
OTHERS = (("torch", "transformers"), "models")
_seen: set[str] = set()  # libraries that were found, and so are looked for no more

Find = Callable[[str, Sequence[str] | None], ModuleSpec | None]  # a module's name and where to look → what is known


def file_of(adapter: str) -> str | None:
    """The source file of "package.module:Class"; None where the module is not found, or has none.

    `importlib.util.find_spec` would import the packages around it.
    """
    try:
        *_, (name, spec) = _path_to(adapter, PathFinder.find_spec)
    except (ImportError, ValueError, OSError):
        return None
    is_whole = name == adapter.partition(":")[0]
    return spec.origin if is_whole and spec is not None and spec.has_location else None


def missing(adapter: str, base: str) -> str | None:
    """The module of "package.module:Class" that no finder knows, without importing any; None when all are there.

    What a module is asked for beyond itself, its import tells.

    Args:
        base: a folder that is searched after Python's path: the one of config.toml.
    """

    def find(name: str, place: Sequence[str] | None) -> ModuleSpec | None:
        finds = [finder.find_spec for finder in sys.meta_path if hasattr(finder, "find_spec")]
        found = next(filter(None, (find(name, place) for find in finds)), None)
        return found or (PathFinder.find_spec(name, [base]) if place is None else None)

    try:
        return next((name for name, spec in _path_to(adapter, find) if spec is None), None)
    except (ImportError, ValueError, OSError):
        return None


def lacks_library(adapter: str) -> str | None:
    """What one of the zoo's own adapters imports and is not installed, and what to type; None when nothing is known."""
    if not adapter.startswith(OURS):
        return None
    libraries, _ = LIBRARIES.get(adapter.partition(":")[0], OTHERS)
    try:
        for name in libraries:
            if name not in _seen:
                if find_spec(name) is None:
                    return f"there is no module {name}; {remedy(adapter)}"
                _seen.add(name)
    except (ImportError, ValueError, OSError):
        pass
    return None


def remedy(adapter: str) -> str:
    """What to type where one of the zoo's own adapters cannot be imported for want of a library."""
    _, extra = LIBRARIES.get(adapter.partition(":")[0], OTHERS)
    return f"what it needs comes with: pip install 'model-zoo[{extra}]'"


def _path_to(adapter: str, find: Find) -> Iterator[tuple[str, ModuleSpec | None]]:
    """The packages around a module and itself, from the outermost; it ends early at what is not there or no package."""
    place: list[str] | None = None
    parts = adapter.partition(":")[0].split(".")
    for n in range(1, len(parts) + 1):
        name = ".".join(parts[:n])
        spec = find(name, place)
        yield name, spec
        if spec is None or spec.submodule_search_locations is None:
            return
        place = list(spec.submodule_search_locations)


def identity(adapter: str) -> str:
    """Changes when that file does; empty for an adapter of the zoo's, and for one that is not found."""
    file = None if adapter.startswith(OURS) else file_of(adapter)
    if file is None:
        return ""
    try:
        found = os.stat(file)
    except OSError:
        return f"{file} -"
    return f"{file} {found.st_size} {found.st_mtime_ns}"
