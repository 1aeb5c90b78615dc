"""Whether the server lives and is ready."""

from __future__ import annotations

from litestar import Response, get

from zoo.gateway.gateway import Gateway


@get("/health/live")
async def live() -> Response[None]:
    """200: this process answers."""
    return Response(None, media_type="text/plain")


@get("/health/ready")
async def ready(gateway: Gateway) -> Response[str]:
    """200: the broker answers. 503: it does not, and the text says why."""
    problem = await gateway.readiness()
    return Response(problem, status_code=503 if problem else 200, media_type="text/plain")


ROUTES = (live, ready)
