"""One question to a web server, as downloads ask it.

`ask` follows redirects itself: never to anything but https (http only on this machine), never from https to http, and
the token goes to the server it is for and to no other. What goes wrong on the way is one of two exceptions: `Transient`
(the next attempt may do better) or `Refused` (it will not). The standard library does the rest: proxies from the
environment, certificates from the system, no compression.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from collections.abc import Iterator
from http.client import HTTPException, HTTPResponse
from typing import Any
from urllib.error import URLError
from urllib.parse import quote, urljoin, urlsplit
from urllib.request import HTTPErrorProcessor, Request, build_opener

from zoo.weights.source import url_problem

CHUNK_BYTES = 1 << 18
MAX_REDIRECTS = 10
REDIRECTS = (301, 302, 303, 307, 308)


class Transient(Exception):
    """It may work the next time. `wait_s`: how long the server asks to wait before."""

    def __init__(self, message: str, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class Refused(Exception):
    """It will not work the next time either. `retryable`: but perhaps later, when something has changed out there."""

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable


class Answer:
    """What a server says at the end of the redirects. A context manager, closed at its end.

    Attributes:
        status: of the last answer. host: who gave it.
        passed: headers of all answers on the way, the first of each name; names in lower case.
    """

    def __init__(self, response: HTTPResponse, host: str, passed: dict[str, str], silence_s: float) -> None:
        self._response = response
        self._silence_s = silence_s
        self.status = response.status
        self.host = host
        self.passed = passed

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *_: object) -> None:
        self._response.close()

    def header(self, name: str) -> str | None:
        """Of the last answer."""
        return self._response.headers.get(name)

    @property
    def length(self) -> int | None:
        """Bytes of the body, where the server says; else None."""
        return whole_number(self.header("Content-Length"))

    @property
    def is_framed(self) -> bool:
        """Whether a body that is cut off can be told from a whole one."""
        return self.length is not None or self._response.chunked

    def chunks(self, slowest: float) -> Iterator[bytes]:
        """The body, piece by piece.

        Raises:
            Transient: it broke off, or came slower than `slowest` bytes per second. A body that ends before its
                announced length raises nothing: count.
        """
        left = self.length
        began, came = time.monotonic(), 0
        while chunk := self._read(CHUNK_BYTES if left is None else min(left, CHUNK_BYTES)):
            yield chunk
            left = None if left is None else left - len(chunk)
            came += len(chunk)
            seconds = time.monotonic() - began
            if seconds >= self._silence_s:
                if came < slowest * seconds:
                    raise Transient(f"{self.host} stalled: {came:,} bytes in {seconds:.0f} s")
                began, came = time.monotonic(), 0

    def _read(self, most: int) -> bytes:
        try:
            return self._response.read1(most) if most else b""
        except (OSError, HTTPException) as e:
            raise _failure(e, self.host, self._silence_s) from e


def ask(
    method: str, url: str, headers: dict[str, str], *, silence_s: float, token: str = "", token_for: str = ""
) -> Answer:
    """Sends a HEAD or GET and gives the answer, whatever its status.

    A HEAD does not leave the hub once the hub has said how large the file is: where the bytes are stored need not
    answer one.

    Args:
        silence_s: for connecting, and between any two bytes.
        token: for the server of the address `token_for`.

    Raises:
        Transient, Refused: nobody answered, or a redirect leads where none may.
    """
    passed: dict[str, str] = {}
    for _ in range(MAX_REDIRECTS):
        if problem := url_problem(url):
            raise Refused(problem)
        host = urlsplit(url).netloc
        request = Request(url, headers={"User-Agent": "model-zoo", **headers}, method=method)
        if token and origin(url) == origin(token_for):
            request.add_header("Authorization", f"Bearer {token}")
        try:
            response: HTTPResponse = build_opener(_AsTheyAre).open(request, timeout=silence_s)
        except (OSError, HTTPException, ValueError) as e:
            raise _failure(e, host, silence_s) from e
        for name, value in response.headers.items():
            passed.setdefault(name.lower(), value)
        if response.status not in REDIRECTS:
            return Answer(response, host, passed, silence_s)
        target = urljoin(url, quote(response.headers.get("Location", ""), safe="%/:=&?~#+!$,;'@()*[]"))
        if method == "HEAD" and "x-linked-size" in passed and origin(target) != origin(url):
            return Answer(response, host, passed, silence_s)
        response.close()
        if problem := url_problem(target):
            raise Refused(f"{host} redirects elsewhere: {problem}")
        if url.startswith("https:") and not target.startswith("https:"):
            raise Refused(f"{host} redirects from https to {urlsplit(target).scheme}")
        url = target
    raise Refused(f"{urlsplit(url).netloc}: more than {MAX_REDIRECTS} redirects")


def origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port: what a token is for."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or {"https": 443, "http": 80}.get(parts.scheme, 0)


def whole_number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() else None


class _AsTheyAre(HTTPErrorProcessor):
    """Neither an error status nor a redirect is anything but an answer."""

    def http_response(self, request: Request, response: Any) -> Any:
        return response

    https_response = http_response


def _failure(error: Exception, host: str, silence_s: float) -> Transient | Refused:
    reason = error.reason if isinstance(error, URLError) and isinstance(error.reason, Exception) else error
    if isinstance(reason, ssl.SSLCertVerificationError):
        return Refused(f"{host}: its certificate cannot be trusted ({reason.verify_message})")
    if isinstance(reason, socket.gaierror):
        return Refused(f"{host}: no such server, or no network ({reason.strerror})", retryable=True)
    if isinstance(reason, ValueError | http.client.InvalidURL):
        return Refused(f"{host}: its address, or HF_TOKEN, has characters that cannot be sent")
    if isinstance(reason, TimeoutError):
        return Transient(f"{host} was silent for {silence_s:g} s")
    return Transient(f"the connection to {host} broke ({str(reason) or type(reason).__name__})")
