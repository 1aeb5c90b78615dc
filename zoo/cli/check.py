"""`zoo check`: what keeps the models of a configuration from being served, found without serving them.

Adapters are imported in a process of their own: an import may do anything, and must not end this one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

from zoo.config.schema import ZooConfig
from zoo.system.search_path import ROOT

IMPORT_S = 120.0  # for all imports of one process
OURS = ("zoo", "broker", "workers")
CODE = """
import importlib, json, os, sys
out = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
sys.path[:] = json.loads(sys.argv[1])
for adapter in json.loads(sys.argv[2]):
    module, _, name = adapter.partition(":")
    try:
        found = getattr(importlib.import_module(module), name, None)
        why = None if found is not None else f"there is no {name} in {module}"
        lacks = [part for part in ("load", "predict") if found is not None and not callable(getattr(found, part, None))]
        why = why or (f"{name} has no method {lacks[0]}" if lacks else None)
    except BaseException as e:
        why = f"{type(e).__name__}: {e}"
    print(json.dumps([adapter, why]), file=out, flush=True)
os._exit(0)
"""


def unimportable(config: ZooConfig) -> dict[str, str]:
    """Why adapters of enabled models cannot be used; those that can are left out."""
    left, wrong = sorted({m.adapter for m in config.models if m.enabled and m.adapter}), {}
    path = [p for p in map(os.path.abspath, filter(None, sys.path)) if p != os.getcwd() or p == ROOT]
    path += [str(config.base)] if str(config.base) not in path else []
    while left:
        command = [sys.executable, "-P", "-c", CODE, json.dumps(path), json.dumps(left)]
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
                wrong[adapter] = "; ".join(why.splitlines()) + _hint(adapter)
        if left:
            wrong[left.pop(0)] = ended
    return wrong


def _hint(adapter: str) -> str:
    first = adapter.partition(":")[0].split(".")[0]
    if first not in OURS or adapter.startswith("workers.models."):
        return ""
    return f" ({first} is a package of the zoo's own: give your module another name)"
