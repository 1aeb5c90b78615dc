"""What a new worker is told, and what broker and nursery say to each other about starting one.

This is all that broker and workers share about processes; neither imports the other. Broker and nursery speak over an
inherited pair of SEQPACKET sockets: one packet is one message, with the descriptors that belong to it.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from zoo.system import unix
from zoo.weights.source import Published

NURSERY = "import sys; sys.path[:] = sys.argv[2:]; from workers.nursery import main; main(int(sys.argv[1]))"
PACKET_BYTES = 64 << 10
MARK = "ZOO_NURSERY_OF"  # in the environment of nursery and workers: which broker they belong to


class Seat(msgspec.Struct, frozen=True):
    """What a process is forked with, whatever it will load. `key`: its name on the lifeline. Unguessable."""

    key: bytes
    handoff: str
    arena_limit_bytes: int


class Launch(msgspec.Struct, frozen=True):
    """The first message on a worker's channel: what to load.

    `path`: of the weights, as the file system has it: not every name is UTF-8, which text in a message has to be.
    `pull`: where to fetch the weights from if they are missing; None when that is not wanted.
    `visible`: the CUDA device that the process may see, by UUID, "" for none; `device` counts from there.
    `inline_bytes`: the most that an answer may have in the message itself; all of one batch may have twice as much.
    `copied`: a copy of the model comes on the lifeline. `copy_bytes`: the largest copy that is wanted; 0 for none.
    """

    model: str
    adapter: str
    path: bytes | None
    category: str
    options: dict[str, Any]
    trust_pickle: bool
    device: str
    threads: int
    pull: Published | None = None
    copied: bool = False
    copy_bytes: int = 0
    visible: str = ""
    inline_bytes: int = 32 << 20


# ---------------------------------------------------------------- broker to nursery


class Prepare(msgspec.Struct, frozen=True, tag=True):
    """First: what to import. With the read end of a pipe whose only writer is the broker, and a folder to work in."""

    modules: tuple[str, ...]


class Fork(msgspec.Struct, frozen=True, tag=True):
    """With the read end of a pipe whose only writer is the broker, and the write end of one for what is printed."""

    seat: Seat


# ---------------------------------------------------------------- nursery to broker


class Importing(msgspec.Struct, frozen=True, tag=True):
    """Said before each module is imported, so that the broker knows which import has ended or blocked the nursery."""

    module: str


class Unfit(msgspec.Struct, frozen=True, tag=True):
    """The module must not be imported in the nursery, which ends now."""

    module: str
    why: str


class Prepared(msgspec.Struct, frozen=True, tag=True):
    """All imports are done; from now on forks are answered at once."""


class Forked(msgspec.Struct, frozen=True, tag=True):
    """With a pidfd, unless there was no descriptor left for one."""

    key: bytes
    pid: int


class Refused(msgspec.Struct, frozen=True, tag=True):
    """No process could be forked for this seat."""

    key: bytes
    why: str


class Ended(msgspec.Struct, frozen=True, tag=True):
    """A worker has ended and is reaped. `status`: negative for the signal that ended it."""

    pid: int
    status: int


T = TypeVar("T")
ToNursery = Prepare | Fork
FromNursery = Importing | Unfit | Prepared | Forked | Refused | Ended
ORDERS: msgspec.msgpack.Decoder[ToNursery] = msgspec.msgpack.Decoder(ToNursery)
REPORTS: msgspec.msgpack.Decoder[FromNursery] = msgspec.msgpack.Decoder(FromNursery)


def send(sock: socket.socket, message: ToNursery | FromNursery, fds: Sequence[int] = ()) -> None:
    """Sends one message: see `zoo.system.unix.send`."""
    unix.send(sock, msgspec.msgpack.encode(message), fds)


def take(sock: socket.socket, read: msgspec.msgpack.Decoder[T]) -> tuple[T, list[int]] | None:
    """The next of the `ORDERS` or `REPORTS`, with its descriptors, fewer if there was no room for all.

    Returns:
        None when the other side is gone.

    Raises:
        BlockingIOError: nothing there. OSError: it is gone. msgspec.DecodeError: it is not a message.
    """
    packet = sock.recvmsg(PACKET_BYTES, unix.ANCILLARY, unix.CLOEXEC)
    fds = unix.descriptors(packet)
    try:
        return (read.decode(packet[0]), fds) if packet[0] else None
    except msgspec.DecodeError:
        unix.close(fds)
        raise
