"""One dispatch answered: its requests read, as many as may be decoded at once, predicted together, and packed.

Frames are kept by descriptor (`inputs.Recent`): slots are reused last-in first-out, so the same descriptor comes again,
and decoding it and making the same view took half of a worker's own time per request (26 us; 13 with what is kept).
"""

from __future__ import annotations

import time
from collections import deque

from workers import encoded, inputs, memory
from workers.answers import Reply
from workers.batch import Task, predict
from workers.lifeline import WorkerLifeline
from workers.loading import LoadedModel
from zoo.errors import InvalidInput, Quarantined
from zoo.wire import arena, payload, protocol
from zoo.wire.launch import Launch


class Dispatches:
    """Answers the dispatches of one model. To be made in its process, when it is loaded."""

    def __init__(self, launch: Launch, loaded: LoadedModel, lifeline: WorkerLifeline) -> None:
        self._launch = launch
        self._loaded = loaded
        self._lifeline = lifeline
        self._max_frames: int | None = getattr(loaded.adapter, "max_frames", None)
        self._growth = memory.Growth(launch.device)

    def answer(self, parts: list[bytes]) -> tuple[bytes, ...]:
        """The message that answers the one of these parts."""
        launch, adapter = self._launch, self._loaded.adapter
        dispatch = protocol.unpack_dispatch(parts[0])
        waiting: deque[tuple[Task, list[bytes]]] = deque()
        at = 1
        for job in dispatch.jobs:
            waiting.append((Task(job), parts[at : at + job.parts]))
            at += job.parts
        halved = False
        read = ran = packed = 0.0
        reply = Reply(launch, self._lifeline, stand_in=self._loaded.stand_in)
        began = time.monotonic()
        while waiting:
            tasks = self._read_some(dispatch, waiting)
            readable = [task for task in tasks if task.error is None]
            there = time.monotonic()
            if readable and predict(adapter, launch.model, launch.device, readable):
                halved = True
            through = time.monotonic()
            for task in tasks:
                reply.add(task)
                task.done()  # before more is decoded
            packed_at = time.monotonic()
            read, ran, packed = read + there - began, ran + through - there, packed + packed_at - through
            began = packed_at
        return reply.message(halved, self._growth.is_news(), (read, ran, packed))

    def _read_some(self, dispatch: protocol.Dispatch, waiting: deque[tuple[Task, list[bytes]]]) -> list[Task]:
        """As many of the requests that wait as may be decoded, and looked at by the model, at once; at least one."""
        tasks: list[Task] = []
        left = encoded.MAX_REQUEST_PIXELS
        while waiting and left > 0:
            task, parts = waiting[0]
            try:
                self._read(task, dispatch, parts, left if tasks else None)
            except inputs.Wait:
                break
            waiting.popleft()
            tasks.append(task)
            left -= inputs.pixels_of(task.given)
        return tasks

    def _read(self, task: Task, dispatch: protocol.Dispatch, parts: list[bytes], pixels: int | None) -> None:
        """Finds the request's frames; sees to it that no input is run that has killed before.

        Raises:
            inputs.Wait: they have more than `pixels` pixels.
        """
        job = task.job

        def find(number: int) -> arena.MappedArena:
            if number not in job.arenas:  # the broker saw to it that these are the client's own
                raise InvalidInput(f"frame: arena {number} is not one that this request names")
            return self._lifeline.arena(number)

        try:
            raw = parts[0] if parts else b""
            given = self._lifeline.recent.get(raw, job.arenas)
            if given is None:
                body = payload.unpack_request(raw)
                given = inputs.read(body, parts[1:], find, left_pixels=pixels, max_frames=self._max_frames)
                self._lifeline.recent.keep(raw, job.arenas, body, given)
            task.given = given
            if dispatch.suspect or dispatch.refuse:
                digest = inputs.fingerprint(given)
                if digest in dispatch.refuse:
                    raise Quarantined("this input killed two processes, or hung them, and is not run again")
                if dispatch.suspect:
                    self._lifeline.send(protocol.LifelineFingerprint(job.id, digest))
        except inputs.Wait:
            raise
        except Exception as e:
            task.fail(e, self._launch.model, self._launch.device)
