"""`zoo check`: what keeps the models of a configuration from being served, found without serving them.

Adapters are imported in a process of their own: an import may do anything, and must not end this one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from zoo.config import adapters
from zoo.config.schema import ZooConfig
from zoo.system.program import ROOT

IMPORT_S = 120.0  # for all imports of one process
OURS = ("zoo", "broker", "workers")
TRIER = str(Path(__file__).with_name("try_imports.py"))


def unimportable(config: ZooConfig) -> dict[str, str]:
    """Why adapters of enabled models cannot be used; those that can are left out."""
    left, wrong = sorted({m.adapter for m in config.models if m.enabled and m.adapter}), {}
    path = [p for p in map(os.path.abspath, filter(None, sys.path)) if p != os.getcwd() or p == ROOT]
    path += [str(config.base)] if str(config.base) not in path else []
    while left:
        command = [sys.executable, "-P", TRIER, json.dumps(path), json.dumps(left)]
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                  timeout=IMPORT_S, check=False)  # fmt: skip
            said, ended = done.stdout, f"its import ended the process (status {done.returncode})"
        except subprocess.TimeoutExpired as e:
            said, ended = e.stdout or b"", f"its import took longer than {IMPORT_S:g} s"
        for line in said.splitlines():
            adapter, why = json.loads(line)
            left.remove(adapter)
            if why is not None:
                wrong[adapter] = "; ".join(why.splitlines()) + _hint(adapter, why)
        if left:
            wrong[left.pop(0)] = ended
    return wrong


def _hint(adapter: str, why: str) -> str:
    first = adapter.partition(":")[0].split(".")[0]
    if adapter.startswith(adapters.OURS):
        return f"; {adapters.remedy(adapter)}" if why.startswith("ModuleNotFoundError") else ""
    if first not in OURS:
        return ""
    return f" ({first} is a package of the zoo's own: give your module another name)"
