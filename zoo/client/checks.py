"""Arguments of both clients, checked before anything is sent. What is wrong is `InvalidInput`, naming the argument."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from zoo.config.address import Address, find_address
from zoo.config.endpoint import endpoint_problem
from zoo.config.schema import ModelPriority
from zoo.errors import InvalidInput
from zoo.wire.arrays import ODD, shown

_MEDIUM = int(ModelPriority.MEDIUM)
FOREVER_S = 1e8  # about three years: longer times than that mean "no limit", and some system calls cannot take them
MAX_NAME = 1000  # characters of a name that is sent at all; the broker says what it thinks of it


def number(value: Any) -> float | None:
    """A plain number as a float, infinite where no float can hold it; None when it is none (or NaN, or a boolean)."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        return None
    try:
        found = float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
    return None if math.isnan(found) else found


def check_text(what: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidInput(f"{what}: expected a text, got {shown(value)}")
    if len(value) > MAX_NAME:
        raise InvalidInput(f"{what}: a text of {len(value)} characters, at most {MAX_NAME} are taken")
    try:
        value.encode()
    except UnicodeEncodeError as e:
        raise InvalidInput(f"{what}: {shown(value)} cannot be sent, it is no valid Unicode ({e.reason})") from None
    return str(value)  # numpy has a text of its own, which msgspec does not know


def check_model(model: Any) -> str:
    return check_text("model", model)


def check_models(models: Iterable[str]) -> list[str]:
    """Each once, in order."""
    if isinstance(models, str | bytes):
        raise InvalidInput(f"models: expected a list of names, got {shown(models)}")
    try:
        names = list(models)
    except ODD:
        raise InvalidInput(f"models: expected a list of names, got {shown(models)}") from None
    return list(dict.fromkeys(check_model(name) for name in names))


def check_endpoint(endpoint: str | None) -> Address:
    if endpoint is not None:
        check_text("endpoint", endpoint)
    found = find_address(endpoint)
    problem = endpoint_problem(found) or ("it holds a NUL character" if "\0" in found else None)
    if problem:
        raise InvalidInput(f"endpoint: {problem}")
    return found


def check_arena_mb(arena_mb: int) -> int:
    """In bytes."""
    if isinstance(arena_mb, bool) or not isinstance(arena_mb, int | np.integer) or arena_mb < 1:
        raise InvalidInput(f"arena_mb: {shown(arena_mb)} is not a positive number of megabytes")
    return int(arena_mb) << 20


def check_timeout(timeout: float | None, default: float) -> float:
    """Seconds. More than `FOREVER_S` means no limit."""
    if timeout is None:
        return default
    found = number(timeout)
    if found is None or not found > 0 or (isinstance(timeout, float | np.floating) and math.isinf(found)):
        raise InvalidInput(f"timeout: {shown(timeout)} is not a positive number of seconds")
    return min(found, FOREVER_S)


def check_priority(priority: int | str | None) -> int:
    if priority is None:
        return _MEDIUM
    try:
        if isinstance(priority, bool):
            raise ValueError
        return int(ModelPriority[priority] if isinstance(priority, str) else ModelPriority(priority))
    except ODD:
        raise InvalidInput(f"priority: {shown(priority)} is not one of CRITICAL, HIGH, MEDIUM, LOW (0 to 3)") from None


def check_seconds(what: str, value: Any) -> float:
    """A time that may be 0."""
    found = number(value)
    if found is None or not 0 <= found < math.inf:
        raise InvalidInput(f"{what}: {shown(value)} is not a number of seconds")
    return found


def check_keep_alive(keep_alive: float | None) -> float | None:
    return None if keep_alive is None else check_seconds("keep_alive", keep_alive)


def check_shape(shape: Any) -> tuple[int, ...]:
    """The sides of an array, which are whole numbers."""
    if not isinstance(shape, str | bytes):
        try:
            sides = tuple(shape)
            if not any(isinstance(n, bool) for n in sides):
                return tuple(n.__index__() for n in sides)
        except ODD:
            pass
    raise InvalidInput(f"shape: {shown(shape)} is not a list of whole numbers, such as (1080, 1920, 3)")


def check_about(model_or_request: Any) -> str | None:
    """What `explain` is asked about."""
    if model_or_request is None:
        return None
    if isinstance(model_or_request, int | np.integer) and not isinstance(model_or_request, bool):
        return str(int(model_or_request)) if abs(int(model_or_request)) < 1 << 63 else "0"
    return check_text("model_or_request", model_or_request)
