"""What a new worker is told, and how it is entered.

This is all that broker and workers share about starting a process: the broker fills in a `Launch` and names the
module to enter; neither imports the other.
"""

from __future__ import annotations

import importlib
from typing import Any

import msgspec

from zoo.source import Published

WORKER_MODULE = "workers.runtime"
NURSERY_MODULE = "workers.nursery"


class Launch(msgspec.Struct, frozen=True):
    """`key`: the worker's name on the lifeline. Unguessable.

    `pull`: where to fetch the weights from if they are missing; None when that is not wanted.
    """

    key: bytes
    handoff: str
    model: str
    adapter: str
    path: str | None
    category: str
    options: dict[str, Any]
    trust_pickle: bool
    device: str
    threads: int
    arena_limit_bytes: int
    pull: Published | None = None


def enter(module: str, launch: bytes) -> None:
    """Runs in the new process: imports `module` and calls its `main` with the `Launch`."""
    importlib.import_module(module).main(msgspec.msgpack.decode(launch, type=Launch))
