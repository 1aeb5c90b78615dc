"""What clients ask before they send pictures. It tells nothing that needs a token."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from litestar import get

from zoo.gateway.doors.deepstack.documented import ERRORS

PATHS = "/status", "/server/status"


def _version() -> str:
    try:
        return version("model-zoo")
    except PackageNotFoundError:
        return "0"


def _paths(what: str) -> list[str]:
    return [f"{path}/{what}" for path in PATHS]


@get(_paths("ping"), responses=ERRORS)
async def ping() -> dict[str, Any]:
    """The gateway is there; whether the broker is, `/v2/health/ready` says."""
    return {"success": True, "message": "pong", "code": 200}


@get(_paths("version"), responses=ERRORS)
async def number() -> dict[str, Any]:
    """The version of this server."""
    return {"success": True, "message": _version(), "version": _parts(), "code": 200}


@get(_paths("updateavailable"), responses=ERRORS)
async def update() -> dict[str, Any]:
    """Never: this server does not look for versions of itself."""
    return {
        "success": True, "message": "this server does not look for updates", "updateAvailable": False,
        "version": _parts(), "code": 200,
    }  # fmt: skip


def _parts() -> dict[str, int]:
    """As CodeProject.AI gives a version."""
    numbers = [int(part) if part.isdecimal() else 0 for part in _version().split(".")]
    return dict(zip(("major", "minor", "patch"), numbers, strict=False))


ROUTES = (ping, number, update)
