"""Every error a user of the zoo can meet, and the one table that names them on the wire.

An error says what happened, to which model, what to do next, and whether the same call can help if it is
made again (`retryable`, with `retry_after` seconds where that is known). The class is the type; nothing else
has to be parsed.
"""

from __future__ import annotations


class ZooError(Exception):
    """Base of every error the zoo raises.

    Attributes:
        retryable: the same request may succeed later without anything being changed.
        retry_after: seconds after which a retry makes sense, or None when unknown.
        request: the broker's number for the request, for `Client.explain`; 0 when it never got one.
    """

    code = "zoo_error"
    retryable = False

    def __init__(
        self,
        message: str = "",
        *,
        retryable: bool | None = None,
        retry_after: float | None = None,
        request: int = 0,
    ) -> None:
        super().__init__(message)
        if retryable is not None:
            self.retryable = retryable
        self.retry_after = retry_after
        self.request = request


class ConfigError(ZooError):
    """config.toml cannot be used; the message lists each mistake with its line and key."""

    code = "config_error"


class ModelNotFound(ZooError):
    """No model of that name is registered."""

    code = "model_not_found"


class ModelDisabled(ZooError):
    """The model is registered with `enabled = false`."""

    code = "model_disabled"


class ModelUnavailable(ZooError):
    """The model cannot be served as things stand: no adapter, or its weights are not there."""

    code = "model_unavailable"


class ModelTooLarge(ZooError):
    """The model, or what this request makes of it, is larger than the whole budget; nothing was evicted for it."""

    code = "model_too_large"


class ModelInUse(ZooError):
    """An unload was refused because the model is leased or pinned."""

    code = "model_in_use"


class OutOfMemory(ZooError):
    """Memory ran out while the model was loaded or ran this request, again after room was made where that was possible.

    The message has the arithmetic.
    """

    code = "out_of_memory"
    retryable = True


class LoadFailed(ZooError):
    """The model's process could not load it, or took longer than `load_timeout`."""

    code = "load_failed"
    retryable = True


class InvalidInput(ZooError):
    """The request itself is wrong; the message names the field."""

    code = "invalid_input"


class InferenceFailed(ZooError):
    """The adapter raised while predicting; its process lives on."""

    code = "inference_failed"


class QueueFull(ZooError):
    """A bounded queue (a model's, or this client's arena) has no place left."""

    code = "queue_full"
    retryable = True


class DeadlineExceeded(ZooError):
    """The request's time was up before it was answered; the message says what it was waiting for."""

    code = "deadline_exceeded"
    retryable = True


class Cancelled(ZooError):
    """The caller withdrew the request."""

    code = "cancelled"


class WorkerCrashed(ZooError):
    """The model's process died under this request, twice."""

    code = "worker_crashed"


class WorkerHung(ZooError):
    """The model's process outlasted `dispatch_timeout` with this request and was killed."""

    code = "worker_hung"


class Quarantined(ZooError):
    """This very input killed or hung two of the model's processes before. `zoo unload MODEL` lets it be tried again."""

    code = "quarantined"


class ProtocolMismatch(ZooError):
    """The two sides speak different protocol versions, or one sent something unreadable."""

    code = "protocol_mismatch"


class BrokerUnreachable(ZooError):
    """No broker answers, or it went away while the request was under way."""

    code = "broker_unreachable"
    retryable = True


class AccessDenied(ZooError):
    """The other side refused the connection or the shared memory it was offered."""

    code = "access_denied"


def _all_errors(cls: type[ZooError] = ZooError) -> dict[str, type[ZooError]]:
    found = {cls.code: cls}
    for sub in cls.__subclasses__():
        found |= _all_errors(sub)
    return found


BY_CODE: dict[str, type[ZooError]] = _all_errors()


def from_code(
    code: str,
    message: str,
    *,
    retryable: bool | None = None,
    retry_after: float | None = None,
    request: int = 0,
) -> ZooError:
    """The error a wire message stands for; an unknown code becomes a plain `ZooError`."""
    return BY_CODE.get(code, ZooError)(message, retryable=retryable, retry_after=retry_after, request=request)
