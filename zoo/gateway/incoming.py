"""The body of a request on its way in: bounded in bytes and in time, and written where it stays.

`picture` and `fill` copy each piece as it comes off the socket into a slot of the caller's arena, which the worker
reads: a body is never in this process's memory as a whole. An encoded picture is decoded there, not here.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

from zoo.client.aio import AsyncClient
from zoo.client.frames import Frame
from zoo.errors import InvalidInput
from zoo.gateway.refusals import BodyTooLarge, BodyTooSlow, Disconnected

Receive = Callable[[], Awaitable[Any]]  # ASGI's
WINDOW_BITS = {"gzip": 31, "deflate": 15}  # of zlib, by the name of the encoding
PIECE = 1 << 18  # bytes that are unpacked at once
FIRST = 1 << 18  # bytes of the slot for a body that does not say its length


class Incoming:
    """A body that is read once, from its beginning.

    Args:
        length: what its header says, or None.
        most: bytes that are taken, unpacked. seconds: that it may take to arrive.
        encoding: "gzip" or "deflate" where it is packed, else "".

    Attributes:
        done: how many bytes were handed out.

    Raises (all methods):
        BodyTooLarge, BodyTooSlow. Disconnected.
    """

    def __init__(self, receive: Receive, length: int | None, most: int, seconds: float, encoding: str = "") -> None:
        if length is not None and length > most:
            raise _too_large(most)
        if encoding and encoding not in WINDOW_BITS:
            raise InvalidInput(f"Content-Encoding: {encoding!r:.40} is not one of {', '.join(WINDOW_BITS)}")
        self.length = length if not encoding else None
        self._packed = Packed(WINDOW_BITS[encoding]) if encoding else None
        self.done = 0
        self._came = 0  # bytes, packed or not
        self._receive = receive
        self._most = most
        self._seconds = seconds
        self._end = time.monotonic() + seconds
        self._left = memoryview(b"")  # received, not handed out
        self._more = True

    async def chunk(self, most: int | None = None) -> memoryview:
        """The next bytes, `most` of them or less; empty at the end."""
        while not self._left:
            if self._packed is not None and (unpacked := self._packed.take()):
                self._left = memoryview(unpacked)
                break
            if not self._more:
                break
            try:
                async with asyncio.timeout(max(0.0, self._end - time.monotonic())):
                    message = await self._receive()
            except TimeoutError:
                raise BodyTooSlow(f"the body did not arrive within {self._seconds:g} s") from None
            if message["type"] != "http.request":
                raise Disconnected
            data, self._more = message.get("body", b""), message.get("more_body", False)
            self._came += len(data)
            if self._came > self._most:
                raise _too_large(self._most)
            if self._packed is not None:
                self._packed.put(data, end=not self._more)
            else:
                self._left = memoryview(data)
        out = self._left if most is None else self._left[:most]
        self._left = self._left[len(out) :]
        self.done += len(out)
        if self.done > self._most:
            raise _too_large(self._most)
        return out

    async def read(self, nbytes: int) -> bytes:
        """Exactly so many. Raises InvalidInput: it ends before."""
        parts = bytearray()
        while len(parts) < nbytes:
            part = await self.chunk(nbytes - len(parts))
            if not part:
                raise InvalidInput(f"body: it ends after {self.done} bytes, {nbytes - len(parts)} are missing")
            parts += part
        return bytes(parts)

    async def rest(self, most: int | None = None) -> bytes:
        """All that comes still. `most`: bytes, less than the limit of all bodies."""
        limit = self._most if most is None else min(most, self._most)
        parts = bytearray()
        while part := await self.chunk():
            parts += part
            if len(parts) > limit:
                raise _too_large(limit)
        return bytes(parts)

    async def fill(self, frame: Frame) -> None:
        """Writes exactly as many bytes as the frame has. Raises InvalidInput: the body ends before."""
        target = frame.array.reshape(-1).view("u1").data
        at = 0
        while at < len(target):
            part = await self.chunk(len(target) - at)
            if not part:
                raise InvalidInput(f"body: it ends after {self.done} bytes, {len(target) - at} are missing")
            target[at : at + len(part)] = part
            at += len(part)

    async def picture(self, zoo: AsyncClient) -> Frame:
        """All that comes still, as the bytes of an encoded picture: send it with `color="encoded"`.

        The caller closes it. Raises InvalidInput: there are none.
        """
        writing = Writing(zoo, FIRST if self.length is None else self.length - self.done)
        try:
            while part := await self.chunk():
                await writing.write(part)
        except BaseException:
            writing.close()
            raise
        return writing.frame("body")


class Packed:
    """A packed body, unpacked piece by piece: a few bytes may stand for gigabytes, which are never made at once."""

    def __init__(self, window_bits: int) -> None:
        self._unpacker = zlib.decompressobj(wbits=window_bits)
        self._waiting = b""
        self._ended = False

    def put(self, data: bytes, *, end: bool) -> None:
        self._waiting += data
        self._ended = end

    def take(self) -> bytes:
        """The next piece, or nothing while more is needed. Raises InvalidInput: it is damaged or cut off."""
        while self._waiting:
            try:
                out = self._unpacker.decompress(self._waiting, PIECE)
            except zlib.error as e:
                raise InvalidInput(f"body: it cannot be unpacked: {e}") from None
            self._waiting = self._unpacker.unconsumed_tail
            if self._unpacker.unused_data:
                raise InvalidInput("body: it goes on after the end of its packed data")
            if out:
                return out
        if self._ended and not self._unpacker.eof:
            raise InvalidInput("body: it ends before its packed data does")
        return b""


class Writing:
    """A slot that is written to piece by piece, and grows.

    Args:
        expected: bytes, if they are known; it has to move where there come more.
    """

    def __init__(self, zoo: AsyncClient, expected: int) -> None:
        self._zoo = zoo
        self._expected = max(1, expected)
        self._frame: Frame | None = None
        self._at = 0

    async def write(self, part: bytes | memoryview) -> None:
        end = self._at + len(part)
        old = self._frame
        if old is None or end > old.array.size:
            size = self._expected if old is None else 2 * old.array.size
            new = await self._zoo.frame((max(size, end),))
            if old is not None:
                new.array[: self._at] = old.array[: self._at]
                old.close()
            self._frame = new
        assert self._frame is not None
        self._frame.array.data[self._at : end] = part
        self._at = end

    def frame(self, field: str) -> Frame:
        """What was written; from here on it is the caller's to close. Raises InvalidInput naming the field: nothing."""
        frame, self._frame = self._frame, None
        if frame is None or not self._at:
            raise InvalidInput(f"{field}: it is empty; send the bytes of a JPEG or PNG file")
        frame.cut(self._at)
        return frame

    def close(self) -> None:
        if self._frame is not None:
            self._frame.close()


async def unless_gone(receive: Receive, answer: Awaitable[Any]) -> Any:
    """What `answer` gives; it is cancelled when the other side goes. The body has to be read before.

    Raises:
        Disconnected.
    """
    working = asyncio.ensure_future(answer)
    watching = asyncio.ensure_future(_watch(receive))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Disconnected
        return working.result()
    finally:
        for task in (working, watching):
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task


async def _watch(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _too_large(most: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"the body is larger than {most / (1 << 20):g} MB; raise max_body_mb of [gateway], or send less"
    )
