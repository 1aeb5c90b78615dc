"""Arenas: slots never overlap, and what the seals promise, the kernel keeps."""

from __future__ import annotations

import array
import ctypes
import fcntl
import mmap
import os
import socket
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from zoo.wire import arena, lifeline, protocol

LIMIT = 1 << 30
PAGE = arena.PAGE


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def own() -> Iterator[arena.OwnedArena]:
    made = arena.OwnedArena(4 * PAGE)
    yield made
    made.close()


# ---------------------------------------------------------------- the allocator


class Slots(RuleBasedStateMachine):
    """The allocator against a plain set of intervals."""

    slots = Bundle("slots")

    def __init__(self) -> None:
        super().__init__()
        self.size = 64 * PAGE
        self.allocator = arena.SlotAllocator(self.size)
        self.taken: dict[int, int] = {}
        self.last_freed: tuple[int, int] | None = None  # (pages, offset), until anything else happens

    @rule(target=slots, nbytes=st.integers(0, 20 * PAGE))
    def take(self, nbytes: int) -> int | None:
        want = max(1, -(-nbytes // PAGE)) * PAGE
        offset = self.allocator.take(nbytes)
        freed, self.last_freed = self.last_freed, None
        if freed is not None and freed[0] == want:
            assert offset == freed[1], "the slot that was freed last is the warmest"
        if offset is None:
            assert not self._gap(want), "refused although there is room"
            return None
        assert offset % PAGE == 0
        assert 0 <= offset <= self.size - want
        for other, size in self.taken.items():
            assert offset + want <= other or other + size <= offset, "two slots overlap"
        self.taken[offset] = want
        return offset

    @rule(offset=consumes(slots))
    def give_back(self, offset: int | None) -> None:
        if offset is None:
            return
        assert self.allocator.give_back(offset)
        self.last_freed = (self.taken.pop(offset), offset)
        assert not self.allocator.give_back(offset), "given back twice"

    @rule(offset=st.integers(-PAGE, 70 * PAGE))
    def give_back_what_is_no_slot(self, offset: int) -> None:
        if offset not in self.taken:
            assert not self.allocator.give_back(offset)

    @invariant()
    def the_books_are_right(self) -> None:
        assert sorted(self.allocator.offsets()) == sorted(self.taken)

    def _gap(self, want: int) -> bool:
        end = 0
        for offset, size in [*sorted(self.taken.items()), (self.size, 0)]:
            if offset - end >= want:
                return True
            end = offset + size
        return False

    def teardown(self) -> None:
        for offset in list(self.taken):
            assert self.allocator.give_back(offset)
        assert self.allocator.take(self.size) == 0, "what was given back does not join into one piece"


Slots.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
test_slots = Slots.TestCase


def test_more_than_the_arena_is_refused_and_costs_nothing() -> None:
    slots = arena.SlotAllocator(4 * PAGE)
    assert slots.take(4 * PAGE + 1) is None
    assert slots.take(4 * PAGE) == 0
    assert slots.take(1) is None


# ---------------------------------------------------------------- what the kernel keeps


def received(own: arena.OwnedArena) -> int:
    """The descriptor as another process would have it."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with here, there:
        lifeline.send(here, protocol.LifelineArena(), own.fd)
        packet = lifeline.receive(there)
    assert packet is not None
    assert packet[1] is not None
    return packet[1]


def test_a_receiver_cannot_write_shrink_grow_or_unseal(own: arena.OwnedArena) -> None:
    fd = received(own)
    try:
        with pytest.raises(PermissionError):
            mmap.mmap(fd, own.size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"x", 0)
        for size in (0, PAGE, 8 * PAGE):
            with pytest.raises(PermissionError):
                os.ftruncate(fd, size)
        with pytest.raises(PermissionError):
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
        try:
            with pytest.raises(PermissionError):
                mmap.mmap(again, own.size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE)
            with pytest.raises(PermissionError):
                os.pwrite(again, b"x", 0)
        finally:
            os.close(again)
    finally:
        os.close(fd)


def test_a_read_only_mapping_cannot_be_made_writable(own: arena.OwnedArena) -> None:
    mapped = arena.MappedArena(received(own), LIMIT)
    address = np.frombuffer(mapped.memory, np.uint8).__array_interface__["data"][0]
    libc = ctypes.CDLL(None, use_errno=True)
    failed = libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(PAGE), mmap.PROT_READ | mmap.PROT_WRITE)
    assert failed == -1
    with pytest.raises(ValueError, match="read-only"):
        np.frombuffer(mapped.memory, np.uint8)[0] = 1


def test_what_the_owner_writes_the_reader_sees(own: arena.OwnedArena) -> None:
    mapped = arena.MappedArena(received(own), LIMIT)
    own.memory[5] = 77
    assert mapped.size == own.size
    assert mapped.memory[5] == 77


def test_the_memory_outlives_its_descriptors(own: arena.OwnedArena) -> None:
    mapped = arena.MappedArena(received(own), LIMIT)
    own.memory[0] = 9
    own.close()
    own.close()
    assert mapped.memory[0] == 9


# ---------------------------------------------------------------- what is refused


def memfd(size: int = PAGE, seals: int = arena.SEALS, *, reserve: bool = True) -> int:
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    if reserve and size:
        os.posix_fallocate(fd, 0, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def refused(fd: int, limit: int = LIMIT) -> str:
    try:
        with pytest.raises(arena.ArenaRefused) as caught:
            arena.check_sealed(fd, limit)
        return str(caught.value)
    finally:
        os.close(fd)


@pytest.mark.parametrize(("name", "seal"), arena.SEAL.items())
def test_each_seal_must_be_there(name: str, seal: int) -> None:
    assert refused(memfd(seals=arena.SEALS & ~seal)).endswith(f"lacks the seals {name}")


def test_an_arena_that_is_sealed_passes() -> None:
    fd = memfd(3 * PAGE)
    assert arena.check_sealed(fd, LIMIT) == 3 * PAGE
    assert arena.check_sealed(fd, 3 * PAGE) == 3 * PAGE
    os.close(fd)


def test_what_is_no_arena_is_refused(tmp_path: object) -> None:
    path = f"{tmp_path}/file"
    regular = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.write(regular, bytes(PAGE))
    assert "not a memfd" in refused(regular)
    read, write = os.pipe()
    assert "not a memfd" in refused(read)
    assert "not a memfd" in refused(write)
    with socket.socket(socket.AF_UNIX) as sock:
        assert "not a memfd" in refused(os.dup(sock.fileno()))
    assert "not a memfd" in refused(os.open("/dev/zero", os.O_RDWR))
    assert "empty" in refused(memfd(0))
    assert "the limit is" in refused(memfd(2 * PAGE), limit=PAGE)
    assert "not reserved" in refused(memfd(16 * PAGE, reserve=False))


def test_a_descriptor_that_cannot_be_read_is_refused() -> None:
    fd = memfd()
    unreadable = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY)
    os.close(fd)
    assert "cannot be read" in refused(unreadable)


def test_the_owner_cannot_take_pages_away_again(own: arena.OwnedArena) -> None:
    """A hole would be memory that a reader's look has to allocate: the seal forbids it to the owner too."""
    with pytest.raises(OSError, match="not permitted"):
        own.memory.madvise(mmap.MADV_REMOVE)


def test_no_descriptor_is_left_open() -> None:
    arena.OwnedArena(PAGE).close()
    before = open_fds()
    for _ in range(20):
        made = arena.OwnedArena(PAGE)
        arena.MappedArena(received(made), LIMIT)
        with pytest.raises(arena.ArenaRefused):
            arena.MappedArena(received(made), PAGE - 1)
        with pytest.raises(arena.ArenaRefused):
            arena.MappedArena(os.open("/dev/null", os.O_RDONLY), LIMIT)
        made.close()
        del made  # Python's mmap keeps a descriptor of its own
    assert open_fds() == before


def test_descriptors_in_excess_are_closed() -> None:
    made = arena.OwnedArena(PAGE)
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    before = open_fds()

    def say(data: bytes, fds: int) -> None:
        here.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [made.fd] * fds))])

    for count in (2, 4, 5, 64, 253):
        say(protocol.pack(protocol.LifelineArena()), count)
        packet = lifeline.receive(there)
        assert packet is not None
        assert packet[1] is not None
        os.close(packet[1])
        say(b"\x01garbage", count)
        with pytest.raises(lifeline.ProtocolMismatch):
            lifeline.receive(there)
        say(b"", count)
        assert lifeline.receive(there) is None
    assert open_fds() == before
    here.send(protocol.pack(protocol.LifelineFingerprint(1, bytes(lifeline.PACKET_BYTES))))
    with pytest.raises(lifeline.ProtocolMismatch):
        lifeline.receive(there)
    here.close()
    there.close()
    made.close()
