"""The routes of face recognition, which say that it is not offered: faces are found, not told apart."""

from __future__ import annotations

from typing import Any

from litestar import post

from zoo.gateway.doors.deepstack.documented import ERRORS, DescribedFace
from zoo.gateway.doors.deepstack.receiving import passed_over
from zoo.gateway.gateway import Gateway, HttpRequest
from zoo.gateway.refusals import NotServed

PATHS = [f"/vision/face/{what}" for what in ("recognize", "register", "list", "delete", "match")]


@post(PATHS, operation_class=DescribedFace, responses=ERRORS, status_code=200)
async def recognition(request: HttpRequest, gateway: Gateway) -> dict[str, Any]:
    """Not offered; `/v1/vision/face` finds faces."""
    await passed_over(request, gateway)
    raise NotServed("faces are detected here, not recognised: /v1/vision/face finds them, and none can be registered")


ROUTES = (recognition,)
