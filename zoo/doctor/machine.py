"""The kernel, shared memory, sockets: each tried out as a broker, a client or a worker uses it."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import sys
from collections.abc import Iterator

from zoo.doctor.finding import OK, WARNING, WRONG, Finding
from zoo.system import kernel, smaps, unix
from zoo.wire.arena import ArenaRefused, OwnedArena, check_sealed

ARENA_BYTES = 64 << 20  # what a client takes that says nothing
PYTHON = (3, 11)
BLOCKED = "run Linux 5.3 or newer; in a container, allow this system call in its seccomp profile"


def examine() -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < PYTHON:
        yield Finding("python", WRONG, f"Python {version}", "install Python 3.11 or newer")
    else:
        yield Finding("python", OK, f"Python {version}, {sys.executable}")
    if sys.platform != "linux":
        yield Finding("kernel", WRONG, f"this is {sys.platform}", "run the broker on Linux")
        return
    yield from _kernel()
    yield _sealing()
    yield _sockets()
    yield _shm()


def _kernel() -> Iterator[Finding]:
    about, bad = "kernel", False
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (OSError, AttributeError) as e:
        bad = True
        yield Finding(about, WRONG, f"pidfd_open: {e}: the broker cannot watch its workers", BLOCKED)
    if smaps.unique_mb(os.getpid()) is None:
        bad = True
        message = "/proc/self/smaps cannot be read: the host memory of workers cannot be measured"
        yield Finding(about, WARNING, message, 'mount /proc in full, or set footprint = "declared" in [broker]')
    if not kernel.become_subreaper():
        bad = True
        yield Finding(about, WARNING, "no subreaper can be made: how a worker ended may stay unknown", BLOCKED)
    if not bad:
        yield Finding(about, OK, f"Linux {os.uname().release}: pidfd, subreaper and /proc work")


def _sealing() -> Finding:
    about, size = "shared memory", ARENA_BYTES >> 20
    try:
        arena = OwnedArena(ARENA_BYTES)
    except OSError as e:
        if e.errno in (errno.ENOMEM, errno.ENOSPC, errno.EFBIG):
            message, remedy = f"an arena of {size} MB cannot be made: {e.strerror}", "leave the zoo more host memory"
            return Finding(about, WRONG, message, f"{remedy} (container limit, `ulimit -v`, `ulimit -f`)")
        return Finding(about, WRONG, f"no sealed memory can be made: memfd_create or its seals: {e.strerror}", BLOCKED)
    try:
        check_sealed(arena.fd, ARENA_BYTES)
        try:
            os.pwrite(arena.fd, b"x", 0)
        except PermissionError:
            return Finding(about, OK, f"a memfd of {size} MB is made, sealed and kept from being written by others")
    except ArenaRefused as e:
        return Finding(about, WRONG, str(e), BLOCKED)
    finally:
        arena.close()
    return Finding(
        about, WRONG, "F_SEAL_FUTURE_WRITE has no effect here: others could write a client's frames", BLOCKED
    )


def _sockets() -> Finding:
    about = "Unix sockets"
    try:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            peer = unix.credentials(ours)
            socket.send_fds(ours, [b"x"], [ours.fileno()])
            _, fds, _, _ = socket.recv_fds(theirs, 1, 1)
            for fd in fds:
                os.close(fd)
    except OSError as e:
        return Finding(about, WRONG, f"they do not work: {e}", "in a sandbox, allow AF_UNIX sockets and SCM_RIGHTS")
    if not fds or peer.pid != os.getpid():
        message = "they pass no descriptors, or do not tell the process at the other end"
        return Finding(about, WRONG, message, "run the zoo outside this sandbox")
    return Finding(about, OK, "they pass descriptors, and tell the process at the other end")


def _shm() -> Finding:
    """Nothing of the zoo lies there; KServe's system shared memory does."""
    try:
        found = shutil.disk_usage("/dev/shm")
    except OSError as e:
        return Finding("/dev/shm", WARNING, f"{e.strerror}: model libraries and KServe clients may want it", "mount it")
    size, free = found.total >> 20, found.free >> 20
    message = f"{free:,} of {size:,} MB free; the zoo uses none of it, arenas are memfds"
    if free < 64:
        return Finding("/dev/shm", WARNING, message, "KServe clients and data loaders may want more: --shm-size")
    return Finding("/dev/shm", OK, message)
