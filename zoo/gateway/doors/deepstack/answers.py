"""What the routes answer: predictions as their clients can bear them, and the envelope around everything."""

from __future__ import annotations

import math
import socket
from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import msgspec
from litestar import Request, Response

from zoo.client.event import read_detections
from zoo.enrichment import Enriched
from zoo.errors import InvalidInput
from zoo.gateway import refusals
from zoo.labels import folded
from zoo.results import TYPES

MOST = 20  # predictions: a client ends itself at more
DIGITS = 4  # of a confidence, so that a 0.7 which was a float32 is still one


class Prediction(msgspec.Struct, omit_defaults=True, kw_only=True):
    """One object in whole pixels of the picture. `plate`: what was read on it."""

    label: str
    confidence: float
    x_min: int
    y_min: int
    x_max: int
    y_max: int
    plate: str = ""


def objects(model: str, answer: Any) -> list[Enriched]:
    """What a model found. Raises InvalidInput: it answers something else than boxes."""
    if isinstance(answer, dict) or type(answer) not in TYPES:
        raise InvalidInput(f"{model} answers no boxes, and this route has nothing else to say")
    try:
        return read_detections(answer)
    except InvalidInput as e:
        raise InvalidInput(f"{model} answers no boxes, and this route has nothing else to say ({e})") from None


def chosen(found: Sequence[Enriched], least: float, labels: Sequence[str] = ()) -> list[Enriched]:
    """Those that are sure enough and have one of the labels (none: any), spelled as there; the surest first."""
    spelled = {folded(label): label for label in labels}
    made = [
        msgspec.structs.replace(one, label=spelled.get(folded(one.label), one.label), score=round(one.score, DIGITS))
        for one in found
        if (not labels or folded(one.label) in spelled) and all(map(math.isfinite, one.box))
    ]
    return sorted((one for one in made if one.score >= least), key=lambda one: -one.score)[:MOST]


def prediction(one: Enriched, **more: Any) -> Prediction:
    left, top, right, bottom = (max(0, round(edge)) for edge in one.box)
    box = {"x_min": left, "y_min": top, "x_max": max(right, left + 1), "y_max": max(bottom, top + 1)}
    return Prediction(**{"label": one.label, "confidence": one.score, **box, **more})


def summed_up(predictions: Sequence[Prediction]) -> str:
    """As CodeProject.AI words it."""
    if not predictions:
        return "No objects found"
    names = [one.label for one in predictions]
    return f"Found {', '.join(names[:3])}{'...' if len(names) > 3 else ''}"


def envelope(
    command: str, *, model: str = "", provider: str = "", infer_s: float = 0.0, all_s: float = 0.0, **more: Any
) -> dict[str, Any]:
    """What every answer has. `more` goes before it."""
    return {
        "success": True, "message": "", "error": "", "code": 200, **more,
        "command": command,
        "moduleId": model or "zoo",
        "moduleName": "Model Zoo",
        "executionProvider": provider,
        "canUseGPU": provider == "CUDA",
        "inferenceMs": round(infer_s * 1e3),
        "processMs": round(all_s * 1e3),
        "analysisRoundTripMs": round(all_s * 1e3),
        "processedBy": socket.gethostname(),
        "timestampUTC": format_datetime(datetime.now(UTC), usegmt=True),
        "duration": round(all_s, DIGITS),
    }  # fmt: skip


def refused(request: Request[Any, Any, Any], error: Exception) -> Response[dict[str, Any]]:
    """The handler of all exceptions: HTTP 200, `success: false`, and what the error is as `code` and text."""
    refusal = refusals.describe(error)
    command = request.scope["path"].rpartition("/")[2]
    body = envelope(command, success=False, message=refusal.text, error=refusal.text, code=refusal.status)
    body["errorCode"], body["retryable"], body["request"] = refusal.code, refusal.retryable, refusal.request
    return Response(body, status_code=200, headers=refusals.headers(refusal))
