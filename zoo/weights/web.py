"""One question to a web server, as downloads ask it.

`ask` follows redirects itself: never to anything but https (http only on this machine), never from https to http, and
the token goes to the server it is for and to no other. What goes wrong on the way is one of two exceptions:
`Transient` (the next attempt may do better) or `DownloadRefused` (it will not). The standard library does the rest:
proxies from the environment, certificates from the system, no compression.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from typing import Any
from urllib.error import URLError
from urllib.parse import quote, urljoin, urlsplit
from urllib.request import HTTPErrorProcessor, Request, build_opener

from zoo.weights.source import url_problem

CHUNK_BYTES = 1 << 18
MAX_REDIRECTS = 10
REDIRECTS = (301, 302, 303, 307, 308)
NONE: Mapping[str, str] = {}


class Transient(Exception):
    """It may work the next time. `wait_s`: how long the server asks to wait before."""

    def __init__(self, message: str, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class DownloadRefused(Exception):
    """It will not work the next time either. `retryable`: but perhaps later, when something has changed out there."""

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable


@dataclass(frozen=True)
class Response:
    """What a server says at the end of the redirects.

    Attributes:
        host: the server that gave it.
        passed: headers of all responses on the way, the first of each name; names in lower case.
        silence_s: between any two bytes.
    """

    raw: HTTPResponse
    host: str
    passed: dict[str, str]
    silence_s: float

    @property
    def status(self) -> int:
        return self.raw.status

    def header(self, name: str) -> str | None:
        """Of the last response."""
        return self.raw.headers.get(name)

    @property
    def length(self) -> int | None:
        """Bytes of the body, where the server says; else None."""
        return whole_number(self.header("Content-Length"))

    @property
    def is_framed(self) -> bool:
        """Whether a body that is cut off can be told from a whole one."""
        return self.length is not None or self.raw.chunked

    def chunks(self, slowest: float) -> Iterator[bytes]:
        """The body, piece by piece.

        Raises:
            Transient: it broke off, or came slower than `slowest` bytes per second. A body that ends before its
                announced length raises nothing: count.
        """
        left = CHUNK_BYTES if self.length is None else self.length
        began, came = time.monotonic(), 0
        while chunk := self._read(min(left, CHUNK_BYTES)):
            yield chunk
            left -= len(chunk) if self.length is not None else 0
            came += len(chunk)
            seconds = time.monotonic() - began
            if seconds >= self.silence_s:
                if came < slowest * seconds:
                    raise Transient(f"{self.host} stalled: {came:,} bytes in {seconds:.0f} s")
                began, came = time.monotonic(), 0

    def _read(self, most: int) -> bytes:
        try:
            return self.raw.read1(most) if most else b""
        except (OSError, HTTPException) as e:
            raise _failure(e, self.host, self.silence_s) from e


@contextlib.contextmanager
def ask(
    method: str, url: str, headers: Mapping[str, str] = NONE, *, silence_s: float, token: str = "", token_for: str = ""
) -> Iterator[Response]:
    """Sends a HEAD or GET and gives the response, whatever its status; it is closed at the end of the block.

    A HEAD does not leave the hub once the hub has said how large the file is: where the bytes are stored need not
    answer one.

    Args:
        silence_s: for connecting, and between any two bytes.
        token: for the server of the address `token_for`.

    Raises:
        Transient, DownloadRefused: no server answered, or a redirect leads where none may.
    """
    passed: dict[str, str] = {}
    for _ in range(MAX_REDIRECTS):
        if problem := url_problem(url):
            raise DownloadRefused(problem)
        host = urlsplit(url).netloc
        request = Request(url, headers={"User-Agent": "model-zoo", **headers}, method=method)
        if token and origin(url) == origin(token_for):
            request.add_header("Authorization", f"Bearer {token}")
        try:
            raw: HTTPResponse = build_opener(_AsTheyAre).open(request, timeout=silence_s)
        except (OSError, HTTPException, ValueError) as e:
            raise _failure(e, host, silence_s) from e
        with raw:
            for name, value in raw.headers.items():
                passed.setdefault(name.lower(), value)
            target = urljoin(url, quote(raw.headers.get("Location", ""), safe="%/:=&?~#+!$,;'@()*[]"))
            is_known = method == "HEAD" and "x-linked-size" in passed and origin(target) != origin(url)
            if raw.status not in REDIRECTS or is_known:
                yield Response(raw, host, passed, silence_s)
                return
        if problem := url_problem(target):
            raise DownloadRefused(f"{host} redirects elsewhere: {problem}")
        if url.startswith("https:") and not target.startswith("https:"):
            raise DownloadRefused(f"{host} redirects from https to {urlsplit(target).scheme}")
        url = target
    raise DownloadRefused(f"{urlsplit(url).netloc}: more than {MAX_REDIRECTS} redirects")


def origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port: what a token is for."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or {"https": 443, "http": 80}.get(parts.scheme, 0)


def whole_number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() else None


class _AsTheyAre(HTTPErrorProcessor):
    """Neither an error status nor a redirect is anything but a response."""

    def http_response(self, request: Request, response: Any) -> Any:
        return response

    https_response = http_response


def _failure(error: Exception, host: str, silence_s: float) -> Transient | DownloadRefused:
    reason = error.reason if isinstance(error, URLError) and isinstance(error.reason, Exception) else error
    if isinstance(reason, ssl.SSLCertVerificationError):
        return DownloadRefused(f"{host}: its certificate cannot be trusted ({reason.verify_message})")
    if isinstance(reason, socket.gaierror):
        return DownloadRefused(f"{host}: no such server, or no network ({reason.strerror})", retryable=True)
    if isinstance(reason, ValueError | http.client.InvalidURL):
        return DownloadRefused(f"{host}: its address, or HF_TOKEN, has characters that cannot be sent")
    if isinstance(reason, TimeoutError):
        return Transient(f"{host} was silent for {silence_s:g} s")
    return Transient(f"the connection to {host} broke ({str(reason) or type(reason).__name__})")
