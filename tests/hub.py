"""A web server for tests of `zoo pull`: a small hub on this machine, and every way in which it may fail."""

from __future__ import annotations

import hashlib
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LATER = "76543210fedcba9876543210fedcba9876543210"


@dataclass
class File:
    """One address of the server.

    Attributes:
        etag: sent as it is; None sends none.
        headers: more headers, of every answer.
        script: what the next GETs meet, one each; afterwards they are simply answered.
    """

    body: bytes
    etag: str | None = '"one"'
    headers: dict[str, str] = field(default_factory=dict)
    head_status: int = 200
    script: list[Callable[[Handler, File], None]] = field(default_factory=list)


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    headers: dict[str, str]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_HEAD(self) -> None:
        file = self._found()
        if file is not None:
            self.begin(file, file.head_status, len(file.body))

    def do_GET(self) -> None:
        file = self._found()
        if file is not None:
            (file.script.pop(0) if file.script else whole)(self, file)

    def _found(self) -> File | None:
        self.server.asked.append(Asked(self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))
        file = self.server.files.get(self.path)
        if file is None:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.send_header("X-Error-Code", self.server.error_code)
            self.end_headers()
        return file

    def begin(self, file: File, status: int, length: int | None, **headers: str) -> None:
        """Status and headers. `length` None leaves it out."""
        self.send_response(status)
        sent = {"ETag": file.etag, "Content-Length": length, **file.headers}
        for name, value in {**sent, **{k.replace("_", "-"): v for k, v in headers.items()}}.items():
            if value is not None:
                self.send_header(name, str(value))
        self.end_headers()

    def start(self, file: File) -> int:
        """Like `begin`, for the range that was asked for if the file is still the same. Gives its first byte."""
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked is None or self.headers.get("If-Range", file.etag) != file.etag:
            self.begin(file, 200, len(file.body))
            return 0
        first = int(asked[1])
        if first >= len(file.body):
            self.begin(file, 416, 0)
            return first
        self.begin(
            file, 206, len(file.body) - first, Content_Range=f"bytes {first}-{len(file.body) - 1}/{len(file.body)}"
        )
        return first

    def hang_up(self) -> None:
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    """`files` by address; `asked` is every request there was."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, File] = {}
        self.asked: list[Asked] = []
        self.error_code = "EntryNotFound"
        self.over = threading.Event()  # the test is: whatever waits goes on
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def close(self) -> None:
        self.over.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: Any) -> None:
        pass  # clients that hang up are part of the game

    def publish(self, name: str, body: bytes, *, commit: str = COMMIT, large: bool = True, **keys: Any) -> File:
        """A file of the repository owner/repo, on branch main. `large` ones have a SHA-256, as the hub's have."""
        file = File(body, **keys)
        file.headers["X-Repo-Commit"] = commit
        if large:
            file.headers["X-Linked-Size"] = str(len(body))
            file.headers["X-Linked-Etag"] = f'"{hashlib.sha256(body).hexdigest()}"'
        for revision in ("main", commit):
            self.files[f"/owner/repo/resolve/{revision}/{name}"] = file
        return file

    def gets(self) -> list[Asked]:
        return [asked for asked in self.asked if asked.method == "GET"]


# ---------------------------------------------------------------- what a GET may meet


def whole(handler: Handler, file: File) -> None:
    handler.wfile.write(file.body[handler.start(file) :])


def cut(count: int) -> Callable[[Handler, File], None]:
    """`count` bytes, then the connection breaks."""

    def act(handler: Handler, file: File) -> None:
        first = handler.start(file)
        handler.wfile.write(file.body[first : first + count])
        handler.hang_up()

    return act


def hold(count: int, reached: threading.Event, go_on: threading.Event) -> Callable[[Handler, File], None]:
    """`count` bytes, then silence until `go_on`, then the rest."""

    def act(handler: Handler, file: File) -> None:
        first = handler.start(file)
        handler.wfile.write(file.body[first : first + count])
        handler.wfile.flush()
        reached.set()
        while not (go_on.wait(0.01) or handler.server.over.is_set()):
            pass
        handler.wfile.write(file.body[first + count :])

    return act


def trickle(piece: int, every_s: float) -> Callable[[Handler, File], None]:
    """The whole of it, `piece` bytes at a time."""

    def act(handler: Handler, file: File) -> None:
        first = handler.start(file)
        for at in range(first, len(file.body), piece):
            handler.wfile.write(file.body[at : at + piece])
            handler.wfile.flush()
            if handler.server.over.wait(every_s):
                return

    return act


def status(code: int, **headers: str) -> Callable[[Handler, File], None]:
    return lambda handler, file: handler.begin(file, code, 0, **headers)


def redirect(target: str) -> Callable[[Handler, File], None]:
    return status(302, Location=target)


def ignoring_range(handler: Handler, file: File) -> None:
    handler.begin(file, 200, len(file.body))
    handler.wfile.write(file.body)


def chunked(body: bytes) -> Callable[[Handler, File], None]:
    """That body, its length not announced."""

    def act(handler: Handler, file: File) -> None:
        handler.begin(file, 200, None, Transfer_Encoding="chunked")
        handler.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))

    return act


def until_closed(handler: Handler, file: File) -> None:
    """The whole of it, and nothing by which to tell that it is."""
    handler.begin(file, 200, None, Connection="close")
    handler.wfile.write(file.body)
    handler.hang_up()


def changing(then: Callable[[Handler, File], None], body: bytes, etag: str) -> Callable[[Handler, File], None]:
    """Does `then`, and from now on the file is another one."""

    def act(handler: Handler, file: File) -> None:
        then(handler, file)
        file.body, file.etag = body, etag

    return act
