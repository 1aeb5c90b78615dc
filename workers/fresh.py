"""Imports an adapter's module as its file is now.

Python takes a cached compilation for the source's own when the source has the same size and was changed in the same
second. So none is written from a source that is so young that it may still change without being seen to have.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import time
from types import ModuleType

YOUNG_S = 2.5  # a second, and what clocks of file systems may be late


def import_module(name: str) -> ModuleType:
    """As `importlib.import_module`.

    Raises:
        whatever the module raises.
    """
    if name in sys.modules:
        return sys.modules[name]
    importlib.invalidate_caches()  # the nursery's, of folders as they were when it began
    before = sys.dont_write_bytecode
    sys.dont_write_bytecode = before or _is_young(name)
    try:
        return importlib.import_module(name)
    finally:
        sys.dont_write_bytecode = before


def _is_young(name: str) -> bool:
    """The module's file, or one beside it that it may import."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.origin or not os.path.isfile(spec.origin):
        return False
    since = time.time() - YOUNG_S
    with os.scandir(os.path.dirname(spec.origin)) as entries:
        return any(entry.name.endswith(".py") and entry.stat().st_mtime > since for entry in entries)
