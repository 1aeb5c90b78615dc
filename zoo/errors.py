"""Every error a user of the zoo can meet. Its code on the wire is its name: `ModelNotFound` is "model_not_found".

An error says what happened, to which model, what to do next, and whether the same call can help if it is
made again (`retryable`, with `retry_after` seconds where that is known). The class is the type; nothing else
has to be parsed.
"""

from __future__ import annotations

import re
from typing import ClassVar


class ZooError(Exception):
    """Base of every error the zoo raises.

    Attributes:
        retryable: the same request may succeed later without anything being changed.
        retry_after: seconds after which a retry makes sense, or None when unknown.
        request: the broker's number for the request, for `Client.explain`; 0 when it never got one.
        code: what stands for the class on the wire and in JSON.
    """

    code: ClassVar[str] = "zoo_error"
    retryable = False

    def __init_subclass__(cls, retryable: bool = False) -> None:
        cls.retryable = cls.retryable or retryable
        if "code" not in vars(cls):
            cls.code = re.sub(r"\B([A-Z])", r"_\1", cls.__name__).lower()

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


class ModelNotFound(ZooError):
    """No model of that name is registered."""


class ModelDisabled(ZooError):
    """The model is registered with `enabled = false`."""


class ModelUnavailable(ZooError):
    """The model cannot be served as things stand: no adapter, or its weights are not there."""


class ModelTooLarge(ZooError):
    """The model, or what this request makes of it, is larger than the whole budget; nothing was evicted for it."""


class ModelInUse(ZooError):
    """An unload was refused because the model is leased or pinned."""


class OutOfMemory(ZooError, retryable=True):
    """Memory ran out while the model was loaded or ran this request, again after room was made where that was possible.

    The message has the arithmetic.
    """


class LoadFailed(ZooError, retryable=True):
    """The model's process could not load it, or took longer than `load_timeout`."""


class InvalidInput(ZooError):
    """The request itself is wrong; the message names the field."""


class InferenceFailed(ZooError):
    """The adapter raised while predicting; its process lives on."""


class QueueFull(ZooError, retryable=True):
    """A bounded queue (a model's, or this client's arena) has no place left."""


class DeadlineExceeded(ZooError, retryable=True):
    """The request's time was up before it was answered; the message says what it was waiting for."""


class Cancelled(ZooError):
    """The caller withdrew the request."""


class WorkerCrashed(ZooError):
    """The model's process died under this request, twice."""


class WorkerHung(ZooError):
    """The model's process outlasted `dispatch_timeout` with this request and was killed."""


class Quarantined(ZooError):
    """This very input killed or hung two of the model's processes before. `zoo unload MODEL` lets it be tried again."""


class ProtocolMismatch(ZooError):
    """The two sides speak different protocol versions, or one sent something unreadable."""


class BrokerUnreachable(ZooError, retryable=True):
    """No broker answers, or it went away while the request was under way."""


class AccessDenied(ZooError):
    """The other side refused the connection or the shared memory it was offered."""


BY_CODE: dict[str, type[ZooError]] = {"zoo_error": ZooError} | {cls.code: cls for cls in ZooError.__subclasses__()}
