"""The application of all doors that speak HTTP.

**Adding a door.** A file, or a folder, in `zoo/gateway/doors/`. One that speaks HTTP is a function that makes its
router, entered in `ROUTES`, with its name for metrics in `opt={"door": …}`. Each handler takes `request: HttpRequest`
and `gateway: Gateway` (given to it by that name), asks `gateway.session(request, Rights…)` for its caller's client,
reads `gateway.body(request)` and awaits `gateway.answer(request, zoo.infer(…))`. Errors are raised:
`zoo/gateway/refusals.py` has their statuses. One that speaks something else is a coroutine over the gateway, entered in
`LIVES` of `zoo/gateway/serving.py`.

**Litestar on uvicorn**, with httptools and uvloop, because of these figures (one process, two shared cores, keep-alive,
medians of a handler that reads its body piece by piece and drops it; start until the first answer; resident memory):

| framework, server | start | memory | GET | 0.3 MB | 6.2 MB |
|---|---|---|---|---|---|
| Litestar 2.25, uvicorn httptools + uvloop | 0.41 s | 52 MB | 0.13 ms | 0.54 ms | 6.0 ms |
| Litestar, uvicorn httptools | 0.72 s | 49 MB | 0.12 ms | 0.56 ms | 8.7 ms |
| Litestar, uvicorn h11 | 0.59 s | 49 MB | 0.23 ms | 0.72 ms | 19.4 ms |
| Litestar, granian 2.8 | 0.72 s | 86 MB | 0.14 ms | 0.42 ms | 4.2 ms |
| Litestar, hypercorn 0.18 | 0.70 s | 90 MB | 0.29 ms | 0.50 ms | 9.3 ms |
| FastAPI 0.165, uvicorn httptools | 0.52 s | 48 MB | 0.16 ms | 0.41 ms | 10.8 ms |
| FastAPI, granian | 0.55 s | 84 MB | 0.19 ms | 0.27 ms | 6.1 ms |
| Starlette 1.10, uvicorn httptools | 0.21 s | 30 MB | 0.16 ms | 0.60 ms | 14.7 ms |

The framework costs nothing that shows on the way of a body, so what counts is that Litestar writes its OpenAPI document
from msgspec's structs, which the zoo uses anyway, where FastAPI brings pydantic as a second way to describe the same.
Of the servers granian is the fastest, and runs the application in processes of its own making, where the sockets of
other doors could not share the loop; uvicorn is run by our own loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from litestar import Litestar
from litestar.di import Provide
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin

from zoo.gateway.doors import deepstack, enrichment, kserve, metrics
from zoo.gateway.gateway import Gateway
from zoo.gateway.page import routes as page
from zoo.gateway.refusals import answer
from zoo.gateway.shield import Shield

ROUTES: Sequence[Callable[[], Any]] = (kserve.router, deepstack.router, enrichment.router, metrics.router, page.router)


def make(gateway: Gateway) -> Shield:
    """The ASGI application: the calls, and what is around each of them."""
    return Shield(calls(gateway), gateway.config.gateway.hosts, gateway.metrics, gateway.tracing)


def calls(gateway: Gateway) -> Litestar:
    """All calls. Their OpenAPI document is at `/openapi.json`."""

    async def provide() -> Gateway:
        return gateway

    return Litestar(
        [route() for route in ROUTES],
        dependencies={"gateway": Provide(provide)},
        exception_handlers={Exception: answer},
        openapi_config=OpenAPIConfig(
            title="Model Zoo",
            version="1",
            path="/openapi.json",
            render_plugins=[JsonRenderPlugin(path="/")],
            use_handler_docstrings=True,
        ),
        logging_config=None,
        request_max_body_size=gateway.config.gateway.max_body_bytes,
        debug=False,
    )
