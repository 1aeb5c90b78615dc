"""`try_imports.py PATH ADAPTERS`: imports adapters and prints of each why it cannot be used, or null.

A process of its own (see `zoo.cli.check`). PATH is Python's, ADAPTERS are "package.module:Class" names, both as JSON
lists. What an import prints goes to standard error.
"""

import importlib
import json
import os
import sys


def trouble(adapter: str) -> str | None:
    """Why the adapter cannot be used; None when it can."""
    module, _, name = adapter.partition(":")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except BaseException as e:
        return f"{type(e).__name__}: {e}"
    if found is None:
        return f"there is no {name} in {module}"
    lacks = [part for part in ("load", "predict") if not callable(getattr(found, part, None))]
    return f"{name} has no method {lacks[0]}" if lacks else None


if __name__ == "__main__":
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.path[:] = json.loads(sys.argv[1])
    for adapter in json.loads(sys.argv[2]):
        print(json.dumps([adapter, trouble(adapter)]), file=out, flush=True)
    os._exit(0)
