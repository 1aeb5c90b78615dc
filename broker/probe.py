"""`python -m broker.probe`: what a broker finds of this machine, as JSON on standard output. For `zoo doctor`.

A process of its own: a driver that does not answer holds up this one alone, and `zoo` imports nothing of the broker.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Any

from broker import descriptors
from broker.memory.container import Container
from broker.memory.meters import Machine
from broker.memory.nvml import words


def found() -> dict[str, Any]:
    """See `cuda`, `memory` and `files` for its parts."""
    container = Container()
    return {"cuda": cuda(), "memory": memory(container), "cores": container.cores(), "files": files()}


def cuda() -> dict[str, Any]:
    """`why_none`: in words, where no device can be used. `driver`: its version, "" where it does not tell."""
    machine, rows = Machine(), []
    for index, uuid in enumerate(machine.uuids):
        row: dict[str, Any] = {"name": f"cuda:{index}", "uuid": uuid, "used_mb": None, "total_mb": None, "error": ""}
        try:
            figures = machine.meter(row["name"]).read([])
            row |= {"used_mb": figures.used_mb, "total_mb": figures.total_mb, "untold": figures.untold}
        except Exception as e:
            row["error"] = words(e)
        rows.append(row)
    return {"devices": rows, "why_none": machine.why_none, "driver": _driver() if rows else ""}


def _driver() -> str:
    try:
        import pynvml

        said = pynvml.nvmlSystemGetDriverVersion()
        return said.decode() if isinstance(said, bytes) else str(said)
    except Exception:
        return ""


def memory(container: Container) -> dict[str, Any]:
    """Of the host, as far as this process may use it, in MB; `machine_mb`: all that is built in."""
    try:
        used_mb, total_mb = container.memory_mb()
    except (OSError, ValueError) as e:
        return {"error": words(e)}
    built_in = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 20)
    return {"used_mb": used_mb, "total_mb": total_mb, "machine_mb": built_in, "error": ""}


def files() -> dict[str, Any]:
    """How many descriptors a broker may have, and how many clients that lets it serve."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = descriptors.raise_limit()
    shares = descriptors.divide(limit, descriptors.in_use(), loaded=16, standby=1, metrics=True, local=True)
    return {"soft": soft, "limit": limit, "clients": shares.sessions}


if __name__ == "__main__":
    json.dump(found(), sys.stdout)
