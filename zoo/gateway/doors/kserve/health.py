"""Whether the server lives and is ready."""

from __future__ import annotations

from litestar import MediaType, Response, get
from litestar.openapi.datastructures import ResponseSpec

from zoo.gateway.gateway import Gateway

UNREADY = ResponseSpec(
    str, generate_examples=False, media_type=MediaType.TEXT, description="The broker does not answer, and why."
)


@get("/health/live", media_type=MediaType.TEXT)
async def live() -> Response[None]:
    """200: this process answers."""
    return Response(None, media_type="text/plain")


@get("/health/ready", media_type=MediaType.TEXT, responses={503: UNREADY})
async def ready(gateway: Gateway) -> Response[str]:
    """200: the broker answers. 503: it does not, and the text says why."""
    problem = await gateway.readiness()
    return Response(problem, status_code=503 if problem else 200, media_type="text/plain")


ROUTES = (live, ready)
