"""A result is its owner's for as long as an array looks at it, whatever becomes of the client that got it."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
from collections.abc import Callable

import numpy as np
import pytest

from broker.front.handoff import MAX_UNSENT, LifelineEnd
from tests.client.inside import driver, link
from tests.support import Running, wait_until
from zoo import AsyncClient, BrokerUnreachable, Client
from zoo.client import session
from zoo.wire import lifeline, protocol

Start = Callable[..., Running]


def large(client: Client, value: int) -> np.ndarray:
    found: np.ndarray = client.infer("toy", np.full((1, 1, 3), value, np.uint8), do="large")["map"]
    return found


def busy(other: Client) -> None:
    """Uses every slot of the worker's arena that is free, several times over."""
    kept = [large(other, 2) for _ in range(12)]
    for _ in range(24):
        kept.append(large(other, 2))
        del kept[0]


def placed(client: Client) -> int:
    """How many results fit into the worker's arena at once."""
    kept = [large(client, 3)]
    while is_borrowed(kept[-1]):
        kept.append(large(client, 3))
    return len(kept) - 1


def is_borrowed(array: np.ndarray) -> bool:
    """It lies in the worker's arena. What does not fit there comes in the message."""
    found: object = array
    while isinstance(found, np.ndarray):
        found = found.base
    return type(found).__name__ == "_Borrowed"


def dropped(client: Client) -> None:
    """What the garbage collector does with it."""
    driver(client).__del__()


def nonsense(client: Client) -> None:
    line = link(client)._line
    assert line is not None
    line.send(b"\xff\xff")


def second_attach(client: Client) -> None:
    line = link(client)._line
    assert line is not None
    lifeline.send(line, protocol.LifelineAttach("client", link(client).key))


def bye_on_the_front(client: Client) -> None:
    session.say(link(client), protocol.Bye())


@pytest.mark.parametrize(
    "end",
    [
        Client.close,
        nonsense,
        *(pytest.param(end, marks=pytest.mark.slow) for end in (dropped, second_attach, bye_on_the_front)),
    ],
)
def test_a_result_outlives_its_session(broker: Start, end: Callable[[Client], None]) -> None:
    running = broker()
    other = running.client()
    room = placed(other)
    assert room >= 2
    wait_until(lambda: placed(other) == room)
    client = Client(running.endpoint, arena_mb=8)
    kept, dropped = large(client, 1), large(client, 9)
    client.load("toy")
    end(client)
    status = wait_until(lambda: (s := other.get_status())["sessions"] == 1 and s)
    assert (status["leases"], status["requests"]) == (0, 0)
    del dropped
    busy(other)
    assert (kept == 1).all()
    view = kept[100:200]
    del kept
    busy(other)
    assert (view == 1).all()
    wait_until(lambda: placed(other) == room - 1, what="all but one slot are free")
    del view
    gc.collect()
    wait_until(lambda: placed(other) == room, what="the slot goes back with the last array")
    client.close()


def test_a_result_outlives_an_async_client(broker: Start) -> None:
    async def work() -> np.ndarray:
        async with AsyncClient(running.endpoint, arena_mb=8) as zoo:
            found: np.ndarray = (await zoo.infer("toy", np.ones((1, 1, 3), np.uint8), do="large"))["map"]
            return found

    running = broker()
    other = running.client()
    kept = asyncio.run(work())
    wait_until(lambda: other.get_status()["sessions"] == 1)
    busy(other)
    assert (kept == 1).all()


def test_results_of_a_process_that_is_gone_go_back(broker: Start) -> None:
    running = broker()
    other = running.client()
    room = placed(other)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            client = Client(running.endpoint, arena_mb=8)
            kept = large(client, 1)
            client.close()
            os.write(write, bytes([int(kept[0, 0])]))
            signal.pause()
        finally:
            os._exit(1)
    assert os.read(read, 1) == b"\1"
    os.close(read), os.close(write)
    wait_until(lambda: other.get_status()["sessions"] == 1)
    wait_until(lambda: placed(other) == room - 1, what="all but one slot are free")
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    wait_until(lambda: placed(other) == room)


def test_a_client_without_results_hangs_up_at_once(broker: Start) -> None:
    client = broker().client()
    array = large(client, 1)
    line = link(client)
    del array
    client.close()
    assert line.fileno() == -1


def test_a_result_that_is_read_after_its_client_was_closed_is_refused(broker: Start) -> None:
    client = broker().client()
    large(client, 1)
    line = link(client)
    number = next(iter(line._mappings))
    client.close()
    with pytest.raises(BrokerUnreachable, match="closed"):
        line.lend(number)


def test_a_client_that_does_not_read_is_cut_off_and_can_still_give_back() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.setblocking(False)
        line = LifelineEnd(ours)
        line.role = "client"
        while line.send(protocol.LifelineSettled(1)):
            assert len(line.unsent) <= MAX_UNSENT
        assert line.cut
        line.depart()
        lifeline.send(theirs, protocol.LifelineReleased(1, 0))
        assert lifeline.receive(ours) == (protocol.LifelineReleased(1, 0), None)
        while lifeline.receive(theirs) is not None:
            pass  # and it sees the end
