"""A client process of the storm: `python -m tests.storm.customer ENDPOINT SEED TALLY MODEL…`, until its input ends.

Two threads share a `Client`, a third runs an `AsyncClient`. Each call is written to TALLY before it is made and again
when it has ended, one letter each, so that the books of a process that was killed can be read, too:
`s` sent, `a` answered rightly, `r` refused by a typed error, `W` wrong, followed by what and why.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import random
import sys
import threading
import time
from collections import deque
from typing import Any

import numpy as np

from tests.storm.adapter import checksum
from zoo import AsyncClient, Client, ZooError

LATE_S = 6.0  # past its deadline, on a machine that the storm has overloaded; see the module `storm`
KEPT = 4  # results that are looked at again later


class Tally:
    """The books of one process."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(self, line: str) -> None:
        os.write(self._fd, f"{line}\n".encode(errors="backslashreplace"))


class Wrong(Exception):
    """An answer that is not the one to this request."""


class Customer:
    """Makes one call after the other. `zoo`: a `Client` or an `AsyncClient`; `run` is a coroutine for both."""

    def __init__(self, zoo: Any, seed: int, tally: Tally, models: list[str], over: threading.Event) -> None:
        self._zoo = zoo
        self._dice = random.Random(seed)
        self._numbers = np.random.default_rng(seed)
        self._tally = tally
        self._models = models
        self._over = over
        self._kept: deque[tuple[float, np.ndarray]] = deque(maxlen=KEPT)

    async def run(self) -> None:
        calls = [self._plain] * 8 + [self._crops, self._many, self._shared, self._video, self._lease, self._hostile] * 2
        calls += [self._dropped, self._preload, self._unload, self._ask, self._poison, self._noise, self._cleanup]
        while not self._over.is_set():
            call = self._dice.choice(calls)
            started = time.monotonic()
            timeout = self._dice.choice([0.02, 0.3, 2.0, 8.0])
            self._tally.note("s")
            try:
                await call(timeout)
            except ZooError as e:
                outcome = f"r {e.code}"
            except Exception as e:
                outcome = f"W {call.__name__}: {type(e).__name__}: {e}"
            else:
                outcome = "a"
            late = time.monotonic() - started - timeout
            if late > LATE_S and call is not self._lease:
                outcome = f"W {call.__name__}: {late:.1f} s after its deadline"
            self._tally.note(outcome)
            if any(not np.all(kept == nonce) for nonce, kept in self._kept):
                self._tally.note("s")
                self._tally.note("W a kept result has changed")
                self._kept.clear()
            if outcome.startswith("r"):
                self._over.wait(self._dice.random() * 0.02)

    async def _do(self, value: Any) -> Any:
        return await value if inspect.isawaitable(value) else value

    def _frame(self, *shape: int) -> np.ndarray:
        return self._numbers.integers(0, 256, shape or (24, 32, 3), np.uint8)

    def _right(self, answer: Any, model: str, nonce: int, frame: np.ndarray) -> None:
        told = (answer["model"], answer["nonce"], answer["sum"])
        if told != (model, nonce, checksum(frame)):
            raise Wrong(f"{told} for {(model, nonce, checksum(frame))}")
        if "map" in answer:
            if not np.all(answer["map"] == nonce):
                raise Wrong("another request's map")
            self._kept.append((nonce, answer["map"]))

    def _any(self) -> tuple[str, int]:
        return self._dice.choice(self._models), self._dice.randrange(1 << 20)

    async def _plain(self, timeout: float) -> None:
        model, nonce = self._any()
        frame = self._frame(*self._dice.choice([(24, 32, 3), (480, 640, 3), (7,)]))
        options = self._dice.choice([{}, {}, {"map": True}, {"do": "sleep", "seconds": 0.05}])
        priority = self._dice.choice([0, 1, 2, 2, 3])
        answer = self._zoo.infer(model, frame, timeout=timeout, priority=priority, nonce=nonce, **options)
        self._right(await self._do(answer), model, nonce, frame)

    async def _crops(self, timeout: float) -> None:
        (model, nonce), frame = self._any(), self._frame(60, 80, 3)
        boxes = [(8 * i, 5 * i, 8 * i + 10, 5 * i + 9) for i in range(5)]
        answers = await self._do(self._zoo.infer(model, frame, boxes=boxes, timeout=timeout, nonce=nonce))
        for (x1, y1, x2, y2), answer in zip(boxes, answers, strict=True):
            self._right(answer, model, nonce, frame[y1:y2, x1:x2])

    async def _many(self, timeout: float) -> None:
        (_, nonce), frame = self._any(), self._frame()
        wanted = self._dice.sample(self._models, 3)
        answers = await self._do(self._zoo.infer_many(frame, wanted, timeout=timeout, nonce=nonce))
        if list(answers) != wanted:
            raise Wrong(f"{list(answers)} for {wanted}")
        for model, answer in answers.items():
            if not isinstance(answer, ZooError):
                self._right(answer, model, nonce, frame)

    async def _shared(self, timeout: float) -> None:
        model, nonce = self._any()
        with await self._do(self._zoo.frame((24, 32, 3))) as shared:
            shared.array[:] = frame = self._frame()
            for _ in range(2):
                answer = self._zoo.infer(model, shared, timeout=timeout, nonce=nonce, map=True)
                self._right(await self._do(answer), model, nonce, frame)

    async def _dropped(self, timeout: float) -> None:
        """Nothing is given back by name: what nothing refers to any more is free again."""
        model, nonce = self._any()
        shared = await self._do(self._zoo.frame((48, 32, 3)))
        shared.array[:] = frame = self._frame(48, 32, 3)
        self._right(await self._do(self._zoo.infer(model, shared, timeout=timeout, nonce=nonce)), model, nonce, frame)

    async def _video(self, timeout: float) -> None:
        (model, nonce), frames = self._any(), [self._frame() for _ in range(3)]
        answer = await self._do(self._zoo.infer(model, frames, timeout=timeout, nonce=nonce))
        self._right(answer, model, nonce, frames[0])

    async def _lease(self, timeout: float) -> None:
        (model, nonce), frame = self._any(), self._frame()
        lease = await self._do(self._zoo.load(model, timeout=timeout, keep_alive=self._dice.choice([None, 0, 5.0])))
        try:
            for _ in range(3):
                self._right(await self._do(lease(frame, timeout=timeout, nonce=nonce)), model, nonce, frame)
        finally:
            await self._do(lease.release())

    async def _hostile(self, timeout: float) -> None:
        model, nonce = self._any()
        frame, more = self._dice.choice(
            [
                (b"\xff\xd8\xff" + self._numbers.bytes(200), {}),
                (self._frame(), {"boxes": [(0, 0, float("nan"), 4)]}),
                (self._frame(), {"boxes": [(1e9, 1e9, 2e9, 2e9)]}),
                (np.zeros((0, 3), np.uint8), {}),
                (self._frame(), {"do": "raise"}),
                ([self._frame()] * 65, {}),
            ]
        )
        try:
            await self._do(self._zoo.infer(model, frame, timeout=timeout, nonce=nonce, **more))
        except ZooError:
            return
        raise Wrong("a hostile frame was answered")

    async def _poison(self, timeout: float) -> None:
        (model, nonce), frame = self._any(), self._frame()
        if self._dice.random() < 0.3:
            await self._do(self._zoo.infer(model, frame, timeout=timeout, nonce=nonce, do="die"))
            raise Wrong("a request that kills its worker was answered")

    async def _noise(self, timeout: float) -> None:
        (model, nonce), frame = self._any(), self._frame()
        answer = await self._do(self._zoo.infer(model, frame, timeout=timeout, nonce=nonce, do="print"))
        self._right(answer, model, nonce, frame)

    async def _preload(self, timeout: float) -> None:
        await self._do(self._zoo.get_model(self._dice.choice(self._models), timeout=timeout))

    async def _unload(self, timeout: float) -> None:
        await self._do(self._zoo.unload(self._dice.choice(self._models), timeout=timeout))

    async def _cleanup(self, _: float) -> None:
        await self._do(self._zoo.cleanup_idle_models(idle_seconds=0.5))

    async def _ask(self, _: float) -> None:
        await self._do(self._zoo.get_status())
        await self._do(self._zoo.explain(self._dice.choice(self._models)))


async def _asynchronous(endpoint: str, seed: int, tally: Tally, models: list[str], over: threading.Event) -> None:
    async with AsyncClient(endpoint, timeout=8.0, arena_mb=8) as zoo:
        await Customer(zoo, seed, tally, models, over).run()


def main(endpoint: str, seed: int, path: str, models: list[str]) -> None:
    tally, over = Tally(path), threading.Event()
    with Client(endpoint, timeout=8.0, arena_mb=8) as zoo:
        threads = [
            threading.Thread(target=lambda n=n: asyncio.run(Customer(zoo, seed + n, tally, models, over).run()))
            for n in range(2)
        ]
        threads.append(
            threading.Thread(target=lambda: asyncio.run(_asynchronous(endpoint, seed + 2, tally, models, over)))
        )
        for thread in threads:
            thread.start()
        sys.stdin.read()
        over.set()
        for thread in threads:
            thread.join()
    tally.note("end")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4:])
