"""The nursery: the process that every worker is forked from, with the model libraries imported once.

It is the standard library's `multiprocessing` forkserver; this module is what the broker asks it to preload.
It imports and does nothing else: no tensor operation, no thread pool, no CUDA. A parent that has run one
multi-threaded operation leaves children that hang in their first one.

The modules to import are named in $ZOO_PRELOAD (the adapters of the configured models). One that is not
installed is skipped: its models then fail to load with that very ImportError as the cause.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import sys
import warnings

from workers.process import die_with_parent, set_name


def warm_up(modules: list[str]) -> None:
    """Imports them, and sets what they made aside for good: a collection in a worker then neither looks at the
    libraries' half a million objects (0.2 s) nor copies the pages that it shares with the nursery by marking them.
    """
    gc.disable()  # one collection at the end instead of hundreds on the way
    for name in modules:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                importlib.import_module(name)
        except Exception as e:  # a library that is broken here must not take the others down
            print(f"nursery: {name} is not preloaded: {type(e).__name__}: {e}", file=sys.stderr, flush=True)
    gc.collect()
    gc.freeze()
    gc.enable()


# The forkserver imports this module before it serves anybody, and only for this.
if os.environ.get("ZOO_NURSERY_OF"):
    die_with_parent(int(os.environ.pop("ZOO_NURSERY_OF")))
    os.setsid()  # signals meant for the broker's process group are the broker's to handle
    set_name("zoo-nursery")
    atexit.register(os._exit, 0)  # without the libraries' farewells: a line for each object that one of them has leaked
    warm_up(["workers.runtime", *filter(None, os.environ.get("ZOO_PRELOAD", "").split(","))])
