"""Registration of system shared memory."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import get, post

from zoo.config.gateway import is_loopback
from zoo.errors import InvalidInput
from zoo.gateway.access import KnownCaller, Rights
from zoo.gateway.documented import ERRORS, decoded
from zoo.gateway.doors.kserve import documented
from zoo.gateway.doors.kserve.models import MOST_BODY
from zoo.gateway.doors.kserve.state import KServe
from zoo.gateway.doors.kserve.tensors import MOST_BYTES
from zoo.gateway.gateway import Gateway, HttpRequest
from zoo.gateway.refusals import NotAllowed, NotServed

ROOT = "/systemsharedmemory"


class RegisterRequest(msgspec.Struct):
    key: str
    byte_size: int
    offset: int = 0


def _caller(request: HttpRequest, gateway: Gateway) -> KnownCaller:
    """Raises NotServed: this is off. NotAllowed: the caller is on another machine. See `Gateway.admit`."""
    caller = gateway.admit(request, Rights.CALLER)
    if not gateway.config.gateway.shared_memory:
        raise NotServed("system shared memory is off; `shared_memory = true` in [gateway] turns it on")
    if request.client is None or not is_loopback(request.client.host):
        raise NotAllowed("system shared memory is for callers on this machine")
    return caller


@get([f"{ROOT}/status", ROOT + "/region/{region:str}/status"], responses=ERRORS)
async def status(
    request: HttpRequest, gateway: Gateway, kserve: KServe, region: str | None = None
) -> list[dict[str, Any]]:
    """The caller's regions, or one of them."""
    return kserve.regions.status(_caller(request, gateway).name, region)


@post(
    ROOT + "/region/{region:str}/register",
    operation_class=documented.DescribedRegister,
    responses=ERRORS,
    status_code=200,
)
async def register(request: HttpRequest, gateway: Gateway, kserve: KServe, region: str) -> dict[str, Any]:
    """Names a part of an object in shared memory, for this caller alone."""
    caller = _caller(request, gateway)
    wanted: RegisterRequest = decoded(RegisterRequest, await gateway.body(request).rest(MOST_BODY))
    if not (0 <= wanted.offset <= MOST_BYTES and 0 < wanted.byte_size <= MOST_BYTES):
        raise InvalidInput("offset, byte_size: numbers of bytes, the size above 0")
    kserve.regions.register(caller.name, region, wanted.key, wanted.offset, wanted.byte_size)
    return {}


@post([f"{ROOT}/unregister", ROOT + "/region/{region:str}/unregister"], responses=ERRORS, status_code=200)
async def unregister(
    request: HttpRequest, gateway: Gateway, kserve: KServe, region: str | None = None
) -> dict[str, Any]:
    """Forgets one of the caller's regions, or all of them."""
    kserve.regions.unregister(_caller(request, gateway).name, region)
    return {}


ROUTES = (status, register, unregister)
