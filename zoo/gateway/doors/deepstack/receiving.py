"""The form of a request: its picture, and what it says of it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

from zoo.client.aio import AsyncClient
from zoo.client.frames import Frame
from zoo.errors import DeadlineExceeded, InvalidInput
from zoo.gateway import access, forms
from zoo.gateway.access import KnownCaller, Rights
from zoo.gateway.gateway import Gateway, HttpRequest
from zoo.gateway.refusals import Unauthorized

LEAST = 0.4  # the confidence where a request says none


class PictureAsked:
    """One picture, and the time that there is for it.

    Attributes:
        least: `min_confidence`.
        infer_s: seconds that models worked on it, all together.
    """

    def __init__(
        self, request: HttpRequest, gateway: Gateway, zoo: AsyncClient, picture: Frame | bytes, least: float
    ) -> None:
        self.least = least
        self.infer_s = 0.0
        self._request = request
        self._gateway = gateway
        self._zoo = zoo
        self._picture = picture
        self._seconds = gateway.config.gateway.deepstack_seconds
        self._began = time.monotonic()

    async def infer(self, model: str, **how: Any) -> Any:
        """Raises DeadlineExceeded, and what the model does."""
        left = self._seconds - self.all_s
        if left <= 0:
            raise DeadlineExceeded(
                f"{model}: the {self._seconds:g} s (deepstack_seconds) were over before it was asked"
            )
        if isinstance(self._picture, Frame):
            how["color"] = "encoded"
        answer = await self._gateway.answer(self._request, self._zoo.infer(model, self._picture, timeout=left, **how))
        self.infer_s += next((one.timings.infer for one in (answer if isinstance(answer, list) else [answer])), 0.0)
        return answer

    @property
    def all_s(self) -> float:
        """Seconds since the picture was there."""
        return time.monotonic() - self._began


@contextlib.asynccontextmanager
async def asked(request: HttpRequest, gateway: Gateway) -> AsyncIterator[PictureAsked]:
    """What a form asks for. Its `api_key` counts as the token, wherever in the form it stands.

    Raises:
        InvalidInput: it is no form, or has no picture. Unauthorized, NotAllowed, BodyTooLarge, QueueFull.
    """
    async with contextlib.AsyncExitStack() as stack:
        zoo: AsyncClient | None = None
        owner: KnownCaller | None = None

        async def open_client(fields: dict[str, str]) -> AsyncClient | None:
            nonlocal zoo, owner
            if owner is None:
                key = fields.get("api_key", "")
                try:
                    owner = gateway.admit(request, Rights.CALLER, key)
                except Unauthorized:
                    if key or access.sent_token(request.headers):  # type: ignore[arg-type]
                        raise
                    return None  # it may still come
                zoo = await stack.enter_async_context(gateway.sessions.of(owner.name))
            return zoo

        form = await forms.read(
            gateway.body(request), request.headers.get("content-type", ""), open_client, gateway.waiting
        )
        stack.callback(form.close)
        caller = gateway.admit(request, Rights.CALLER, form.fields.get("api_key"))
        picture = _picture(form)
        if zoo is None or caller != owner:  # the key came after the picture, which lies elsewhere
            zoo = await stack.enter_async_context(gateway.sessions.of(caller.name))
            picture = picture.array.tobytes() if isinstance(picture, Frame) else picture
        yield PictureAsked(request, gateway, zoo, picture, _least(form.fields))


async def fields(request: HttpRequest, gateway: Gateway) -> dict[str, str]:
    """Of a request without a picture; {} where it is no form. Raises InvalidInput: it has a file."""

    async def no_client(_: dict[str, str]) -> None:
        raise InvalidInput("body: this route takes no file")

    kind = request.headers.get("content-type", "")
    if not kind.startswith(("multipart/form-data", "application/x-www-form-urlencoded")):
        await passed_over(request, gateway)
        return {}
    return (await forms.read(gateway.body(request), kind, no_client, gateway.waiting)).fields


async def passed_over(request: HttpRequest, gateway: Gateway) -> None:
    """Reads a body to its end, for the connection to go on."""
    body = gateway.body(request)
    while await body.chunk():
        pass


def _picture(form: forms.Form) -> Frame | bytes:
    """Of several, the first: of those named "image", where there are some."""
    found = form.files.get("image") or [file for files in form.files.values() for file in files]
    if not found:
        raise InvalidInput("image: the form has no such file; send the bytes of a JPEG or PNG file")
    return found[0]


def _least(fields: dict[str, str]) -> float:
    text = fields.get("min_confidence", "").strip()
    try:
        value = float(text or LEAST)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise InvalidInput(f"min_confidence: {text!r:.60} is not a number from 0 to 1")
    return value
