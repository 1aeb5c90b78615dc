"""The channel between broker and worker: what comes out is what went in, in whatever pieces it travelled."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import wait_until
from zoo.errors import ProtocolMismatch
from zoo.wire import protocol
from zoo.wire.channel import IOV_MOST, MAX_PARTS, RECEIVE_BYTES, Channel

MESSAGES = st.lists(st.lists(st.binary(max_size=300), min_size=1, max_size=6), min_size=1, max_size=6)


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    """The broker's end, which never waits, and the worker's, which does."""
    broker, worker = socket.socketpair()
    broker.setblocking(False)
    with broker, worker:
        yield Channel(broker), Channel(worker)


def taken(end: Channel) -> list[list[bytes]]:
    """Everything that is there."""
    found = []
    while (messages := end.take()) is not None:
        found += messages
    return found


@settings(max_examples=200, deadline=None)
@given(messages=MESSAGES, cuts=st.lists(st.integers(1, 50), min_size=1, max_size=40))
def test_messages_come_whole_however_the_stream_is_cut(messages: list[list[bytes]], cuts: list[int]) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sender = Channel(ours)
        for parts in messages:
            assert sender.send(parts)
        ours.shutdown(socket.SHUT_WR)
        raw = b""
        while data := theirs.recv(1 << 16):
            raw += data
    near, far = socket.socketpair()
    with near, far:
        far.setblocking(False)
        reader, found, at, turn = Channel(far), [], 0, 0
        while at < len(raw):
            size = cuts[turn % len(cuts)]
            near.sendall(raw[at : at + size])
            at, turn = at + size, turn + 1
            found += taken(reader)
        assert found == messages


def test_the_end_is_told(ends: tuple[Channel, Channel]) -> None:
    broker, worker = ends
    assert broker.take() is None
    worker.send([b"last words"])
    worker.close()
    assert broker.take() == [[b"last words"]]
    with pytest.raises(ConnectionError):
        broker.take()


def test_a_worker_is_told_of_the_end_too(ends: tuple[Channel, Channel]) -> None:
    broker, worker = ends
    broker.send([b"a", b"", b"b"])
    broker.close()
    assert worker.receive() == [b"a", b"", b"b"]
    assert worker.receive() is None


def test_it_is_quiet_while_nothing_has_come_nor_been_left_over(ends: tuple[Channel, Channel]) -> None:
    broker, worker = ends
    assert worker.is_quiet(0.0)
    broker.send([b"one"])
    broker.send([b"two"])
    assert not worker.is_quiet(10.0)
    assert worker.receive() == [b"one"]
    assert not worker.is_quiet(0.0), "the other one was read with it"
    assert worker.receive() == [b"two"]
    assert worker.is_quiet(0.0)


def test_a_slow_reader_is_not_waited_for_and_gets_everything_in_order(ends: tuple[Channel, Channel]) -> None:
    broker, worker = ends
    large = bytes(range(256)) * (20 * RECEIVE_BYTES // 256)
    assert not broker.send([b"first", large]), "it does not fit the socket's buffer"
    assert not broker.send([b"second"])
    found: list[list[bytes] | None] = []
    reader = threading.Thread(target=lambda: found.extend(worker.receive() for _ in range(2)))
    reader.start()
    while not broker.flush():
        pass
    reader.join(10)
    assert found == [[b"first", large], [b"second"]]


def test_more_parts_than_the_kernel_takes_at_once(ends: tuple[Channel, Channel]) -> None:
    broker, worker = ends
    parts = [bytes([i % 256]) * (i % 3) for i in range(IOV_MOST * 40)]
    assert broker.send(parts)
    assert worker.receive() == parts
    worker.send(parts)
    assert taken(broker) == [parts]


@pytest.mark.parametrize(
    "raw",
    [
        struct.pack("<I", 0),
        struct.pack("<I", MAX_PARTS + 1),
        struct.pack("<II", 1, protocol.MAX_MESSAGE_BYTES + 1),
        b"\xff" * 64,
    ],
)
def test_nonsense_is_refused_before_anything_is_made_of_it(ends: tuple[Channel, Channel], raw: bytes) -> None:
    broker, worker = ends
    worker.sock.sendall(raw)
    with pytest.raises(ConnectionError):
        broker.take()
    broker.sock.sendall(raw)
    with pytest.raises(ProtocolMismatch):
        worker.receive()


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=1, max_size=200))
def test_any_bytes_end_in_messages_or_a_clear_end(raw: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(raw)
        theirs.setblocking(False)
        try:
            assert all(isinstance(part, bytes) for parts in Channel(theirs).take() or () for part in parts)
        except ConnectionError:
            pass


def test_a_message_that_says_it_is_too_large_is_refused_before_it_is_taken_in() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        channel = Channel(ours, limit=64 << 20)
        count = 1 << 15
        theirs.sendall(struct.pack(f"<{1 + count}I", count, *[160 << 20] * count))
        refused = wait_until(lambda: _refusal(channel))
        assert "limit" in str(refused)


def test_a_large_message_waits_for_room() -> None:
    ours, theirs = socket.socketpair()
    room: list[int] = []
    with ours, theirs:
        ours.setblocking(False)
        channel = Channel(ours, room=lambda size: size in room)
        body = os.urandom(3 << 20)
        sender = threading.Thread(target=Channel(theirs).send, args=((b"head", body),))
        sender.start()
        wait_until(lambda: not channel.take() and channel.stalled)
        assert channel.take() is None
        assert channel.reserved == 0
        room.append(len(body) + 4)
        messages: list[list[bytes]] = []
        wait_until(lambda: messages.extend(channel.take() or ()) or messages)
        sender.join()
        assert [bytes(part) for part in messages[0]] == [b"head", body]
        assert channel.given_out() == len(body) + 4
        assert channel.reserved == 0


def _refusal(channel: Channel) -> ConnectionError | None:
    try:
        channel.take()
    except ConnectionError as e:
        return e
    return None
