"""The detectors that are connected to one endpoint: the lease of each, and what it is answered.

They share a session of the broker, whose arena is made once: a client that makes a new socket after each failure finds
it in place.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Sequence
from typing import Any

import numpy as np

from zoo.client.aio import AsyncClient, AsyncLease
from zoo.client.frames import Frame
from zoo.config.gateway import FrigateConfig
from zoo.errors import DeadlineExceeded, InferenceFailed, InvalidInput, ModelNotFound, ZooError
from zoo.gateway.doors.frigate import label_maps, messages
from zoo.gateway.doors.frigate.listener import FrigateListener
from zoo.gateway.doors.frigate.messages import DetectorHeader
from zoo.gateway.metrics import DoorMetrics
from zoo.results import Detections

HOLD_S = 25.0  # for a model to be loaded: the client waits for 30 s
ANSWER_S = 0.19  # for a detection: the client waits for 0.2 s
AGAIN_S = 0.05  # between attempts to load
SAY_S = 10.0  # between two lines of log about the same
DOOR = "frigate"

log = logging.getLogger("zoo.gateway")


class FrigateDetector:
    """A connected client.

    Attributes:
        fd: its connection. identity: its routing id.
        model: our name of the model that it uses, "" before that is known. lease: of that model.
        frame: its picture's place in the arena, kept from one detection to the next.
        bright: see `messages.write_pixels`.
        task: what it waits for.
    """

    def __init__(self, identity: bytes, fd: int, model: str) -> None:
        self.identity = identity
        self.fd = fd
        self.model = model
        self.lease: AsyncLease | None = None
        self.frame: Frame | None = None
        self.bright = False
        self.task: asyncio.Task[None] | None = None

    def drop_frame(self) -> None:
        """A worker may still read it: what comes next goes elsewhere."""
        if self.frame is not None:
            self.frame.close()
            self.frame = None


class FrigateDetectors:
    """See the module's docstring."""

    def __init__(self, table: FrigateConfig, zoo: AsyncClient, metrics: DoorMetrics) -> None:
        self._table = table
        self._zoo = zoo
        self._metrics = metrics
        self._numbers = label_maps.numbers(table.labels)
        models = {*table.models.values()}
        self._only = models.pop() if len(models) == 1 else ""
        self._by_identity: dict[bytes, FrigateDetector] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._said: dict[str, float] = {}

    # ------------------------------------------------------------ called by the listener

    def received(self, listener: FrigateListener, identity: bytes, fd: int, parts: Sequence[Any]) -> None:
        """A REQ socket sends nothing before it was answered, so what comes before that is dropped."""
        one = self._by_identity.get(identity)
        if one is None:
            one = self._by_identity[identity] = FrigateDetector(identity, fd, self._only)
        one.fd = fd
        if one.task is None or one.task.done():
            one.task = self._start(self._serve(listener, one, parts, time.monotonic()))

    def ended(self, fd: int) -> None:
        """The end of a connection: what it waits for is withdrawn, and its lease given back."""
        for one in [one for one in self._by_identity.values() if one.fd == fd]:
            del self._by_identity[one.identity]
            if one.task is not None:
                one.task.cancel()
            one.drop_frame()
            if one.lease is not None:
                self._start(_release(one.lease))

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._zoo.close()

    def _start(self, what: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(what)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # ------------------------------------------------------------ answers

    async def _serve(self, listener: FrigateListener, one: FrigateDetector, parts: Sequence[Any], since: float) -> None:
        """Answers, or does not."""
        status = 200
        try:
            header = messages.read_header(parts[0])
            if header.model_request:
                listener.send(one.identity, await self._offer(one, header.model_name, since + HOLD_S))
            elif header.model_data:
                listener.send(one.identity, self._refuse(header.model_name))
            elif len(parts) == 2:
                found = await self._in_time(one, header, parts[1], since + ANSWER_S)
                listener.send(one.identity, messages.ANSWER_HEADER, found)
            else:
                raise InvalidInput("neither a request for a model nor a picture")
        except ZooError as e:
            status = 400 if isinstance(e, InvalidInput) else 504 if isinstance(e, DeadlineExceeded) else 503
            self._say(e.code, logging.WARNING, "a detector of %s was not answered: %s", self._table.endpoint, e)
        except Exception:
            status = 500
            log.exception("a detector of %s was not answered", self._table.endpoint)
        self._metrics.count(DOOR, status, time.monotonic() - since)

    async def _in_time(self, one: FrigateDetector, header: DetectorHeader, data: Any, deadline: float) -> bytes:
        """Raises ZooError: there is no right answer by then."""
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await self._detect(one, messages.read_tensor(header, data), deadline)
        except TimeoutError:
            one.drop_frame()
            raise DeadlineExceeded(f"{one.model} did not answer within {ANSWER_S:g} s") from None
        except BaseException:
            one.drop_frame()
            raise

    async def _detect(self, one: FrigateDetector, picture: np.ndarray, deadline: float) -> bytes:
        if not one.model:
            raise ModelNotFound("it has not said yet which of its models it uses, and is to ask for it again")
        if one.lease is None:  # it was connected to a gateway before this one
            one.lease = await self._zoo.load(one.model, timeout=deadline - time.monotonic())
        if one.lease.lost or (one.frame is not None and one.frame.array.shape != picture.shape):
            one.drop_frame()
        if one.frame is None:
            one.frame = await self._zoo.frame(picture.shape)
        one.bright = messages.write_pixels(one.frame.array, picture, one.bright)
        found = await one.lease(one.frame, timeout=max(0.001, deadline - time.monotonic()))
        return messages.rows(self._detections(one.model, found), self._numbers, *picture.shape[:2])

    def _detections(self, model: str, found: Any) -> Detections:
        if isinstance(found, Detections):
            return found
        raise InferenceFailed(f"{model} answers {type(found).__name__}, and a detector has to answer Detections")

    # ------------------------------------------------------------ models

    async def _offer(self, one: FrigateDetector, name: str, deadline: float) -> bytes:
        """Once the model is loaded and has answered. "Not there" only for what cannot be had until the deadline."""
        model = self._table.models.get(name)
        if model is None:
            return messages.offer(name[:200], False, self._missing(name))
        while True:
            try:
                await self._take(one, model, deadline)
                return messages.offer(name, True, f"{model} is loaded")
            except ZooError as e:
                pause = max(AGAIN_S, e.retry_after or 0.0)
                if not e.retryable or time.monotonic() + pause >= deadline:
                    what = f"{model} cannot be used by Frigate's {name!r}: {e}"
                    self._say(f"not {model}", logging.ERROR, "%s: %s", self._table.endpoint, what)
                    return messages.offer(name, False, what)
            await asyncio.sleep(pause)

    async def _take(self, one: FrigateDetector, model: str, deadline: float) -> None:
        """Leases the model. Its first detection, of a black picture, also puts everything in place that it takes."""
        if one.lease is not None and (one.model != model or one.lease.lost):
            lease, one.lease = one.lease, None
            await _release(lease)
        one.model = model
        if one.lease is None:
            one.lease = await self._zoo.load(model, timeout=max(0.001, deadline - time.monotonic()))
        async with self._zoo.frame((320, 320, 3)) as frame:
            frame.array[:] = 0
            found = await one.lease(frame, timeout=max(0.001, deadline - time.monotonic()))
        self._detections(model, found)
        (row,) = await self._zoo.models(model)
        known = row.get("labels") or []
        if known and not any(messages.key(label) in self._numbers for label in known):
            self._say(
                model, logging.WARNING, "%s: none of the labels of %s is in `labels` of its [[gateway.frigate]] table, "
                "so it will find nothing", self._table.endpoint, model,
            )  # fmt: skip

    def _missing(self, name: str) -> str:
        entry = f'{{ "{name:.200}" = "NAME" }}'
        what = f"[[gateway.frigate]] of {self._table.endpoint} has no model {name!r:.200}: add {entry}"
        self._say("missing", logging.ERROR, "%s to its `models`", what)
        return what

    def _refuse(self, name: str) -> bytes:
        """A file of weights under a name of the sender's choice is taken from no client."""
        if name in self._table.models:
            what = f"{self._table.models[name]} is used as {name!r}, and files of weights are not taken"
        else:
            what = self._missing(name)
        self._say("refused", logging.WARNING, "a detector's file of weights was refused: %s", what)
        return messages.refused_upload(what)

    def _say(self, about: str, level: int, text: str, *values: Any) -> None:
        """Not the same over and over."""
        now = time.monotonic()
        if now >= self._said.get(about, 0.0):
            self._said[about] = now + SAY_S
            log.log(level, text, *values)


async def _release(lease: AsyncLease) -> None:
    try:
        await lease.release()
    except ZooError as e:
        log.info("the lease of %s was not given back: %s", lease.model, e)
