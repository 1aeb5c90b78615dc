"""The routes of the page: its files, which hold nothing secret and need no token, and what they ask for.

What its buttons do are the calls of `zoo/gateway/doors/enrichment.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from litestar import Response, Router, get, post
from litestar.exceptions import NotFoundException
from litestar.response import Stream

from zoo.errors import QueueFull, ZooError
from zoo.gateway.access import Rights
from zoo.gateway.gateway import Gateway, HttpRequest
from zoo.gateway.page import trial

STATIC = Path(__file__).with_name("static")
KINDS = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
FILES = {file.name: (file.read_bytes(), KINDS[file.suffix]) for file in STATIC.iterdir() if file.suffix in KINDS}
TRY_S = 120.0  # for a model that has to be loaded first


def _file(name: str) -> Response[bytes]:
    if name not in FILES:
        raise NotFoundException(f"the page has no file {name!r:.60}")
    content, kind = FILES[name]
    return Response(content, media_type=kind, headers={"Cache-Control": "no-cache"})


@get("/", include_in_schema=False)
async def index() -> Response[bytes]:
    """The page."""
    return _file("index.html")


@get("/page/{name:str}", include_in_schema=False)
async def file(name: str) -> Response[bytes]:
    """What it loads."""
    return _file(name)


@get("/page/live", include_in_schema=False)
async def live(request: HttpRequest, gateway: Gateway) -> Stream:
    """What the page shows: lines of JSON, one a second, for as long as the caller stays (`watch.py`)."""
    caller = gateway.admit(request, Rights.VIEWER)
    gateway.watch.check_room()
    first = {"you": {"name": caller.name, "role": caller.rights.name.lower()}}

    async def lines() -> AsyncIterator[bytes]:
        async for line in gateway.watch.lines(first):
            yield line
            try:
                gateway.admit(request, Rights.VIEWER)
            except ZooError:  # the token was taken away
                return

    return Stream(lines(), media_type="application/x-ndjson")


@post("/page/try/{model_name:str}", include_in_schema=False, status_code=200)
async def attempt(request: HttpRequest, gateway: Gateway, model_name: str) -> dict[str, Any]:
    """The picture in the body, to a model; gives its answer drawn on it (`trial.py`)."""
    async with gateway.session(request, Rights.CALLER) as zoo:
        if gateway.trials.locked():
            raise QueueFull("as many pictures as may be are being tried; try again")
        async with gateway.trials:
            raw = await gateway.body(request).rest(trial.MOST_BYTES)
            await asyncio.to_thread(trial.check, raw)
            answer = await gateway.answer(request, zoo.infer(model_name, raw, timeout=TRY_S))
            return await asyncio.to_thread(trial.drawn, raw, answer)


def router() -> Router:
    return Router("/", route_handlers=[index, live, attempt, file], opt={"door": "page"})
