"""Calls of the protocol's extensions that this server does not offer: tracing, logging, CUDA shared memory."""

from __future__ import annotations

from typing import Any

from litestar import HttpMethod, route
from litestar.handlers import HTTPRouteHandler

from zoo.gateway.access import Rights
from zoo.gateway.documented import ERRORS
from zoo.gateway.gateway import Gateway, HttpRequest
from zoo.gateway.refusals import NotServed

CUDA = "/cudasharedmemory"
REGION = CUDA + "/region/{region:str}"
NO_TRACE = "trace settings are not offered; `zoo explain REQUEST` tells what became of a request"
NO_LOG = "log settings are not offered; `zoo serve --log-level` sets them"
NO_CUDA = "CUDA shared memory is not offered: send tensors in the body, or register system shared memory"


def _refused(why: str, paths: list[str], *methods: HttpMethod) -> HTTPRouteHandler:
    @route(paths, http_method=methods, responses=ERRORS, status_code=200)
    async def refuse(request: HttpRequest, gateway: Gateway) -> dict[str, Any]:
        """Not offered."""
        gateway.admit(request, Rights.VIEWER)
        raise NotServed(why)

    return refuse


ROUTES = (
    _refused(NO_TRACE, ["/trace/setting", "/models/{model:str}/trace/setting"], HttpMethod.GET, HttpMethod.POST),
    _refused(NO_LOG, ["/logging"], HttpMethod.GET, HttpMethod.POST),
    _refused(NO_CUDA, [f"{CUDA}/status", f"{REGION}/status"], HttpMethod.GET),
    _refused(NO_CUDA, [f"{CUDA}/unregister", f"{REGION}/unregister", f"{REGION}/register"], HttpMethod.POST),
)
