"""Errors on their way out: which status an error has in HTTP, and its text as JSON.

One table for all doors. A protocol that says errors in a form of its own (DeepStack: status 200, `success: false`) has
an exception handler of its own over `describe`.
"""

from __future__ import annotations

import logging
import math
from typing import Any, NamedTuple

from litestar import Request, Response
from litestar.exceptions import HTTPException

from zoo import errors
from zoo.errors import ZooError

log = logging.getLogger("zoo.gateway")


class Unauthorized(ZooError):
    """The request came without a token, or with one that is not in the file."""


class NotAllowed(ZooError):
    """The caller is known, and its role does not allow this; or the request comes from a page elsewhere."""


class BodyTooLarge(ZooError):
    """The body of the request is larger than `max_body_mb`."""


class BodyTooSlow(ZooError, retryable=True):
    """The body of the request did not arrive within `body_seconds`."""


class NotServed(ZooError):
    """The protocol knows this call, and this server does not offer it."""


class Disconnected(Exception):
    """The other side has closed its connection: there is no answer to be given."""


STATUS: dict[type[ZooError], int] = {
    errors.InvalidInput: 400,
    errors.Quarantined: 400,
    NotServed: 400,
    Unauthorized: 401,
    errors.AccessDenied: 403,
    NotAllowed: 403,
    errors.ModelNotFound: 404,
    errors.ModelDisabled: 404,
    BodyTooSlow: 408,
    errors.ModelInUse: 409,
    BodyTooLarge: 413,
    errors.QueueFull: 429,
    errors.InferenceFailed: 500,
    errors.WorkerCrashed: 500,
    errors.WorkerHung: 500,
    errors.ConfigError: 500,
    errors.ProtocolMismatch: 500,
    errors.ModelUnavailable: 503,
    errors.LoadFailed: 503,
    errors.BrokerUnreachable: 503,
    errors.Cancelled: 503,
    errors.DeadlineExceeded: 504,
    errors.ModelTooLarge: 507,
    errors.OutOfMemory: 507,
}
RETRY_S = 1.0  # where it makes sense to try again, and the error does not say when


class Refusal(NamedTuple):
    """An error as HTTP says it. `retry_after`: seconds, or None."""

    status: int
    text: str
    code: str
    retryable: bool
    retry_after: float | None
    request: int
    allow: str = ""  # methods, where it is the method that is wrong


def describe(error: Exception) -> Refusal:
    """Any exception that a handler may leave with."""
    if isinstance(error, ZooError):
        status = STATUS.get(type(error), 500)
        after = error.retry_after
        if after is None and error.retryable and status in (429, 503):
            after = RETRY_S
        return Refusal(status, str(error), error.code, error.retryable, after, error.request)
    if isinstance(error, Disconnected):
        return Refusal(499, "the other side has gone", errors.Cancelled.code, False, None, 0)
    if isinstance(error, HTTPException):  # the framework's own: no such path, no such method, unreadable parameters
        code = {404: "not_found", 405: "method_not_allowed", 413: BodyTooLarge.code}.get(error.status_code)
        allow = {name.lower(): value for name, value in (error.headers or {}).items()}.get("allow", "")
        return Refusal(error.status_code, error.detail, code or errors.InvalidInput.code, False, None, 0, allow)
    log.error("a request ended with an error of the gateway's own", exc_info=error)
    return Refusal(500, "an error of the gateway's own; its log has the details", ZooError.code, False, None, 0)


def headers(refusal: Refusal) -> dict[str, str]:
    made = {}
    if refusal.retry_after is not None:
        made["Retry-After"] = str(max(1, math.ceil(refusal.retry_after)))
    if refusal.allow:
        made["Allow"] = refusal.allow
    if refusal.status == 401:
        made["WWW-Authenticate"] = 'Bearer realm="zoo"'
    if refusal.status in (408, 413):
        made["Connection"] = "close"  # the rest of the body is not read
    return made


def answer(_: Request[Any, Any, Any], error: Exception) -> Response[dict[str, Any]]:
    """The handler of all exceptions, for doors without one of their own."""
    refusal = describe(error)
    body = {
        "error": refusal.text,
        "code": refusal.code,
        "retryable": refusal.retryable,
        "request": refusal.request,
    }
    return Response(body, status_code=refusal.status, headers=headers(refusal))
