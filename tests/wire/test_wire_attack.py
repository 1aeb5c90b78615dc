"""What comes over a socket harms its sender at most.

One broker is attacked by everything in this file. After each attack the good client still gets its answers from
the very same process, and the broker holds no descriptor, session, lease or request of the attacker's.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import functools
import math
import os
import random
import resource
import secrets
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import zmq

from broker import descriptors
from broker.front import handoff, listening
from broker.guard import Guard
from broker.loop import Loop
from tests import support
from tests.client.inside import link
from tests.support import Running, toy, wait_until
from zoo import Client
from zoo.system import unix
from zoo.wire import arena, lifeline, payload, protocol
from zoo.wire.payload import FrameRef, InferBody

FRAME = np.full((8, 8, 3), 7, np.uint8)
ARENA_LIMIT_MB = 16


class Raw:
    """A client made of nothing but sockets, with a session of its own."""

    def __init__(self, endpoint: str, *, key: bytes | None = None, identity: bytes | None = None) -> None:
        self.key = secrets.token_bytes(protocol.SESSION_BYTES) if key is None else key
        self.sock = zmq.Context.instance().socket(zmq.DEALER)
        self.sock.setsockopt(zmq.ROUTING_ID, identity or self.key + bytes(4))
        self.sock.setsockopt(zmq.LINGER, 0)
        self.sock.setsockopt(zmq.RCVTIMEO, 10_000)
        self.sock.setsockopt(zmq.SNDTIMEO, 10_000)
        self.sock.connect(endpoint)
        self.line: socket.socket | None = None
        self.arenas: list[arena.OwnedArena] = []
        self.rid = 0
        self.greeted = False

    def say(self, message: protocol.Message | bytes, *rest: bytes) -> None:
        self.sock.send_multipart([message if isinstance(message, bytes) else protocol.pack(message), *rest])

    def hear(self) -> Any:
        return protocol.unpack_from_broker(self.sock.recv_multipart()[0])

    def hello(self) -> protocol.Welcome:
        self.say(protocol.Hello(self.key, os.getpid(), "raw"))
        self.greeted = True
        welcome = self.hear()
        assert isinstance(welcome, protocol.Welcome)
        return welcome

    def attach(self) -> socket.socket:
        welcome = self.hello()
        assert welcome.handoff is not None
        self.line = lifeline.connect(welcome.handoff, 10.0)
        lifeline.send(self.line, protocol.LifelineAttach("client", self.key))
        assert self.reply() == protocol.LifelineAccepted(0)
        return self.line

    def reply(self) -> Any:
        assert self.line is not None
        packet = lifeline.receive(self.line)
        assert packet is not None, "the broker hung up"
        if packet[1] is not None:
            os.close(packet[1])
        return packet[0]

    def offer(self) -> Any:
        """The answer to the offer of a small arena."""
        own = arena.OwnedArena(arena.PAGE)
        assert self.line is not None
        lifeline.send(self.line, protocol.LifelineArena(), own.fd)
        own.close()
        return self.reply()

    def share(self, pages: int = 16) -> arena.OwnedArena:
        own = arena.OwnedArena(pages * arena.PAGE)
        assert self.line is not None
        lifeline.send(self.line, protocol.LifelineArena(), own.fd)
        own.id = self.reply().id
        self.arenas.append(own)
        return own

    def infer(self, body: InferBody | bytes, *rest: bytes, arenas: tuple[int, ...] = (), model: str = "toy") -> Any:
        self.rid += 1
        raw = body if isinstance(body, bytes) else payload.pack_request(body)
        self.say(protocol.Infer(self.rid, model, 10_000, 2, arenas), raw, *rest)
        answer = self.hear()
        assert answer.rid == self.rid
        return answer

    def refused(self, *args: Any, **kw: Any) -> str:
        """The message of the InvalidInput that `infer` must get, without the name of the model that a worker adds."""
        answer = self.infer(*args, **kw)
        assert isinstance(answer, protocol.Error), answer
        assert answer.code == "invalid_input", answer
        return answer.message.removeprefix("toy: ")

    def die(self) -> None:
        """As the kernel would do it: everything closed, nothing said."""
        self.sock.close(0)
        if self.line is not None:
            self.line.close()
        for own in self.arenas:
            own.close()

    def close(self) -> None:
        if self.line is None and self.greeted:
            self.say(protocol.Bye())  # without a lifeline it would be noticed after SESSION_TTL_S
            self.sock.setsockopt(zmq.LINGER, 1000)
            self.sock.close()
        self.die()


class Target:
    """The broker under attack and the good client beside the attackers."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self.endpoint = running.endpoint
        self.path = running.endpoint.removeprefix("ipc://")
        self.good = Client(running.endpoint, timeout=20.0, arena_mb=8)
        self.worker = self.answer()
        self.good.infer("toy", FRAME, do="large")  # the worker's result arena is there
        self.attackers: list[Raw] = []
        self.fds, self.rss = self.open_fds(), self.rss_mb()

    def open_fds(self) -> int:
        return len(os.listdir(f"/proc/{self.running.pid}/fd"))

    def rss_mb(self) -> float:
        pages = int(Path(f"/proc/{self.running.pid}/statm").read_text().split()[1])
        return pages * arena.PAGE / (1 << 20)

    def answer(self) -> int:
        """The process id of the worker that answers the good client."""
        answer = self.good.infer("toy", FRAME)
        assert answer["first"] == [7, 7, 7]
        return int(answer["pid"])

    def raw(self, **how: Any) -> Raw:
        attacker = Raw(self.endpoint, **how)
        self.attackers.append(attacker)
        return attacker

    def attached(self) -> Raw:
        attacker = self.raw()
        attacker.attach()
        return attacker

    def line(self) -> socket.socket:
        return lifeline.connect(f"{self.path}.handoff", 10.0)

    def clean(self) -> bool:
        status = self.good.get_status()
        counts = (status["sessions"], status["leases"], status["requests"], status["running"])
        return counts == (1, 0, 0, 0) and self.open_fds() <= self.fds

    def check(self) -> None:
        for attacker in self.attackers:
            attacker.close()
        self.attackers.clear()
        assert self.answer() == self.worker, "the worker did not survive"
        wait_until(self.clean, 12.0, f"the broker is as it was: {self.good.get_status()}, {self.open_fds()} fds")
        assert self.rss_mb() < self.rss + 40


@pytest.fixture(scope="module")
def brokered() -> Iterator[Target]:
    folder = Path(tempfile.mkdtemp(prefix="zoo-t-", dir="/tmp"))
    running = Running(folder, [toy()], arena_limit_mb=ARENA_LIMIT_MB).start()
    try:
        made = Target(running)
        yield made
        made.good.close()
        running.close()
    finally:
        running.close()
        support.remove(folder)


@pytest.fixture
def target(brokered: Target) -> Iterator[Target]:
    yield brokered
    brokered.check()


def hung_up(line: socket.socket) -> bool:
    """Reads to the end; the line must end."""
    with line, contextlib.suppress(ConnectionError):
        while (packet := lifeline.receive(line)) is not None:
            assert isinstance(packet[0], protocol.LifelineRefused)
    return True


def memfd(size: int, *, seals: int = arena.SEALS) -> int:
    fd = os.memfd_create("attack", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    if size:
        os.posix_fallocate(fd, 0, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


NOISE = random.Random(1)
GARBAGE: list[list[bytes]] = [
    [b""],
    [b"", b""],
    [b"\x00"],
    [b"\x01"],
    [b"\xff" * 1000],
    [bytes([protocol.VERSION]) + b"\x93" * 60_000],
    [bytes([protocol.VERSION]) + b"\xdd\xff\xff\xff\xff"],
    [bytes([protocol.VERSION]) + b"\x95\x02\x01\xa1m\x01\x02\xdd\x7f\xff\xff\xff"],
    [bytes([protocol.VERSION]) + bytes(protocol.MAX_HEADER_BYTES)],
    [b"x"] * 1000,
    [protocol.pack(protocol.Ping())] * (protocol.MAX_PARTS + 1),
    [protocol.pack(protocol.LifelineAttach("client", b"k"))],
    *([NOISE.randbytes(NOISE.randrange(400)) for _ in range(NOISE.randrange(1, 5))] for _ in range(60)),
]

# ---------------------------------------------------------------- the front socket


def test_garbage_is_answered_with_protocol_mismatch(target: Target) -> None:
    attacker = target.raw()
    for parts in GARBAGE:
        attacker.say(parts[0], *parts[1:])
        answer = attacker.hear()
        assert isinstance(answer, protocol.Error)
        assert (answer.rid, answer.code) == (0, "protocol_mismatch")
    attacker.attach()  # and it may still behave
    assert attacker.infer(InferBody((FrameRef(-1, 0, (1,), "|u1"),)), b"x").rid == 1


@pytest.mark.parametrize("version", [0, protocol.VERSION + 1, 255])
def test_another_protocol_version_is_told_so(target: Target, version: int) -> None:
    attacker = target.raw()
    attacker.say(bytes([version]) + protocol.pack(protocol.Hello(attacker.key, 1, "x"))[1:])
    answer = attacker.hear()
    assert answer.code == "protocol_mismatch"
    assert f"version {version}" in answer.message


def test_an_unknown_session_is_told_to_say_hello_again(target: Target) -> None:
    attacker = target.raw()
    asks = [
        protocol.Infer(1, "toy", 1000), protocol.Load(2, "toy", 1000, True), protocol.Release(3, 1),
        protocol.Unload(4, "toy", 1000), protocol.Pin(5, "toy", True), protocol.CleanupIdle(6, 0.0),
        protocol.Query(7, "status"), protocol.Cancel(8),
    ]  # fmt: skip
    for rid, ask in enumerate(asks, 1):
        attacker.say(ask)
        answer = attacker.hear()
        assert (answer.rid, answer.code, answer.retryable) == (rid, "broker_unreachable", True)
    attacker.say(protocol.Ping())
    attacker.say(protocol.Bye())


@pytest.mark.parametrize("key", [b"", b"short", b"x" * 9, b"x" * 200, b"another!"])
def test_a_session_key_must_begin_the_routing_id(target: Target, key: bytes) -> None:
    attacker = target.raw(identity=b"8-bytes-" + secrets.token_bytes(4))
    attacker.say(protocol.Hello(key, 1, "x"))
    assert attacker.hear().code == "protocol_mismatch"


def test_a_request_id_in_use_is_refused_and_the_first_is_answered(target: Target) -> None:
    attacker = target.attached()
    body = payload.pack_request(InferBody((FrameRef(-1, 0, (1,), "|u1"),), None, {"do": "sleep", "seconds": 0.2}))
    for _ in range(2):
        attacker.say(protocol.Infer(1, "toy", 5000), body, b"x")
    answers = [attacker.hear(), attacker.hear()]
    assert answers[0].code == "invalid_input"
    assert "rid" in answers[0].message
    assert isinstance(answers[1], protocol.Result)


@pytest.mark.parametrize("rid", [0, -1, 1 << 63, (1 << 64) - 1])
def test_request_ids_have_limits(target: Target, rid: int) -> None:
    attacker = target.attached()
    attacker.say(bytes([protocol.VERSION]) + msgspec.msgpack.encode([8, rid, "status"]))
    assert attacker.hear().code == "protocol_mismatch"


def test_arguments_out_of_range_are_invalid(target: Target) -> None:
    attacker = target.attached()
    nan, inf = float("nan"), float("inf")
    asks = [
        protocol.Infer(1, "toy", 1000, 4), protocol.Infer(1, "toy", 1000, -1), protocol.Infer(1, "toy", 1000, 1 << 40),
        protocol.Infer(1, "toy", 1000, 2, (1,) * 17), protocol.Infer(1, "toy", 1000, 2, (1,) * 60_000),
        protocol.Load(1, "toy", 1000, True, nan), protocol.Load(1, "toy", 1000, True, -1.0),
        protocol.Load(1, "toy", 1000, False, inf), protocol.CleanupIdle(1, nan), protocol.CleanupIdle(1, -1.0),
        protocol.Query(1, "secrets"),
    ]  # fmt: skip
    for ask in asks:
        attacker.say(ask)
        assert attacker.hear().code == "invalid_input", ask
    for name in ("", "no-such-model", "x" * 60_000, "\x00", "ä" * 20_000):
        for ask in (protocol.Infer(1, name, 1000), protocol.Load(1, name, 1000), protocol.Unload(1, name, 1000),
                    protocol.Pin(1, name, True), protocol.Query(1, "explain", name)):  # fmt: skip
            attacker.say(ask)
            answer = attacker.hear()
            assert answer.code == "model_not_found"
            assert len(answer.message) <= protocol.MAX_TEXT
    for ask in (protocol.Release(1, 12345), protocol.Release(1, -1)):
        attacker.say(ask)
        assert attacker.hear() == protocol.Value(1)
    for timeout in (-5, 0, (1 << 64) - 1):
        attacker.say(protocol.Load(1, "toy", timeout))
        assert attacker.hear() == protocol.Value(1)
    attacker.say(protocol.Release(0, 999))  # no answer is wanted
    attacker.say(protocol.Cancel(77))
    attacker.say(protocol.Query(2, "ps"))
    assert attacker.hear().rid == 2


def test_the_lease_and_request_of_another_client_are_left_alone(target: Target) -> None:
    attacker = target.attached()
    with target.good.load("toy"):
        for lease in range(1, 200):
            attacker.say(protocol.Release(0, lease))
        attacker.say(protocol.Query(1, "status"))
        assert attacker.hear().value["leases"] == 1
        for rid in range(1, 200):
            attacker.say(protocol.Cancel(rid))
        assert target.answer() == target.worker


def test_an_oversized_message_costs_the_sender_its_connection(target: Target) -> None:
    attacker = target.raw()
    attacker.say(protocol.pack(protocol.Ping()), bytes(protocol.MAX_MESSAGE_BYTES + 1))
    zmtp = socket.socket(socket.AF_UNIX)
    zmtp.settimeout(10.0)
    zmtp.connect(target.path)
    ready = b"\x05READY\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"
    zmtp.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16 + 1 + 31) + b"\x04" + bytes([len(ready)]) + ready)
    zmtp.sendall(b"\x02" + struct.pack(">Q", 1 << 62) + b"x" * 1000)
    with zmtp, contextlib.suppress(ConnectionError):
        while zmtp.recv(4096):
            pass  # it ends: the broker hangs up


def test_what_is_not_even_zeromq_is_hung_up_on(target: Target) -> None:
    for data in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\xff" + bytes(8) + b"\x7f\x03", NOISE.randbytes(10_000), b"\x00"):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(target.path)
            with contextlib.suppress(OSError):
                sock.sendall(data)


# ---------------------------------------------------------------- lifelines


def test_a_line_that_says_nonsense_is_hung_up_on(target: Target) -> None:
    lines: list[protocol.Message | bytes] = [
        b"\0", b"garbage", b"", NOISE.randbytes(4000), protocol.LifelineArena(), protocol.LifelineGone(1),
        protocol.LifelineReleased(1, 0), protocol.LifelineFingerprint(1, b"x"),
        protocol.LifelineAttach("client", bytes(5000)),
    ]  # fmt: skip
    for said in lines:
        data = said if isinstance(said, bytes) else protocol.pack(said)
        line = target.line()
        line.send(data)
        assert hung_up(line)
        attached = target.attached()
        assert attached.line is not None
        if data[:1] != bytes([protocol.VERSION]):
            attached.line.send(data)
            assert hung_up(attached.line)
            attached.say(protocol.Query(1, "status"))
            assert attached.hear().code == "broker_unreachable"  # its session went with its line


def test_a_client_cannot_open_a_workers_channel(target: Target) -> None:
    attached = target.attached()
    assert attached.line is not None
    ours, theirs = socket.socketpair()
    with ours, theirs:
        lifeline.send(attached.line, protocol.LifelineChannel(), theirs.fileno())
        theirs.close()
        assert hung_up(attached.line)
        assert ours.recv(1) == b"", "no process keeps the other end"


def test_names_that_cannot_be_attached(target: Target) -> None:
    greeted = target.attached()
    good = link(target.good)
    for role, key in (
        ("client", b""), ("client", bytes(8)), ("client", greeted.key), ("client", good.key), ("client", b"x" * 1000),
        ("worker", b""), ("worker", b"w1-" + bytes(12)), ("worker", greeted.key), ("worker", good.key),
        ("broker", greeted.key), ("", b""),
    ):  # fmt: skip
        line = target.line()
        lifeline.send(line, protocol.LifelineAttach(role, key))
        assert hung_up(line), (role, key)
    greeted.share()  # the first one is untouched


def test_attaching_twice_ends_the_line_and_its_session(target: Target) -> None:
    attacker = target.attached()
    assert attacker.line is not None
    lifeline.send(attacker.line, protocol.LifelineAttach("client", attacker.key))
    assert hung_up(attacker.line)


def test_silent_connections_disturb_no_request(target: Target) -> None:
    lines = [target.line() for _ in range(100)]
    assert target.answer() == target.worker
    for line in lines:
        line.close()


def test_out_of_descriptors_newcomers_are_hung_up_on_and_the_rest_go_on(target: Target) -> None:
    pid = target.running.pid
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    lines: list[socket.socket] = []
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (target.open_fds() + 10, limits[1]))
    try:
        lines = [target.line() for _ in range(40)]

        def turned_away() -> int:
            for line in lines:
                with contextlib.suppress(BlockingIOError):
                    line.setblocking(False)
                    if line.recv(1, socket.MSG_PEEK) == b"":
                        return 1
            return 0

        wait_until(turned_away, 8.0, "a connection was refused")
        assert target.answer() == target.worker
        spent = _cpu(pid)
        for _ in range(20):
            target.answer()
        assert _cpu(pid) - spent < 0.5, "the loop spins"
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        for line in lines:
            line.close()


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_what_is_no_arena_is_refused_and_closed(target: Target) -> None:
    attacker = target.attached()
    assert attacker.line is not None
    page = arena.PAGE
    read, write = os.pipe()
    sealed = memfd(page)
    offers = {
        "carried no descriptor": None,
        "lacks the seals SHRINK": memfd(page, seals=arena.SEALS & ~arena.SEAL["SHRINK"]),
        "lacks the seals GROW": memfd(page, seals=arena.SEALS & ~arena.SEAL["GROW"]),
        "lacks the seals FUTURE_WRITE": memfd(page, seals=arena.SEALS & ~arena.SEAL["FUTURE_WRITE"]),
        "lacks the seals SEAL": memfd(page, seals=arena.SEALS & ~arena.SEAL["SEAL"]),
        "the limit is": memfd((ARENA_LIMIT_MB << 20) + page),
        "is empty": memfd(0),
        "not a memfd: it": os.open(target.running.config_path, os.O_RDONLY),
        "not a memfd: ": read,
        "not a memfd": write,
        "cannot be read from": os.open(f"/proc/self/fd/{sealed}", os.O_WRONLY),
    }
    for why, fd in offers.items():
        lifeline.send(attacker.line, protocol.LifelineArena(), fd)
        answer = attacker.reply()
        assert isinstance(answer, protocol.LifelineRefused)
        assert answer.code == "access_denied"
        assert why in answer.message
        if fd is not None:
            os.close(fd)
    os.close(sealed)
    assert target.open_fds() <= target.fds + 4  # a socket and a line: none of the above
    attacker.share()  # and one that is one is taken


def test_a_client_shares_at_most_sixteen_arenas(target: Target) -> None:
    attacker = target.attached()
    for _ in range(protocol.MAX_ARENAS):
        attacker.share(1)
    extra = memfd(arena.PAGE)
    assert attacker.line is not None
    lifeline.send(attacker.line, protocol.LifelineArena(), extra)
    os.close(extra)
    assert isinstance(attacker.reply(), protocol.LifelineRefused)


def test_descriptors_in_excess_are_closed(target: Target) -> None:
    attacker = target.attached()
    assert attacker.line is not None
    before = target.open_fds()
    fd = memfd(arena.PAGE)
    for count in (2, 5, 100, 253):
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd] * count))]
        attacker.line.sendmsg([protocol.pack(protocol.LifelineArena())], rights)
        assert isinstance(attacker.reply(), protocol.LifelineAccepted)
        attacker.line.sendmsg([protocol.pack(protocol.LifelineSettled(1))], rights)
    unknown = target.line()
    unknown.sendmsg([protocol.pack(protocol.LifelineArena())], rights)
    assert hung_up(unknown)
    os.close(fd)
    wait_until(lambda: target.open_fds() <= before + 4, what="one descriptor for each of the four arenas")


def test_results_are_released_only_by_whom_they_were_given_to(target: Target) -> None:
    attacker = target.attached()
    assert attacker.line is not None
    held = target.good.infer("toy", FRAME, do="large")["map"]
    for number in range(200):
        for offset in (0, arena.PAGE, -1, 1 << 62):
            lifeline.send(attacker.line, protocol.LifelineReleased(number, offset))
    attacker.share()
    others = [target.good.infer("toy", FRAME + 1, do="large")["map"] for _ in range(3)]
    assert (held == 7).all()
    assert all((other == 8).all() for other in others)


def test_a_flood_on_a_lifeline_does_not_starve_the_others(target: Target) -> None:
    attacker = target.attached()
    assert attacker.line is not None
    attacker.line.setblocking(False)
    packet = protocol.pack(protocol.LifelineReleased(1, 1))
    end = time.monotonic() + 0.5
    answers = sent = 0
    while time.monotonic() < end:
        with contextlib.suppress(BlockingIOError):
            for _ in range(200):
                attacker.line.send(packet)
                sent += 1
        assert target.answer() == target.worker
        answers += 1
    assert answers > 5
    assert sent > 200


# ---------------------------------------------------------------- frames and bodies


def test_frames_that_lie_about_where_they_are(target: Target) -> None:
    attacker = target.attached()
    own = attacker.share(16)
    ids = (own.id,)
    size, big = own.size, 1 << 62

    def ask(*frames: FrameRef, **more: Any) -> str:
        return attacker.refused(InferBody(frames, **more), arenas=ids)

    for offset, shape, dtype in (
        (size, (1,), "|u1"), (0, (size + 1,), "|u1"), (size - 1, (2,), "|u1"), (-1, (1,), "|u1"), (-size, (1,), "|u1"),
        (big, (1,), "|u1"), ((1 << 64) - 1, (1,), "|u1"), (1, (1,), "<f4"), (0, (big, big), "|u1"),
        (0, (1 << 32, 1 << 32), "|u1"), (0, (-1,), "|u1"), (0, (-1, -1), "|u1"), (0, (1,) * 9, "|u1"),
        (0, (1,) * 5000, "|u1"), (0, (0, 1 << 63), "|u1"), (0, (0,), "|u1"), (0, (4, 0, 3), "|u1"),
        (0, (1,), "|O"), (0, (1,), "|V8"), (0, (1,), "<U4"), (0, (1,), "f4,f4"), (0, (1,), "nonsense"), (0, (1,), ""),
        (0, (1,), "<M8[s]"), (0, (1,), "x" * 10_000), (0, (1,), "|u0"), (0, (1, 16385, 1), "|u1"),
    ):  # fmt: skip
        assert ask(FrameRef(own.id, offset, shape, dtype)).split(":")[0] in ("frame", "shape", "dtype")
    for color in ("", "cmyk", "RGB", "x" * 10_000):
        assert ask(FrameRef(own.id, 0, (4, 4, 3), "|u1", color)).startswith("color")
    for color, shape, dtype, *more in (
        ("nv12", (6, 4), "|u1", (5, 4)), ("nv12", (6, 4), "|u1", (4, 5)), ("nv12", (6, 4), "|u1", (0, 0)),
        ("nv12", (6, 4), "|u1", (-big, -big)), ("nv12", (6, 4), "|u1", (big, big)), ("nv12", (24,), "|u1", None),
        ("nv12", (6, 4), "|u1", None, 4), ("nv12", (6, 4), "|u1", (4, 4), big), ("nv12", (6, 4), "|u1", (4, 4), -4),
        ("i420", (24,), "|u1", (4, 4), 1), ("i420", (24,), "|u1", (4, 4), 0), ("i420", (24,), "|u1", (big, big), big),
        ("nv12", (size // 4, 6), "|u1", (5, 3), 5), ("gray", (4, 4), "|u1", (4, big)), ("gray", (4, 4, 3), "|u1"),
        ("gray", (4, 4), "<u2"), ("gray16", (4, 4), "<u2"), ("gray16", (4, 4), "|u1", None, None, (0.0, 9.0)),
        ("gray16", (4, 4), "<u2", None, None, (9.0, 9.0)), ("gray16", (4, 4), "<u2", None, None, (0.0, math.inf)),
        ("gray16", (4, 4), "<u2", None, None, (math.nan, 9.0)), ("rgb16", (4, 4, 3), "<u2", (4, 4), None, (0.0, 9.0)),
        ("rgb", (4, 4, 3), "|u1", (4, 4)), ("rgb", (4, 4, 3), "|u1", None, 12), ("rgb", (4, 4, 3), "<u2", None, None,
        (0.0, 9.0)), ("encoded", (24,), "|u1", (4, 4)), ("gray", (1, 16385), "|u1"), ("gray", (4, 0), "|u1"),
    ):  # fmt: skip
        refused = ask(FrameRef(own.id, 0, shape, dtype, color, *more)).split(":")[0]
        assert refused in ("frame", "color", "size", "stride", "scale"), (color, shape, more, refused)
    for number in (-1, 1, 64, big):
        assert "buffers" in ask(FrameRef(-1, number, (1,), "|u1"))
    assert "none" in ask()
    fine = FrameRef(own.id, 0, (4, 4, 3), "|u1")
    assert isinstance(attacker.infer(InferBody((fine,)), arenas=ids), protocol.Result)
    own.memory[:4] = b"\xff\xd8\xff\xe0"  # begins like a JPEG
    for data in (FrameRef(own.id, 0, (100,), "|u1", "encoded"), FrameRef(own.id, 8, (100,), "|u1", "encoded")):
        assert "not an image" in ask(data)


def test_a_client_cannot_use_the_arena_of_another(target: Target) -> None:
    victim, attacker = target.attached(), target.attached()
    secret = victim.share(4)
    secret.memory[:48] = b"s" * 48
    seen = FrameRef(secret.id, 0, (4, 4, 3), "|u1")
    assert isinstance(victim.infer(InferBody((seen,)), arenas=(secret.id,)), protocol.Result)  # the worker has it
    own = attacker.share(4)
    began = time.monotonic()
    assert "shared" in attacker.refused(InferBody((seen,)), arenas=(secret.id,))
    assert "shared" in attacker.refused(InferBody((seen,)), arenas=(own.id, secret.id))
    assert "names" in attacker.refused(InferBody((seen,)))
    assert "names" in attacker.refused(InferBody((seen,)), arenas=(own.id,))
    for number in (0, 10**6, 1 << 63):
        assert "names" in attacker.refused(InferBody((FrameRef(number, 0, (1,), "|u1"),)))
    assert time.monotonic() - began < 4.0, "the worker was made to wait for what never comes"


def test_garbled_bodies_are_invalid_inputs(target: Target) -> None:
    attacker = target.attached()
    frame = [-1, 0, [1], "|u1", "rgb"]
    encode = msgspec.msgpack.encode
    for body in (b"", b"\xc1", b"\x93", NOISE.randbytes(3000), b"\x91" * 200_000, encode({"frames": []}), encode([1]),
                 encode([[frame], "boxes"]), encode([[frame], [[1, 2, 3]]]), encode([[frame], None, [1]]),
                 encode([[frame], None, {1: 2}]), encode([[frame]]) + b"\x00",
                 encode([[frame], None, {}])[:-1] + b"\x81\xa1x" + b"\x91" * 100_000):  # fmt: skip
        assert attacker.refused(body, b"x").startswith("request body")
    attacker.rid += 1
    attacker.say(protocol.Infer(attacker.rid, "toy", 5000))  # no body at all
    assert attacker.hear().code == "invalid_input"


def test_boxes_that_are_none(target: Target) -> None:
    attacker = target.attached()
    own = attacker.share(4)
    frame = FrameRef(own.id, 0, (10, 10, 3), "|u1")
    nan, inf = float("nan"), float("inf")

    def ask(*boxes: tuple[float, float, float, float], frames: tuple[FrameRef, ...] = (frame,)) -> str:
        return attacker.refused(InferBody(frames, boxes), arenas=(own.id,))

    for box in ((nan, 0, 1, 1), (0, 0, inf, 1), (-inf, 0, 1, 1), (5, 5, 5, 6), (6, 5, 5, 6), (20, 20, 30, 30),
                (-9, -9, -1, -1), (1e308, 0, 1.7e308, 1)):  # fmt: skip
        assert ask(box).startswith("boxes[0]")
        assert ask((0, 0, 1, 1), box).startswith("boxes[1]")
    assert "at most" in ask(*[(0.0, 0.0, 1.0, 1.0)] * 5000)
    assert "single frame" in ask((0, 0, 1, 1), frames=(frame, frame))
    assert "cropped" in ask((0, 0, 1, 1), frames=(FrameRef(own.id, 0, (10,), "|u1"),))
    huge = InferBody((frame,), ((-1e308, -1e308, 1e308, 1e308),))
    assert isinstance(attacker.infer(huge, arenas=(own.id,)), protocol.Result)


def test_huge_options_are_carried_or_refused(target: Target) -> None:
    attacker = target.attached()
    body = InferBody((FrameRef(-1, 0, (1,), "|u1"),), None, {"x": "y" * (20 << 20), "z": list(range(100_000))})
    assert isinstance(attacker.infer(body, b"x"), protocol.Result)
    many = InferBody(tuple(FrameRef(-1, i, (1,), "|u1") for i in range(protocol.MAX_FRAMES)))
    assert isinstance(attacker.infer(many, *[b"x"] * protocol.MAX_FRAMES), protocol.Result)


# ---------------------------------------------------------------- clients that behave badly


def test_a_client_that_never_reads_its_answers_holds_up_no_other(target: Target) -> None:
    large = InferBody((FrameRef(-1, 0, (1,), "|u1"),), None, {"do": "large", "height": 200})  # 1.5 MB
    attacker, other = target.attached(), target.attached()
    attacker.sock.setsockopt(zmq.RCVHWM, 1)
    assert other.infer(large, b"x").arena
    for rid in range(1, 15):
        attacker.say(protocol.Infer(rid, "toy", 5000), payload.pack_request(large), b"x")
    for rid in range(100, 6100):
        attacker.say(protocol.Query(rid, "ps"))
        if rid % 500 == 0:
            assert target.answer() == target.worker
    assert other.infer(large, b"x").arena == 0, "the worker's arena is not full: this test shows nothing"
    attacker.die()
    target.attackers.remove(attacker)
    wait_until(lambda: other.infer(large, b"x").arena, what="what lay unread in the worker's arena is free again")


def test_sixty_four_clients_that_connect_and_die_leave_nothing(target: Target) -> None:
    body = InferBody((FrameRef(-1, 0, (1,), "|u1"),), None, {"do": "sleep", "seconds": 0.002})
    for i in range(64):
        dying = Raw(target.endpoint)
        dying.attach()
        own = dying.share(2)
        dying.say(protocol.Load(1, "toy", 5000, True))
        dying.say(protocol.Infer(2, "toy", 5000), payload.pack_request(body), b"x")
        shared = InferBody((FrameRef(own.id, 0, (4, 4, 3), "|u1"),))
        dying.say(protocol.Infer(3, "toy", 5000, 2, (own.id,)), payload.pack_request(shared))
        if i % 2:
            dying.hear()
        dying.die()


def test_a_second_broker_on_the_same_endpoint_is_told_who_has_it(target: Target) -> None:
    command = [sys.executable, "-m", "zoo.broker", "--config", str(target.running.config_path)]
    env = {**os.environ, "PYTHONPATH": str(support.ROOT)}
    second = subprocess.run(command, capture_output=True, text=True, timeout=30, env=env, check=False)
    assert second.returncode == 2
    assert f"a broker (process {target.running.pid}) serves {target.endpoint} already" in second.stderr
    assert "Traceback" not in second.stderr
    assert target.answer() == target.worker
    with Client(target.endpoint, arena_mb=1) as newcomer:
        assert newcomer.infer("toy", FRAME)["pid"] == target.worker


# ---------------------------------------------------------------- the handoff alone


@pytest.fixture
def handed(zoo_dir: Path) -> Iterator[tuple[handoff.Handoff, handoff.LifelineEnd, socket.socket]]:
    loop = Loop(Guard(lambda: None))
    shares = descriptors.divide(1000, 0, 1, 0, metrics=False, local=True)
    listen = functools.partial(listening.listen, kind=socket.SOCK_SEQPACKET, backlog=16)
    made = handoff.Handoff(f"{zoo_dir}/h", 1 << 20, loop, listen, shares, unix.is_own)
    peer = lifeline.connect(made.path, 5.0)
    loop.turn(time.monotonic() + 5.0)
    (line,) = made.lines.values()
    yield made, line, peer
    made.shut()
    peer.close()
    loop.close()


def test_a_connection_that_does_not_say_what_it_is_is_closed(handed: Any) -> None:
    made, line, _ = handed
    made.end_nameless(line.since + handoff.ATTACH_S - 1)
    assert not line.closed
    made.end_nameless(line.since + handoff.ATTACH_S + 1)
    assert line.closed


def test_a_connection_that_says_what_it_is_may_stay(handed: Any) -> None:
    made, line, _ = handed
    assert made.attach(line, "client", b"key")
    made.end_nameless(line.since + handoff.ATTACH_S + 1)
    assert not line.closed


def test_what_a_slow_reader_cannot_take_yet_waits_for_it_in_order(handed: Any) -> None:
    made, line, peer = handed
    for rid in range(2000):
        assert line.send(protocol.LifelineSettled(rid))
    assert line.unsent
    heard: list[int] = []
    peer.setblocking(False)
    while len(heard) < 2000:
        with contextlib.suppress(BlockingIOError):
            while True:
                heard.append(lifeline.receive(peer)[0].rid)  # type: ignore[index, union-attr]
        made.tend()
    assert heard == list(range(2000))
    assert not line.unsent


def test_a_connection_that_never_reads_is_cut_off(handed: Any) -> None:
    made, line, _ = handed
    while line.send(protocol.LifelineSettled(1)):
        assert len(line.unsent) <= handoff.MAX_UNSENT
    with pytest.raises(ConnectionError):
        list(made.receive(line))


STEPPED = """
import os, select, sys, time
from pathlib import Path
import zmq
from broker.service import Service
from zoo.wire import protocol
from zoo.config.reading import load_config

config = load_config(Path(sys.argv[1]))
service = Service(config)
fleet = service._fleet
key = bytes(protocol.SESSION_BYTES)
sock = zmq.Context.instance().socket(zmq.DEALER)
sock.setsockopt(zmq.ROUTING_ID, key)
sock.connect(config.endpoint)
sock.send(protocol.pack(protocol.Hello(key, 1, "")))
service._intake.hear()
sock.recv()
sock.send(protocol.pack(protocol.Load(1, "toy", 20_000)))
service._intake.hear()
while (worker := fleet.workers.get(1)) is None or worker.child is None or worker.channel is None:
    service._loop.turn(time.monotonic() + 1.0)
select.select([worker.channel.fd], [], [])
service._loop.forget(worker.channel.fd)  # what it said is not read in its turn
while 1 in fleet.workers:
    service._loop.turn(time.monotonic() + 1.0)
print(protocol.unpack_from_broker(sock.recv_multipart()[0]).message, flush=True)
service.close()
os._exit(0)
"""


def test_the_last_words_of_a_worker_are_heard_though_it_ended_before_they_were_read(zoo_dir: Path) -> None:
    file = zoo_dir / "config.toml"
    models = [toy(options={"load": "raise"})]
    file.write_text(support.config_text(models, endpoint=f"ipc://{zoo_dir}/b", device="cpu"))
    env = {**os.environ, "PYTHONPATH": str(support.ROOT)}
    command = [sys.executable, "-c", STEPPED, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env, check=False)
    assert "made of cheese" in done.stdout, done.stderr


BAD_FIELDS = [
    ([2, 5, 7, 1000], "model"),
    ([2, 5, "toy", "soon"], "timeout_ms"),
    ([2, 5, "toy", 1000, 2, ["a"]], "arenas"),
    ([3, 5, "toy", 1000, "yes"], "lease"),
    ([4, 5, None], "lease"),
    ([5, 5, {}, 1000], "model"),
    ([6, 5, "toy", 1], "on"),
    ([7, 5, []], "idle_seconds"),
    ([8, 5], ""),
    ([8, 5, "explain", 1742], "model"),
    ([13, 5, "toy", "yes"], "forget"),
]


@pytest.mark.parametrize(("header", "field"), BAD_FIELDS)
def test_a_bad_field_is_answered_under_the_number_of_its_request(target: Target, header: list[Any], field: str) -> None:
    attacker = target.attached()
    attacker.say(bytes([protocol.VERSION]) + msgspec.msgpack.encode(header))
    answer = attacker.hear()
    assert (answer.rid, answer.code, answer.retryable) == (5, "invalid_input", False)
    assert answer.message.startswith(f"{field}: " if field else "unreadable")


@pytest.mark.parametrize(
    "header", [[9, 5, "yes"], [99, 5, "x"], [8, True, 1], [8, "5", "status"], [1, 5], {8: 5}, [[], 5]]
)
def test_what_is_no_request_with_a_number_is_answered_under_none(target: Target, header: Any) -> None:
    attacker = target.attached()
    attacker.say(bytes([protocol.VERSION]) + msgspec.msgpack.encode(header))
    answer = attacker.hear()
    assert (answer.rid, answer.code) == (0, "protocol_mismatch")
