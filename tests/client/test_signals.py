"""Signal handlers of the caller's: they may call the client in the middle of a call, and raise anywhere in it."""

from __future__ import annotations

import dis
import gc
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import zoo
from tests.client.inside import driver, link, slots
from tests.support import Running, toy, wait_until
from zoo import BrokerUnreachable, Client

Start = Callable[..., Running]
FRAME = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
OURS = str(Path(zoo.__file__).parent)


class Alarm(Exception):
    pass


@contextmanager
def handler(act: Callable[[], Any]) -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, lambda *_: act())
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def give_up() -> None:
    raise Alarm


def state(client: Client) -> dict[str, Any]:
    """What is in use. Questions have answers that come late be read."""
    client.get_status()
    gc.collect()
    line = link(client)
    line.look()
    status = client.get_status()
    return {
        "slots": slots(client),
        "leases": status["leases"],
        "requests": status["requests"],
        "not idle": not line.exchange.idle,
    }


def is_clean(client: Client) -> bool:
    return not any(state(client).values())


def one(client: Client) -> None:
    assert client.infer("toy", FRAME)["shape"] == [4, 4, 3]


def with_a_frame(client: Client) -> None:
    with client.frame((4, 4, 3)) as frame:
        frame.array[:] = 1
        for _ in range(2):
            assert client.infer("toy", frame)["mean"] == 1.0


def many(client: Client) -> None:
    assert all(answer["shape"] == [4, 4, 3] for answer in client.infer_many(FRAME, ["toy", "toy2"]).values())


def with_a_lease(client: Client) -> None:
    with client.load("toy") as lease:
        lease(FRAME)


def large(client: Client) -> None:
    answer = client.infer("toy", FRAME[:1, :1] * 0 + 7, do="large", height=64)["map"]
    assert (answer == 7).all()


WORK = {"infer": one, "frame": with_a_frame, "infer_many": many, "lease": with_a_lease, "large result": large}


@pytest.mark.parametrize("work", WORK.values(), ids=WORK)
def test_an_exception_out_of_a_handler_leaks_nothing(broker: Start, work: Callable[[Client], None]) -> None:
    client = broker([toy(), toy("toy2")]).client()
    for _ in range(3):
        many(client)
        work(client)
    started = time.perf_counter()
    for _ in range(5):
        work(client)
    span = (time.perf_counter() - started) / 5 * 1.3
    rng = random.Random(8)
    raised = 0
    with handler(give_up):
        for _ in range(200):
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, span))
                work(client)
                signal.setitimer(signal.ITIMER_REAL, 0.0)
            except Alarm:
                raised += 1
    assert raised > 5
    one(client)
    wait_until(lambda: is_clean(client), what=f"no slot and no lease is left: {state(client)}")
    for _ in range(3):
        work(client)
    assert is_clean(client)


pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of destructors


def in_destructor(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


LOOKS = {"RESUME", "CALL", "CALL_FUNCTION_EX", "JUMP_BACKWARD"}  # after these, the interpreter runs handlers


class Interrupt:
    """Raises at the n-th point of the client's own code at which a handler may run."""

    def __init__(self, number: int) -> None:
        self.left = number
        self.where = ""

    def __enter__(self) -> Interrupt:
        sys.settrace(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _call(self, frame: FrameType, event: str, arg: Any) -> Any:
        if not frame.f_code.co_filename.startswith(OURS) or in_destructor(frame):
            return None  # what is raised there, Python itself drops
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        before = ""

        def step(frame: FrameType, event: str, arg: Any) -> Any:
            nonlocal before
            if event == "opcode":
                looks = before in LOOKS
                before = dis.opname[frame.f_code.co_code[frame.f_lasti]]
                if looks:
                    self.left -= 1
                    if self.left == 0:
                        sys.settrace(None)
                        self.where = f"{frame.f_code.co_qualname}, line {frame.f_lineno}"
                        raise Alarm
            return step

        return step


@pytest.mark.parametrize("work", [one, with_a_frame, with_a_lease], ids=["infer", "frame", "lease"])
def test_an_exception_at_any_instruction_leaks_nothing(broker: Start, work: Callable[[Client], None]) -> None:
    _interrupt_at_each(broker, work, int(os.environ.get("ZOO_EVERY", "61")))


@pytest.mark.slow
@pytest.mark.parametrize("work", [one, with_a_frame, with_a_lease], ids=["infer", "frame", "lease"])
def test_an_exception_at_many_instructions_leaks_nothing(broker: Start, work: Callable[[Client], None]) -> None:
    _interrupt_at_each(broker, work, 7)


def _interrupt_at_each(broker: Start, work: Callable[[Client], None], every: int) -> None:
    """Of so many instructions one, but in CI each time others; `ZOO_EVERY=1` tries each."""
    client = broker([toy(), toy("toy2")]).client(timeout=5.0)
    many(client)
    work(client)
    with Interrupt(1 << 60) as counting:
        work(client)
    total = (1 << 60) - counting.left
    assert total > 30
    first = 1 if "CI" in os.environ else random.randint(1, every)
    for number in range(first, total, every):
        try:
            with Interrupt(number) as at:
                work(client)
        except Alarm:
            pass
        except BrokerUnreachable as e:  # it was interrupted while it opened what the next call opens again
            raise AssertionError(f"at {at.where}: {e}") from None
        started = time.monotonic()
        try:
            one(client)
        except BrokerUnreachable:
            one(client)  # its link was given up: a message may have been lost on it
        assert time.monotonic() - started < 3.0, f"after {at.where}"
        wait_until(lambda: is_clean(client), what=f"something is left after {at.where}: {state(client)}")


def test_a_call_in_a_handler_takes_no_answer_of_the_call_that_it_interrupts(broker: Start) -> None:
    client = broker([toy(), toy("toy2")]).client(timeout=5.0)
    many(client)
    values: list[int] = []
    wrong: list[object] = []

    def nested() -> None:
        value = 100 + len(values)
        try:
            values.append(client.infer("toy2", np.full((2, 2, 3), value, np.uint8), do="peek")["value"] - value)
        except BaseException as e:
            wrong.append(e)

    with handler(nested):
        for i in range(100):
            signal.setitimer(signal.ITIMER_REAL, 1e-5 + i * 2e-5)
            assert client.infer("toy", np.full((2, 2, 3), i, np.uint8), do="peek")["value"] == i
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        assert client.infer("toy", FRAME, do="sleep", seconds=0.3)["shape"] == [4, 4, 3]
    assert not wrong, wrong
    assert set(values) == {0}
    assert is_clean(client)
    assert len(driver(client)._dealers) <= 3


def test_a_handler_may_close_the_client_that_it_interrupts(broker: Start) -> None:
    client = broker().client()
    one(client)
    with handler(client.close):
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(BrokerUnreachable, match="closed"):
            client.infer("toy", FRAME, do="sleep", seconds=2.0)


def test_a_timeout_error_of_a_handler_comes_out_as_it_is(broker: Start) -> None:
    client = broker().client()
    one(client)

    def late() -> None:
        raise TimeoutError("the caller's own")

    def asked(delay: float) -> None:
        signal.setitimer(signal.ITIMER_REAL, delay)  # in here: it may be over at once
        client.infer("toy", FRAME, do="sleep", seconds=0.3)

    with handler(late):
        for delay in (0.001, 0.05, 0.15):
            with pytest.raises(TimeoutError, match="own"):
                asked(delay)
    wait_until(lambda: is_clean(client))
