"""Health, models and enrichment in the form that backends of cameras use: see `docs/gateway.md`.

The names of fields and paths are those of the service that the zoo began as a replacement for, so that its callers
change a URL. What `/enrich` answers is `Enrichment.to_dict`, and the time in milliseconds.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import math
import time
from dataclasses import dataclass
from typing import Any

import msgspec
from litestar import Response, Router, get, post
from litestar.openapi.spec import OpenAPIMediaType, OpenAPIType, Operation, Schema

from zoo.client.aio import AsyncClient
from zoo.client.frames import Frame
from zoo.drawing.picture import size_of
from zoo.errors import InvalidInput, ZooError
from zoo.gateway import forms
from zoo.gateway.access import Rights
from zoo.gateway.documented import ERRORS, body, decoded, object_of
from zoo.gateway.gateway import Gateway, HttpRequest
from zoo.gateway.incoming import Incoming
from zoo.wire import formats

MOST_BODY = 1 << 20  # of small JSON
LOAD_S = 300.0  # the broker's own `load_timeout` ends it before

# ---------------------------------------------------------------- health


@get("/health", responses=ERRORS)
async def health(request: HttpRequest, gateway: Gateway) -> Response[dict[str, Any]]:
    """healthy: all enabled models can be served; degraded: some cannot; unhealthy, with 503: no broker answers.

    The models are shown to callers who may see them.
    """
    problem = await gateway.readiness()
    if problem:
        return Response({"status": "unhealthy", "models": [], "error": problem}, status_code=503)
    try:
        gateway.admit(request, Rights.VIEWER)
    except ZooError:
        return Response({"status": "healthy", "models": []})
    rows, status = await gateway.own.models(), await gateway.own.get_status()
    loaded = {row["name"]: row["vram_mb"] for row in status["loaded_models"]}
    models = [
        {"name": row["name"], "loaded": row["name"] in loaded, "vram_mb": loaded.get(row["name"])}
        for row in rows
        if row["enabled"]
    ]
    broken = any(row["enabled"] and row["problem"] for row in rows)
    kinds = {device["kind"] for device in status["devices"]}
    return Response({
        "status": "degraded" if broken else "healthy",
        "models": models,
        "total_vram_used_gb": round(status["vram_used_mb"] / 1024, 3),
        "device": ", ".join(device["name"] for device in status["devices"]),
        "cuda_available": "cuda" in kinds,
    })  # fmt: skip


@get("/readiness", responses=ERRORS)
async def readiness(gateway: Gateway) -> Response[dict[str, Any]]:
    """200: the broker answers. 503: it does not, and why."""
    problem = await gateway.readiness()
    made = {"ready": not problem, "status": "not_ready" if problem else "ready", "message": problem}
    return Response(made, status_code=503 if problem else 200)


# ---------------------------------------------------------------- models


class NamedModel(msgspec.Struct):
    model_name: str = ""


@dataclass
class DescribedModelName(Operation):
    def __post_init__(self) -> None:
        self.request_body = body(object_of(model_name=Schema(type=OpenAPIType.STRING)), required=False)


@get("/models/status", responses=ERRORS)
async def status(request: HttpRequest, gateway: Gateway) -> dict[str, Any]:
    """Budget, use, what is loaded and what is registered (docs/protocol.md explains each field)."""
    async with gateway.session(request, Rights.VIEWER) as zoo:
        found, rows = await zoo.get_status(), await zoo.models()
    loaded = {row["name"] for row in found["loaded_models"]}
    registered = [
        {"name": row["name"], "vram_mb": row["vram_mb"], "priority": row["priority"], "loaded": row["name"] in loaded}
        for row in rows
    ]
    return {**found, "registered_models": registered}


@get("/models/registry", responses=ERRORS)
async def registry(request: HttpRequest, gateway: Gateway) -> dict[str, Any]:
    """Every registered model, and what keeps it from being served, if anything."""
    async with gateway.session(request, Rights.VIEWER) as zoo:
        rows = await zoo.models()
    return {"models": [{**row, "loaded": row["state"] == "loaded"} for row in rows]}


async def _named(request: HttpRequest, gateway: Gateway, model_name: str) -> str:
    """From the query, or the JSON of the body. Raises InvalidInput: there is none."""
    given: NamedModel = decoded(NamedModel, await gateway.body(request).rest(MOST_BODY))
    name = model_name or given.model_name
    if not name:
        raise InvalidInput('model_name: name a model, as ?model_name=NAME or {"model_name": "NAME"}')
    return name


@post("/models/preload", operation_class=DescribedModelName, responses=ERRORS, status_code=200)
async def preload(request: HttpRequest, gateway: Gateway, model_name: str = "") -> dict[str, Any]:
    """Loads a model. It is not kept: from then on it may be evicted like any other."""
    async with gateway.session(request, Rights.CALLER) as zoo:
        name = await _named(request, gateway, model_name)
        began = time.monotonic()
        await gateway.answer(request, zoo.get_model(name, timeout=LOAD_S))
        seconds = time.monotonic() - began
        found = {row["name"]: row["vram_mb"] for row in (await zoo.get_status())["loaded_models"]}
    gateway.watch.look_now()
    return {"success": True, "model_name": name, "vram_mb": found.get(name), "load_time_ms": round(seconds * 1000, 1)}


@post("/models/unload", operation_class=DescribedModelName, responses=ERRORS, status_code=200)
async def unload(request: HttpRequest, gateway: Gateway, model_name: str = "") -> dict[str, Any]:
    """Unloads a model; answers when its memory is back. `was_loaded` false: it was not loaded."""
    async with gateway.session(request, Rights.OPERATOR) as zoo:
        name = await _named(request, gateway, model_name)
        was_loaded = await gateway.answer(request, zoo.unload(name))
    gateway.watch.look_now()
    return {"success": True, "model_name": name, "was_loaded": was_loaded}


@post("/models/pin", operation_class=DescribedModelName, responses=ERRORS, status_code=200)
async def pin(request: HttpRequest, gateway: Gateway, model_name: str = "") -> dict[str, Any]:
    """The model is not evicted any more. It need not be loaded yet."""
    return await _pinned(request, gateway, model_name, True)


@post("/models/unpin", operation_class=DescribedModelName, responses=ERRORS, status_code=200)
async def unpin(request: HttpRequest, gateway: Gateway, model_name: str = "") -> dict[str, Any]:
    """The model may be evicted again."""
    return await _pinned(request, gateway, model_name, False)


async def _pinned(request: HttpRequest, gateway: Gateway, model_name: str, on: bool) -> dict[str, Any]:
    async with gateway.session(request, Rights.OPERATOR) as zoo:
        name = await _named(request, gateway, model_name)
        await gateway.answer(request, zoo.pin(name) if on else zoo.unpin(name))
    gateway.watch.look_now()
    return {"success": True, "model_name": name, "pinned": on}


# ---------------------------------------------------------------- enrichment


class EnrichAsked(msgspec.Struct):
    """What a caller says of a picture, in JSON, in the fields of a form, or in the query.

    Attributes:
        image: base64, in JSON. frames: earlier ones of a video, likewise.
        detection_type, bbox, confidence: of the one detection; without a box it is the whole picture.
        detections: several, `{"label": …, "box": [x1, y1, x2, y2], "score": …}` each.
        detector: a model that finds them, where none are said.
        is_suspicious: whether this event is, which some models wait for.
        min_score, timeout: None takes the table's.
    """

    image: str = ""
    frames: list[str] = []
    detection_type: str = ""
    bbox: list[float] | None = None
    confidence: float = 1.0
    detections: list[dict[str, Any]] | None = None
    detector: str = ""
    is_suspicious: bool = False
    min_score: float | None = None
    timeout: float | None = None


_ANY = Schema(type=OpenAPIType.OBJECT)
_TEXT, _NUMBER = Schema(type=OpenAPIType.STRING), Schema(type=OpenAPIType.NUMBER)
_FILE = Schema(type=OpenAPIType.STRING, content_media_type="image/jpeg")


@dataclass
class DescribedEnrich(Operation):
    """JSON with base64, a form with files, or the picture alone."""

    def __post_init__(self) -> None:
        box = Schema(type=OpenAPIType.ARRAY, items=_NUMBER, min_items=4, max_items=4)
        said = {
            "detection_type": _TEXT,
            "detector": _TEXT,
            "confidence": _NUMBER,
            "is_suspicious": Schema(type=OpenAPIType.BOOLEAN),
        }
        detections = Schema(type=OpenAPIType.ARRAY, items=_ANY)
        frames = Schema(type=OpenAPIType.ARRAY, items=_TEXT)
        made = body(object_of(["image"], image=_TEXT, frames=frames, bbox=box, detections=detections, **said))
        form = object_of(["image"], image=_FILE, bbox=_TEXT, detections=_TEXT, **said)
        made.content["multipart/form-data"] = OpenAPIMediaType(schema=form)
        made.content["image/jpeg"] = OpenAPIMediaType(schema=_FILE)
        self.request_body = made


@post("/enrich", operation_class=DescribedEnrich, responses=ERRORS, status_code=200)
async def enrich(request: HttpRequest, gateway: Gateway) -> dict[str, Any]:
    """What the right models say about a detection, or several (docs/enrich.md). A failure is its model's alone."""
    async with gateway.session(request, Rights.CALLER) as zoo:
        incoming = gateway.body(request)
        pictures: list[Any] = []
        try:
            asked = await _read(request, incoming, zoo, pictures)
            event = await gateway.answer(request, _enriched(zoo, pictures, asked))
        finally:
            for picture in pictures:
                if isinstance(picture, Frame):
                    picture.close()
    answer: dict[str, Any] = event.to_dict()
    return {**answer, "inference_time_ms": round(event.seconds * 1000, 1)}


async def _read(request: HttpRequest, incoming: Incoming, zoo: AsyncClient, pictures: list[Any]) -> EnrichAsked:
    """Puts the pictures, the last of a video last, into the list; gives what is said of them."""
    content_type = request.headers.get("content-type", "")
    kind = content_type.partition(";")[0].strip().lower()
    query = {name: value for name, value in request.query_params.items() if isinstance(value, str)}
    if kind == "application/json":
        raw = await incoming.rest()
        asked: EnrichAsked = decoded(EnrichAsked, raw)
        pictures += [_from_base64("frames", text) for text in asked.frames]
        pictures.append(_from_base64("image", asked.image))
        return asked
    if kind.startswith(("multipart/", "application/x-www-form-urlencoded")):

        async def client(_: forms.Fields) -> AsyncClient:
            return zoo

        form = await forms.read(incoming, content_type, client)
        pictures += [*form.files.get("frames", ()), *form.files.get("image", form.files.get("file", ()))]
        if not pictures:
            form.close()
            raise InvalidInput("image: the form has no file of this name")
        return _asked({**query, **form.fields, "image": "", "frames": "[]"})
    pictures.append(await incoming.picture(zoo))
    return _asked(query)


def _asked(fields: dict[str, str]) -> EnrichAsked:
    """Of texts. Raises InvalidInput naming the field."""
    values: dict[str, Any] = {name: text for name, text in fields.items() if text != ""}
    for name in ("bbox", "detections", "frames"):
        if name in values:
            text = values[name] if values[name].lstrip().startswith("[") else f"[{values[name]}]"
            try:
                values[name] = msgspec.json.decode(text)
            except (msgspec.MsgspecError, RecursionError):
                raise InvalidInput(f"{name}: {values[name]!r:.100} is not a list, as JSON or with commas") from None
    try:
        return msgspec.convert(values, EnrichAsked, strict=False)
    except msgspec.ValidationError as e:
        raise InvalidInput(f"fields: {e}") from None


async def _enriched(zoo: AsyncClient, pictures: list[Any], asked: EnrichAsked) -> Any:
    found: Any = asked.detections
    if found is None and asked.detector:
        found = await zoo.infer(asked.detector, pictures[-1], color="encoded", timeout=asked.timeout)
    elif found is None and asked.detection_type:
        box = asked.bbox if asked.bbox is not None else await asyncio.to_thread(_whole, pictures[-1])
        found = [{"label": asked.detection_type, "box": box, "score": asked.confidence}]
    if not found:
        await asyncio.to_thread(_whole, pictures[-1])  # no model will say that it is no picture
    return await zoo.enrich(
        pictures if len(pictures) > 1 else pictures[0],
        [] if found is None else found,
        suspicious=asked.is_suspicious,
        color="encoded",
        min_score=asked.min_score,
        timeout=asked.timeout,
    )


def _whole(picture: Any) -> list[float]:
    """The box of a whole picture. Raises InvalidInput: it cannot be read."""
    width, height = size_of(picture, formats.ENCODED)
    if math.isinf(width):
        raise InvalidInput("image: not a picture that can be read; say bbox if it is one")
    return [0.0, 0.0, width, height]


def _from_base64(name: str, text: str) -> bytes:
    """Also of a `data:` URL. Raises InvalidInput."""
    try:
        found = base64.b64decode(text.partition("base64,")[2] if text.startswith("data:") else text, validate=True)
    except (binascii.Error, ValueError) as e:
        raise InvalidInput(f"{name}: not base64: {e}") from None
    if not found:
        raise InvalidInput(f"{name}: it is empty; send base64 of a JPEG or PNG file")
    return found


def router() -> Router:
    handlers = [health, readiness, status, registry, preload, unload, pin, unpin, enrich]
    return Router("/", route_handlers=handlers, tags=["Enrichment"], opt={"door": "enrichment"})
