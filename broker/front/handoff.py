"""The Unix socket on which processes hand over arenas, and whose connections are their lifelines.

Keeps which processes are connected, which arenas exist, who shared them, and which peers were given them. Never looks
inside one. All sockets are non-blocking; a peer that does not read its own is cut off rather than waited for.

A result lies in a slot of its worker's arena. The worker says which slots a result uses, and the broker notes them with
the client's lifeline, so that they go back when the client's last array is gone, or its process. So whatever ends a
session (the client closes, talks nonsense, does not read its lifeline), its lifeline stays open, in this direction
only, until all results were given back or its end-of-file comes.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import msgspec

from broker.descriptors import Shares
from broker.loop import Loop
from zoo.errors import ProtocolMismatch, QueueFull
from zoo.system import unix
from zoo.wire import arena, lifeline, protocol

BURST = 64  # connections, or packets of one line, taken before others have their turn
ATTACH_CROWDED_S = 0.3  # the same while others wait for its place
ATTACH_S = 10.0  # a connection that has not said who it is by then is closed
MAX_UNSENT = 4096


ENDING = (protocol.LifelineAttach, protocol.LifelineChannel)  # the line, where they are out of place
CARRYING = (protocol.LifelineArena, protocol.LifelineChannel, protocol.LifelineCopy)  # a descriptor

Slot = tuple[int, int]  # (arena, offset)


class PeerGone(ConnectionError):
    """The other side has closed its end, or is gone."""


class LifelineEnd:
    """The broker's end of a connection. `key` is empty until the other side has said who it is.

    Attributes:
        takes: what to do with each kind of message; other kinds are not heard.
        arenas: numbers of its own arenas.
        given: numbers of other processes' arenas that it was handed.
        results: slots in workers' arenas that its process looks at.
        cut: a client does not read what it is sent, and its session is to end.
        departed: its session has ended, and not all of its results were given back.
        closed: nothing is heard or sent any more.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.pid, self.uid, _ = unix.credentials(sock)
        self.role = ""
        self.key = b""
        self.takes: Takes = {}
        self.arenas: set[int] = set()
        self.given: set[int] = set()
        self.results: set[Slot] = set()
        self.since = time.monotonic()
        self.unsent: deque[protocol.Message] = deque()
        self.cut = False
        self.departed = False
        self.closed = False

    def depart(self) -> None:
        """Nothing is sent any more, and the other side sees an end; what it gives back is still heard."""
        self.departed = True
        self.unsent.clear()
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)

    def send(self, message: protocol.Message, fd: int | None = None) -> bool:
        """False when the other side is gone, or when it does not read and cannot be given a descriptor now.

        Messages without a descriptor wait for it (see `flush`), up to a limit past which it is cut off.
        """
        if self.cut or self.departed:
            return False
        try:
            if fd is None and self.unsent:
                raise BlockingIOError
            lifeline.send(self.sock, message, fd)
        except BlockingIOError:
            if fd is not None:
                return False
            self.unsent.append(message)
            if len(self.unsent) > MAX_UNSENT:
                self.cut = self.role == "client"  # its results are not free yet
                with contextlib.suppress(OSError):
                    how = socket.SHUT_WR if self.cut else socket.SHUT_RDWR  # the loop then meets its end-of-file
                    self.sock.shutdown(how)
                return False
        except OSError:
            return False
        return True

    def flush(self) -> None:
        """Sends what had to wait."""
        try:
            while self.unsent:
                lifeline.send(self.sock, self.unsent[0])
                self.unsent.popleft()
        except OSError:
            pass  # still not read, or gone: its end-of-file says so


class Arena(msgspec.Struct, eq=False):
    """A registered arena; `owner` is the key of the line it came by."""

    id: int
    fd: int
    size: int
    owner: bytes
    readers: set[bytes] = set()


class Role(Protocol):
    """What the processes of one kind are to the broker: clients, or workers."""

    def attach(self, line: LifelineEnd, key: bytes) -> bool:
        """Takes the lifeline of the process of that key. False: it is refused."""

    def lost_line(self, line: LifelineEnd, gone: bool) -> None:
        """The lifeline has ended, or is of no use. `gone`: the process at the other end is."""


@dataclass(eq=False)
class Handoff:
    """The listening socket, the lines and the arenas.

    Attributes:
        limit: bytes of one arena.
        listen: makes the listener at a path.
        admits: whether the process at the other end of a connection may be a client.
        roles: by name; the service fills it.
        crowded: no more are accepted until some have said who they are, or have been closed.
    """

    path: str
    limit: int
    loop: Loop
    listen: Callable[[str], socket.socket]
    shares: Shares
    admits: Callable[[socket.socket], bool]

    def __post_init__(self) -> None:
        self.roles: dict[str, Role] = {}
        self.crowded = False
        self._nameless: dict[int, LifelineEnd] = {}
        self._spare_arenas = 0  # of clients, beyond the first of each, which has a place of its own
        self.lines: dict[int, LifelineEnd] = {}  # by file descriptor
        self.by_key: dict[bytes, LifelineEnd] = {}
        self.arenas: dict[int, Arena] = {}
        self._ids = itertools.count(1)
        self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._listener = self.listen(self.path)
        self.loop.watch(self._listener.fileno(), self._accept)

    # ------------------------------------------------------------ connections

    def listen_again(self) -> None:
        """Its file was removed: a new one. Lines that are connected stay so. Raises OSError."""
        made = self.listen(self.path)
        self.loop.forget(self._listener.fileno())
        self._listener.close()
        self._listener = made
        self._accept_again()

    def _accept(self) -> None:
        """Takes new connections, of the processes of this user, of root, and of those that `admits` lets in."""
        for _ in range(BURST):
            if len(self._nameless) >= self.shares.nameless:  # until there is room, the others wait in the backlog
                self.loop.forget(self._listener.fileno())
                self.crowded = True
                return
            try:
                sock, _ = self._listener.accept()
            except OSError as e:
                if e.errno not in (errno.EMFILE, errno.ENFILE):
                    return
                self._turn_away()
                continue
            sock.setblocking(False)
            line = LifelineEnd(sock)
            if not self.admits(sock):
                line.send(protocol.LifelineRefused("access_denied", "this broker serves another user"))
                sock.close()
                continue
            line.takes = {protocol.LifelineAttach: self._attach}
            self.lines[line.fd] = self._nameless[line.fd] = line
            self.loop.watch(line.fd, partial(self._read, line), partial(self._lost, line, False))

    def _accept_again(self) -> None:
        if len(self._nameless) < self.shares.nameless and not self.loop.watches(self._listener.fileno()):
            self.crowded = False
            self.loop.watch(self._listener.fileno(), self._accept)

    def _turn_away(self) -> None:
        """Out of descriptors: what waits is hung up on, or the listener would stay ready and the loop spin."""
        os.close(self._spare)
        with contextlib.suppress(OSError):
            self._listener.accept()[0].close()
        with contextlib.suppress(OSError):
            self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def _attach(self, line: LifelineEnd, message: protocol.LifelineAttach, _: int | None) -> None:
        role = self.roles.get(message.role)
        if role is None or not role.attach(line, message.key):
            raise ConnectionError("refused")
        self._accept_again()

    def _read(self, line: LifelineEnd) -> None:
        try:
            self.hear(line)
        except ConnectionError as e:
            self._lost(line, isinstance(e, PeerGone))

    def _lost(self, line: LifelineEnd, gone: bool) -> None:
        role = self.roles.get(line.role)
        if role is not None:
            role.lost_line(line, gone)
        else:
            self.close(line)

    def end_nameless(self, now: float) -> None:
        """Ends connections that should have said by now who they are."""
        patience = ATTACH_CROWDED_S if self.crowded else ATTACH_S
        for line in [line for line in self._nameless.values() if now - line.since > patience]:
            self.close(line)
        self._accept_again()

    def tend(self) -> None:
        """Called now and then: sends what had to wait for slow readers, and gives up lines that are not read at all."""
        for line in list(self.lines.values()):
            if line.cut and not line.departed:
                self._lost(line, False)
            elif line.unsent:
                line.flush()

    # ------------------------------------------------------------ packets

    def receive(self, line: LifelineEnd) -> Iterator[tuple[protocol.LifelineMessage, int | None]]:
        """Packets that are there, not too many at once. Raises PeerGone at the end, ConnectionError for nonsense."""
        for _ in range(BURST):
            try:
                packet = lifeline.receive(line.sock, socket.MSG_DONTWAIT)
            except (BlockingIOError, InterruptedError):
                return
            except ProtocolMismatch as e:
                line.send(protocol.LifelineRefused(e.code, str(e)))
                raise ConnectionError(str(e)) from None
            except OSError as e:
                raise PeerGone(str(e)) from None
            if packet is None:
                raise PeerGone("end of file")
            yield packet

    def hear(self, line: LifelineEnd) -> None:
        """Gives each packet that is there to what takes its kind.

        Raises:
            PeerGone: at the end. ConnectionError: it has said what makes no sense.
        """
        for message, fd in self.receive(line):
            take = line.takes.get(type(message))
            if fd is not None and (take is None or type(message) not in CARRYING):
                os.close(fd)
                fd = None
            if take is not None:
                take(line, message, fd)
            elif not line.departed and (not line.key or type(message) in ENDING):
                raise ConnectionError(f"a {line.role or 'nameless'} lifeline takes no {type(message).__name__}")
            if line.closed:
                return

    def attach(self, line: LifelineEnd, role: str, key: bytes) -> bool:
        """The other side has said what it is. False when that is not acceptable (the line should then be closed)."""
        if line.key or not 1 <= len(key) <= 64 or key in self.by_key:
            line.send(protocol.LifelineRefused("access_denied", "that name is taken or not allowed"))
            return False
        line.role, line.key = role, key
        self._nameless.pop(line.fd, None)
        self.by_key[key] = line
        return True

    def offer(self, line: LifelineEnd, fd: int | None) -> int | None:
        """Takes an arena. Its new id, or None (and the other side is told why)."""
        try:
            if fd is None:
                raise arena.ArenaRefused("the packet carried no descriptor")
            if len(line.arenas) >= protocol.MAX_ARENAS:
                raise arena.ArenaRefused(f"one process may share {protocol.MAX_ARENAS} arenas")
            if line.role == "client" and line.arenas:
                most = self.shares.arenas - self.shares.sessions
                if self._spare_arenas >= most:
                    raise QueueFull(self.shares.full("arenas beyond the first of each client", most))
            size = arena.check_sealed(fd, self.limit)
        except (arena.ArenaRefused, QueueFull) as e:
            if fd is not None:
                os.close(fd)
            code = e.code if isinstance(e, QueueFull) else "access_denied"
            line.send(protocol.LifelineRefused(code, f"arena refused: {e}"))
            return None
        self._spare_arenas += line.role == "client" and bool(line.arenas)
        made = Arena(next(self._ids), fd, size, line.key)
        self.arenas[made.id] = made
        line.arenas.add(made.id)
        return made.id

    def share(self, number: int, line: LifelineEnd) -> bool:
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

    # ------------------------------------------------------------ results

    def free(self, number: int, offset: int) -> None:
        """The worker may use the slot again."""
        found = self.arenas.get(number)
        line = self.by_key.get(found.owner) if found is not None else None
        if line is not None:
            line.send(protocol.LifelineReleased(number, offset))

    def take_back(self, line: LifelineEnd, number: int, offset: int) -> None:
        """The process does not look at that result any more."""
        if (number, offset) not in line.results:
            return
        line.results.discard((number, offset))
        self.free(number, offset)
        if number not in self.arenas and not _looks_at(line, number):
            line.send(protocol.LifelineGone(number))

    # ------------------------------------------------------------ ends

    def leave(self, line: LifelineEnd, gone: bool) -> None:
        """The client's session has ended. Unless its process is `gone`, the line stays until all results come back."""
        if not line.results or gone:
            self.close(line)
            return
        self._disown(line)
        line.takes = {protocol.LifelineReleased: self._take_last}
        line.depart()

    def _take_last(self, line: LifelineEnd, message: protocol.LifelineReleased, _: int | None) -> None:
        self.take_back(line, message.id, message.offset)
        if not line.results:
            self.close(line)

    def _disown(self, line: LifelineEnd) -> None:
        """Forgets the line's own arenas; the peers that map one are told that it will not be referred to again. One
        that still looks at results there is told when it has given them back.
        """
        if line.role == "client":
            self._spare_arenas -= max(0, len(line.arenas) - 1)
        while line.arenas:
            number = line.arenas.pop()
            gone = self.arenas.pop(number)
            os.close(gone.fd)
            for key in gone.readers:
                reader = self.by_key.get(key)
                if reader is not None and reader is not line:
                    reader.given.discard(number)
                    if not _looks_at(reader, number):
                        reader.send(protocol.LifelineGone(number))

    def close(self, line: LifelineEnd) -> None:
        """Forgets a line with its arenas, and frees the results that its process looked at."""
        if line.closed:
            return
        self._nameless.pop(line.fd, None)
        while line.results:
            self.free(*line.results.pop())
        self._disown(line)
        for number in line.given:
            if number in self.arenas:
                self.arenas[number].readers.discard(line.key)
        if self.by_key.get(line.key) is line:
            del self.by_key[line.key]
        self.lines.pop(line.fd, None)
        self.loop.forget(line.fd)
        line.closed = True  # only now: a close that has failed halfway is taken up again
        line.sock.close()

    def shut(self) -> None:
        for line in list(self.lines.values()):
            self.close(line)
        self.loop.forget(self._listener.fileno())
        self._listener.close()
        os.close(self._spare)


def _looks_at(line: LifelineEnd, number: int) -> bool:
    """Whether the process has results in that arena, or on their way to it."""
    return any(arena == number for arena, _ in line.results)


Takes = dict[type, Callable[[LifelineEnd, Any, int | None], None]]
