"""DeepStack and CodeProject.AI, which recorders and home automation speak; the routes are in `docs/gateway.md`.

Their clients look at `success`, not at the status of HTTP: a refused request is answered with 200 and `success: false`,
and then has no `predictions` at all, for an empty list would mean that nothing is to be seen.
"""

from __future__ import annotations

from litestar import Router
from litestar.di import Provide

from zoo.gateway.doors.deepstack import faces, status, vision
from zoo.gateway.doors.deepstack.answers import refused
from zoo.gateway.doors.deepstack.roles import Provider


def router() -> Router:
    """All routes, with what they keep."""
    kept = Provider()

    async def provide() -> Provider:
        return kept

    return Router(
        "/v1",
        route_handlers=[*vision.ROUTES, *faces.ROUTES, *status.ROUTES],
        dependencies={"provider": Provide(provide)},
        exception_handlers={Exception: refused},
        tags=["DeepStack"],
        opt={"door": "deepstack"},
    )
