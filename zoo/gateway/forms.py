"""Forms (`multipart/form-data`, or urlencoded): fields as texts, files written to the arena as they come.

A token may come in a field. Where it comes after a file, that file waits in this process's memory: whose arena it goes
to is not known before. All that wait so share one limit, for their callers have shown no token yet.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from urllib.parse import parse_qsl

import multipart

from zoo.client.aio import AsyncClient
from zoo.client.frames import Frame
from zoo.errors import InvalidInput, QueueFull
from zoo.gateway.incoming import Incoming, Writing

MOST_FIELD_BYTES = 1 << 16  # of all texts together
MOST_PARTS = 256
Fields = dict[str, str]
OpenClient = Callable[[Fields], Awaitable[AsyncClient | None]]


class WaitingFiles:
    """The bytes of files that wait for their callers to be known. `most`: of all of them together."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.used = 0

    def take(self, nbytes: int) -> None:
        """Raises QueueFull."""
        if self.used + nbytes > self.most:
            raise QueueFull(
                "too many pictures came before their tokens; send api_key before the picture, or as X-API-Key"
            )
        self.used += nbytes


class Form:
    """What came. `close` gives the frames back.

    Attributes:
        fields: the last value of each.
        files: under each name those that came: a `Frame` with the bytes of one, to be sent with `color="encoded"`, or
            the bytes themselves.
    """

    def __init__(self, waiting: WaitingFiles) -> None:
        self.fields: Fields = {}
        self.files: dict[str, list[Frame | bytes]] = {}
        self._waiting = waiting
        self._taken = 0

    def wait(self, nbytes: int) -> None:
        """Counts bytes of a file that is kept here. Raises QueueFull."""
        self._waiting.take(nbytes)
        self._taken += nbytes

    def close(self) -> None:
        self._waiting.used -= self._taken
        self._taken = 0
        for files in self.files.values():
            for file in files:
                if isinstance(file, Frame):
                    file.close()


class FormPart:
    """One part of a form while it comes. `waits`: it is a file whose caller is not known yet."""

    def __init__(self, name: str, *, is_file: bool, zoo: AsyncClient | None, expected: int) -> None:
        self.name = name
        self.is_file = is_file
        self._kept = bytearray()
        self.waits = is_file and zoo is None
        self._writing = Writing(zoo, expected) if is_file and zoo is not None else None

    async def write(self, data: bytes) -> None:
        if self._writing is not None:
            await self._writing.write(data)
        else:
            self._kept += data

    def file(self) -> Frame | bytes:
        """Raises InvalidInput: it is empty."""
        if self._writing is not None:
            return self._writing.frame(self.name)
        if not self._kept:
            raise InvalidInput(f"{self.name}: it is empty; send the bytes of a JPEG or PNG file")
        return bytes(self._kept)

    def text(self) -> str:
        return self._kept.decode("utf-8", "replace")

    def close(self) -> None:
        if self._writing is not None:
            self._writing.close()


async def read(body: Incoming, content_type: str, open_client: OpenClient, waiting: WaitingFiles | None = None) -> Form:
    """The whole form.

    Args:
        content_type: the header of the request.
        open_client: asked with the fields so far when a file begins; None: the caller is not known yet.
        waiting: `Gateway.waiting`, where it may not be known.

    Raises:
        InvalidInput: it is no form. QueueFull: see `WaitingFiles`. What `body` and `open_client` raise.
    """
    waiting = waiting or WaitingFiles(0)
    kind, options = multipart.parse_options_header(content_type)
    if kind == "application/x-www-form-urlencoded":
        form = Form(waiting)
        form.fields.update(parse_qsl((await body.rest(MOST_FIELD_BYTES)).decode("utf-8", "replace")))
        return form
    boundary = options.get("boundary", "")
    if kind != "multipart/form-data" or not boundary:
        raise InvalidInput("Content-Type: expected multipart/form-data with its boundary")
    reading = _Reading(body, open_client, waiting)
    try:
        await reading.all(boundary)
    except BaseException:
        reading.close()
        raise
    return reading.form


class _Reading:
    def __init__(self, body: Incoming, open_client: OpenClient, waiting: WaitingFiles) -> None:
        self.form = Form(waiting)
        self._body = body
        self._open_client = open_client
        self._part: FormPart | None = None
        self._text_bytes = 0

    async def all(self, boundary: str) -> None:
        try:
            parser = multipart.PushMultipartParser(boundary, max_segment_count=MOST_PARTS)
            while piece := await self._body.chunk():
                if not parser.closed:  # what follows the end is passed over
                    for event in parser.parse(bytes(piece)):
                        await self._take(event)
            parser.close()
        except multipart.MultipartError as e:
            raise InvalidInput(f"body: not a whole form: {e}") from None

    async def _take(self, event: multipart.MultipartSegment | bytes | bytearray | None) -> None:
        if isinstance(event, multipart.MultipartSegment):
            is_file = event.filename is not None or (event.content_type or "").startswith("image/")
            is_file = is_file or event.name == "image"
            zoo = await self._open_client(self.form.fields) if is_file else None
            length = self._body.length
            expected = length - self._body.done if length is not None else 0
            self._part = FormPart(event.name, is_file=is_file, zoo=zoo, expected=max(expected, 1 << 16))
        elif event is not None and self._part is not None:
            if not self._part.is_file:
                self._text_bytes += len(event)
                if self._text_bytes > MOST_FIELD_BYTES:
                    raise InvalidInput(
                        f"{self._part.name}: all fields together have more than {MOST_FIELD_BYTES} bytes"
                    )
            if self._part.waits:
                self.form.wait(len(event))
            await self._part.write(bytes(event))
        elif self._part is not None:
            part, self._part = self._part, None
            if part.is_file:
                self.form.files.setdefault(part.name, []).append(part.file())
            else:
                self.form.fields[part.name] = part.text()

    def close(self) -> None:
        self.form.close()
        if self._part is not None:
            self._part.close()
