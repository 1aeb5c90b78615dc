"""`GET /metrics`: the gateway's own numbers. The broker's are at the address that `metrics` of [broker] names."""

from __future__ import annotations

from litestar import Response, Router, get
from prometheus_client import CONTENT_TYPE_LATEST

from zoo.gateway.access import Rights
from zoo.gateway.documented import ERRORS
from zoo.gateway.gateway import Gateway, HttpRequest


@get("/metrics", media_type=CONTENT_TYPE_LATEST, responses=ERRORS)
async def metrics(request: HttpRequest, gateway: Gateway) -> Response[bytes]:
    """Answers by door and status, and how long they took."""
    gateway.admit(request, Rights.VIEWER)
    return Response(gateway.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)


def router() -> Router:
    return Router("/", route_handlers=[metrics], tags=["Metrics"], opt={"door": "metrics"})
