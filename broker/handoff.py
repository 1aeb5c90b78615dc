"""The Unix socket on which processes hand over arenas, and whose connections are their lifelines.

Keeps who is connected, which arenas exist, whose they are and who was given them. Never looks inside one.
All sockets are non-blocking; somebody who does not read his own is cut off rather than waited for.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
from collections.abc import Iterator

from zoo import arena, lifeline, protocol
from zoo.errors import ProtocolMismatch

BACKLOG = 256
MAX_ARENAS_PER_OWNER = 16


class Line:
    """One connection. `key` is empty until the other side has said who it is."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.pid, self.uid = lifeline.peer(sock)
        self.role = ""
        self.key = b""
        self.arenas: set[int] = set()  # its own
        self.given: set[int] = set()  # other people's, that it was handed

    def send(self, message: protocol.Message, fd: int | None = None) -> bool:
        """False when the other side is gone or does not read."""
        try:
            lifeline.send(self.sock, message, fd)
        except OSError:
            return False
        return True


class Arena:
    """A registered arena; `owner` is the key of the line it came by."""

    __slots__ = ("fd", "id", "owner", "readers", "size")

    def __init__(self, id: int, fd: int, size: int, owner: bytes) -> None:
        self.id = id
        self.fd = fd
        self.size = size
        self.owner = owner
        self.readers: set[bytes] = set()


class Handoff:
    """The listening socket, the lines and the arenas."""

    def __init__(self, path: str, arena_limit_bytes: int) -> None:
        self.path = path
        self.limit = arena_limit_bytes
        self.lines: dict[int, Line] = {}  # by file descriptor
        self.by_key: dict[bytes, Line] = {}
        self.arenas: dict[int, Arena] = {}
        self._ids = itertools.count(1)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        self._listener.bind(path)
        os.chmod(path, 0o600)
        self._listener.listen(BACKLOG)
        self._listener.setblocking(False)

    def fileno(self) -> int:
        return self._listener.fileno()

    def accept(self) -> Iterator[Line]:
        """New connections, of this user's processes only."""
        while True:
            try:
                sock, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                return  # out of descriptors: the peer sees no answer and gives up by itself
            sock.setblocking(False)
            line = Line(sock)
            if line.uid not in (os.getuid(), 0):
                line.send(protocol.LifelineRefused("access_denied", "this broker serves another user"))
                sock.close()
                continue
            self.lines[line.fd] = line
            yield line

    def receive(self, line: Line) -> Iterator[tuple[protocol.LifelineMessage, int | None]]:
        """Packets that are there. Raises ConnectionError when the line has ended or sends nonsense."""
        while True:
            try:
                packet = lifeline.receive(line.sock, socket.MSG_DONTWAIT)
            except (BlockingIOError, InterruptedError):
                return
            except ProtocolMismatch as e:
                line.send(protocol.LifelineRefused(e.code, str(e)))
                raise ConnectionError(str(e)) from None
            except OSError as e:
                raise ConnectionError(str(e)) from None
            if packet is None:
                raise ConnectionError("end of file")
            yield packet

    def attach(self, line: Line, message: protocol.LifelineAttach) -> bool:
        """The first packet: False when it is not acceptable (the line should then be closed)."""
        if line.key or not 1 <= len(message.key) <= 64 or message.key in self.by_key:
            line.send(protocol.LifelineRefused("access_denied", "that name is taken or not allowed"))
            return False
        line.role, line.key = message.role, message.key
        self.by_key[line.key] = line
        return True

    def offer(self, line: Line, fd: int | None) -> int | None:
        """Somebody offers an arena. Its new id, or None (and the other side is told why)."""
        try:
            if fd is None:
                raise arena.ArenaRefused("the packet carried no descriptor")
            if len(line.arenas) >= MAX_ARENAS_PER_OWNER:
                raise arena.ArenaRefused(f"one process may share {MAX_ARENAS_PER_OWNER} arenas")
            size = arena.check_sealed(fd, self.limit)
        except arena.ArenaRefused as e:
            if fd is not None:
                os.close(fd)
            line.send(protocol.LifelineRefused("access_denied", f"arena refused: {e}"))
            return None
        made = Arena(next(self._ids), fd, size, line.key)
        self.arenas[made.id] = made
        line.arenas.add(made.id)
        return made.id

    def share(self, number: int, line: Line) -> bool:
        """Sees to it that `line` has the arena; False when it cannot be sent."""
        if number in line.given:
            return True
        found = self.arenas.get(number)
        if found is None or not line.send(protocol.LifelineArena(number), found.fd):
            return False
        line.given.add(number)
        found.readers.add(line.key)
        return True

    def owned_by(self, number: int, key: bytes) -> bool:
        found = self.arenas.get(number)
        return found is not None and found.owner == key

    def close(self, line: Line) -> None:
        """Forgets a line and its arenas; whoever maps one is told that it will not be referred to again."""
        for number in line.arenas:
            gone = self.arenas.pop(number)
            os.close(gone.fd)
            for key in gone.readers:
                reader = self.by_key.get(key)
                if reader is not None and reader is not line:
                    reader.given.discard(number)
                    reader.send(protocol.LifelineGone(number))
        for number in line.given:
            if number in self.arenas:
                self.arenas[number].readers.discard(line.key)
        if self.by_key.get(line.key) is line:
            del self.by_key[line.key]
        self.lines.pop(line.fd, None)
        line.sock.close()

    def shut(self) -> None:
        for line in list(self.lines.values()):
            self.close(line)
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
