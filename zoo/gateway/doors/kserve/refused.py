"""Calls of the protocol's extensions that this server does not offer: tracing, logging, CUDA shared memory."""

from __future__ import annotations

from typing import Any

from litestar import get, post

from zoo.gateway.access import Rights
from zoo.gateway.documented import ERRORS
from zoo.gateway.gateway import Gateway, HttpRequest
from zoo.gateway.refusals import NotServed

TRACE = ["/trace/setting", "/models/{model:str}/trace/setting"]
LOG = ["/logging"]
CUDA = "/cudasharedmemory"
WHY = {
    "trace": "trace settings are not offered; `zoo explain REQUEST` tells what became of a request",
    "logging": "log settings are not offered; `zoo serve --log-level` sets them",
    "cuda": "CUDA shared memory is not offered: send tensors in the body, or register system shared memory",
}


def _refuse(request: HttpRequest, gateway: Gateway, what: str) -> dict[str, Any]:
    gateway.admit(request, Rights.VIEWER)
    raise NotServed(WHY[what])


@get(TRACE, responses=ERRORS)
async def trace(request: HttpRequest, gateway: Gateway) -> dict[str, Any]:
    """Not offered."""
    return _refuse(request, gateway, "trace")


@post(TRACE, responses=ERRORS, status_code=200)
async def set_trace(request: HttpRequest, gateway: Gateway) -> dict[str, Any]:
    """Not offered."""
    return _refuse(request, gateway, "trace")


@get(LOG, responses=ERRORS)
async def logging(request: HttpRequest, gateway: Gateway) -> dict[str, Any]:
    """Not offered."""
    return _refuse(request, gateway, "logging")


@post(LOG, responses=ERRORS, status_code=200)
async def set_logging(request: HttpRequest, gateway: Gateway) -> dict[str, Any]:
    """Not offered."""
    return _refuse(request, gateway, "logging")


@get([f"{CUDA}/status", CUDA + "/region/{region:str}/status"], responses=ERRORS)
async def cuda(request: HttpRequest, gateway: Gateway) -> dict[str, Any]:
    """Not offered."""
    return _refuse(request, gateway, "cuda")


@post(
    [f"{CUDA}/unregister", CUDA + "/region/{region:str}/unregister", CUDA + "/region/{region:str}/register"],
    responses=ERRORS,
    status_code=200,
)
async def set_cuda(request: HttpRequest, gateway: Gateway) -> dict[str, Any]:
    """Not offered."""
    return _refuse(request, gateway, "cuda")


ROUTES = (trace, set_trace, logging, set_logging, cuda, set_cuda)
