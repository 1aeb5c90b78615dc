"""`Client` and `AsyncClient` are the same, but for `await`: their signatures, their docstrings, and what each gives."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from zoo import AsyncClient, AsyncLease, Client, Lease

PAIRS = [(Client, AsyncClient), (Lease, AsyncLease)]
AWAITED = r"^Opening\[(.*)\]$"  # `await`, or `async with`


def public(of: type) -> dict[str, object]:
    """Its methods and properties, `__init__` and `__call__` with them; `__aenter__` counts as `__enter__`."""
    names = {name for name in vars(of) if not name.startswith("_") or name in ("__init__", "__call__")}
    return {name: vars(of)[name] for name in sorted(names)}


def given(annotation: str) -> str:
    """What a method gives, without the difference that is meant."""
    return re.sub(AWAITED, r"\1", annotation).replace("AsyncLease", "Lease")


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_the_two_have_the_same_methods_with_the_same_words(one: type, other: type) -> None:
    mine, theirs = public(one), public(other)
    assert list(mine) == list(theirs)
    for name, method in mine.items():
        twin = theirs[name]
        assert inspect.getdoc(method) == inspect.getdoc(twin), name
        if not isinstance(method, property):
            ours, its = inspect.signature(method), inspect.signature(twin)  # type: ignore[arg-type]
            assert ours.parameters == its.parameters, name
            assert given(str(ours.return_annotation)) == given(str(its.return_annotation)), name


def test_every_method_says_what_it_does() -> None:
    for name, method in public(Client).items():
        assert name == "__init__" or inspect.getdoc(method), name


def test_each_is_thin() -> None:
    for of in (Client, AsyncClient):
        assert len(Path(inspect.getfile(of)).read_text().splitlines()) <= 300


def test_a_call_of_the_async_client_has_to_be_awaited() -> None:
    for name, method in public(AsyncClient).items():
        opens = str(inspect.signature(method).return_annotation).startswith("Opening")  # type: ignore[arg-type]
        assert name == "__init__" or opens or inspect.iscoroutinefunction(method), name
