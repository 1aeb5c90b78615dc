"""The states of a worker as a table, and what they mean for its model. The picture in `docs/design.md` is `diagram()`.

Everything that changes the phase of a worker goes through `TRANSITIONS`: a move that is not in the table is a bug and
raises KeyError. A model is in the state of its primary worker; without one it is UNLOADED, or FAILED after a load that
failed.

To look a member up on its class takes CPython 3.11 0.1 us, twenty times as long as a global: files on the path of every
request do it once, at import.
"""

from __future__ import annotations

import enum


class State(enum.Enum):
    """Where a model is, as clients and operators see it."""

    UNLOADED = "unloaded"  # no process, nothing charged
    LOADING = "loading"  # charged; a process is starting and loading
    LOADED = "loaded"  # answers requests
    DRAINING = "draining"  # finishes what it has; new requests wait for its next process
    EVICTING = "evicting"  # process being killed, or gone with its memory not seen free yet
    FAILED = "failed"  # the last load failed; no process; refused until its retry time


class Phase(enum.Enum):
    """Where a worker is."""

    GONE = "gone"  # no process, nothing charged
    LOADING = "loading"  # charged; the process is starting and loading
    CONDEMNED = "condemned"  # loading, and drained as soon as it is loaded (unless it is leased or pinned then)
    SERVING = "serving"  # takes requests
    YIELDING = "yielding"  # loaded, takes no new requests, so that another model gets its room
    DRAINING = "draining"  # finishes what it has, then ends
    ENDING = "ending"  # being killed, or ended with its memory not seen free yet


class Move(enum.Enum):
    """What happens to a worker."""

    START = "start"
    CONDEMN = "condemn"  # it is to be unloaded, or replaced, when it is loaded
    READY = "ready"
    YIELD = "yield"
    RESUME = "resume"  # its room is not waited for any more
    DRAIN = "drain"
    KEEP = "keep"  # a pin ends the draining
    KILL = "kill"  # decided by the broker: evicted, hung, load failed or took too long
    EXIT = "exit"  # the process ended by itself
    FREED = "freed"  # process gone and memory free (or written off)


TRANSITIONS: dict[tuple[Phase, Move], Phase] = {
    (Phase.GONE, Move.START): Phase.LOADING,
    (Phase.LOADING, Move.READY): Phase.SERVING,
    (Phase.LOADING, Move.CONDEMN): Phase.CONDEMNED,
    (Phase.CONDEMNED, Move.READY): Phase.SERVING,
    (Phase.SERVING, Move.YIELD): Phase.YIELDING,
    (Phase.YIELDING, Move.RESUME): Phase.SERVING,
    (Phase.SERVING, Move.DRAIN): Phase.DRAINING,
    (Phase.YIELDING, Move.DRAIN): Phase.DRAINING,
    (Phase.DRAINING, Move.KEEP): Phase.SERVING,
    **{
        (phase, move): Phase.ENDING
        for phase in (Phase.LOADING, Phase.CONDEMNED, Phase.SERVING, Phase.YIELDING, Phase.DRAINING)
        for move in (Move.KILL, Move.EXIT)
    },
    (Phase.ENDING, Move.FREED): Phase.GONE,
}

STATES = {  # of the model whose primary worker is in the phase
    Phase.GONE: State.UNLOADED,
    Phase.LOADING: State.LOADING,
    Phase.CONDEMNED: State.LOADING,
    Phase.SERVING: State.LOADED,
    Phase.YIELDING: State.LOADED,
    Phase.DRAINING: State.DRAINING,
    Phase.ENDING: State.EVICTING,
}


def diagram() -> str:
    """The table as the lines of a Mermaid state diagram, which `docs/design.md` shows."""
    return "\n".join(f"    {old.value} --> {new.value} : {move.value}" for (old, move), new in TRANSITIONS.items())
