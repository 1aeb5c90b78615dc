"""Every decoder meets damaged messages: it gives a value or its one typed error, and keeps its limits."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.fuzz import samples
from tests.fuzz.mutate import CASES, SEED, flipped, message
from workers import inputs
from zoo.errors import InvalidInput, ProtocolMismatch
from zoo.wire import arrays, payload, protocol
from zoo.wire.channel import Channel

DECODERS: list[tuple[Callable[[bytes], Any], list[protocol.Message]]] = [
    (protocol.unpack_from_client, [samples.HELLO, *samples.FROM_CLIENT]),
    (protocol.unpack_from_broker, samples.FROM_BROKER),
    (protocol.unpack_dispatch, samples.TO_WORKER),
    (protocol.unpack_from_worker, samples.FROM_WORKER),
    (protocol.unpack_lifeline, samples.LIFELINE),
]


@pytest.mark.parametrize(("decode", "valid"), DECODERS, ids=[decode.__name__ for decode, _ in DECODERS])
def test_a_damaged_header_is_a_protocol_mismatch(decode: Callable[[bytes], Any], valid: list[protocol.Message]) -> None:
    dice = random.Random(SEED)
    read = 0
    for _ in range(CASES):
        with contextlib.suppress(ProtocolMismatch):
            decode(message(dice, valid))
            read += 1
    assert 0 < read < CASES


def test_a_damaged_request_is_invalid_input() -> None:
    dice = random.Random(SEED)
    arena = np.zeros(4096, np.uint8)

    class Shared:
        memory, size = arena, arena.nbytes

    def find(number: int) -> Any:
        if number != 1:
            raise InvalidInput("frame: no such arena")
        return Shared

    taken = 0
    for _ in range(CASES):
        raw = message(dice, samples.REQUESTS)[1:]  # type: ignore[arg-type]
        try:
            given = inputs.read(payload.unpack_request(raw), [bytes(48), dice.randbytes(48)], find)
        except InvalidInput:
            continue
        assert all(item.array.nbytes <= 3 * 4096 for item in given.items)  # of grey there are three channels then
        assert all(item.whole.ndim == 3 for item in given.items if not isinstance(item.sources[0], np.ndarray))
        taken += 1
    assert 0 < taken < CASES


def test_damaged_labels_are_a_protocol_mismatch() -> None:
    dice = random.Random(SEED)
    whole = protocol.pack_labels(["glass_shatter", "Straße", *map(str, range(300))])
    read = 0
    for _ in range(CASES):
        with contextlib.suppress(ProtocolMismatch):
            assert all(isinstance(label, str) for label in protocol.unpack_labels(flipped(dice, whole)))
            read += 1
    assert 0 < read < CASES


def test_a_damaged_result_is_a_protocol_mismatch() -> None:
    dice = random.Random(SEED)
    memory = bytes(4096)
    decode = payload.result_decoder(lambda offset, shape, dtype: arrays.view(memory, 4096, offset, shape, dtype))
    whole = [payload.pack_result(body, lambda _: None)[0] for body in samples.RESULTS]
    whole += [payload.pack_result(body, lambda _: 64)[0] for body in samples.RESULTS]
    for _ in range(CASES):
        with contextlib.suppress(ProtocolMismatch):
            decode(flipped(dice, dice.choice(whole)))


def test_a_damaged_stream_ends_a_channel_and_is_not_hoarded() -> None:
    dice = random.Random(SEED)
    for _ in range(max(1, CASES // 30)):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            channel = Channel(ours)
            sender = Channel(theirs)
            theirs.settimeout(1.0)
            with contextlib.suppress(ConnectionError, OSError):
                for _ in range(30):
                    if dice.random() < 0.7:
                        sender.send([message(dice, samples.FROM_WORKER), dice.randbytes(dice.randrange(3000))])
                    else:
                        theirs.send(dice.randbytes(dice.randrange(1, 4000)))
                    while channel.take() is not None:
                        pass
