"""KServe v2, the Open Inference Protocol over HTTP; what each call and tensor means is in `docs/gateway.md`."""

from __future__ import annotations

from litestar import Router
from litestar.di import Provide

from zoo.gateway.doors.kserve import health, infer, memory, models, refused
from zoo.gateway.doors.kserve.state import KServe

HANDLERS = (*health.ROUTES, *models.ROUTES, *infer.ROUTES, *memory.ROUTES, *refused.ROUTES)


def router() -> Router:
    """All calls of the protocol, with what they keep."""
    kept = KServe()

    async def provide() -> KServe:
        return kept

    return Router(
        "/v2",
        route_handlers=list(HANDLERS),
        dependencies={"kserve": Provide(provide)},
        tags=["KServe v2"],
        opt={"door": "kserve"},
    )
