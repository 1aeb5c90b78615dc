"""What a new worker is told, and how it is entered.

This is all that broker and workers share about starting a process: the broker names the module to enter, and fills in
a `Seat` when it has a process forked and a `Launch` when it wants a model; neither imports the other.
"""

from __future__ import annotations

import importlib
from typing import Any

import msgspec

from zoo.source import Published

WORKER_MODULE = "workers.runtime"
NURSERY_MODULE = "workers.nursery"


class Seat(msgspec.Struct, frozen=True):
    """What a process is forked with, whatever it will load. `key`: its name on the lifeline. Unguessable."""

    key: bytes
    handoff: str
    arena_limit_bytes: int


class Launch(msgspec.Struct, frozen=True):
    """The first message on a worker's channel: what to load.

    `path`: of the weights, as the file system has it: not every name is UTF-8, which text in a message has to be.
    `pull`: where to fetch the weights from if they are missing; None when that is not wanted.
    `copied`: a copy of the model comes on the lifeline. `copy_bytes`: the largest copy that is wanted; 0 for none.
    """

    model: str
    adapter: str
    path: bytes | None
    category: str
    options: dict[str, Any]
    trust_pickle: bool
    device: str
    threads: int
    pull: Published | None = None
    copied: bool = False
    copy_bytes: int = 0


def enter(module: str, seat: bytes) -> None:
    """Runs in the new process: imports `module` and calls its `main` with the `Seat`."""
    importlib.import_module(module).main(msgspec.msgpack.decode(seat, type=Seat))
