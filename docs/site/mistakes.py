"""The errors, from their classes: whether a retry may help, and the status that the gateway gives them."""

from __future__ import annotations

import inspect

from docs.site import markdown
from zoo import errors
from zoo.gateway import refusals


def page() -> str:
    of_all = [kind for kind in errors.BY_CODE.values() if kind is not errors.ZooError]
    of_gateway = [kind for kind in vars(refusals).values() if _is_own(kind)]
    return f"{_table(of_all)}\n\n## Of the gateway alone\n\n{_table(of_gateway)}"


def _is_own(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, errors.ZooError) and kind.__module__ == refusals.__name__


def _table(kinds: list[type[errors.ZooError]]) -> str:
    rows = [
        (markdown.code(kind.__name__), markdown.code(kind.code), "yes" if kind.retryable else "no",
         str(refusals.STATUS[kind]), inspect.getdoc(kind) or "")
        for kind in kinds
    ]  # fmt: skip
    return markdown.table(("error", "code", "retryable", "HTTP", "meaning"), rows)
