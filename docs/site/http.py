"""The calls of the gateway, from its OpenAPI document."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, NamedTuple

from docs.site import markdown
from zoo.config.schema import ZooConfig
from zoo.gateway import app
from zoo.gateway.gateway import Gateway


class Call(NamedTuple):
    path: str
    method: str
    operation: dict[str, Any]


def document() -> dict[str, Any]:
    """As `/openapi.json` has it."""

    async def made() -> dict[str, Any]:
        gateway = Gateway(ZooConfig())
        try:
            return dict(app.calls(gateway).openapi_schema.to_schema())
        finally:
            await gateway.close()

    return asyncio.run(made())


def page() -> str:
    found = document()
    calls = [
        Call(path, method, operation)
        for path, methods in found["paths"].items()
        for method, operation in methods.items()
    ]  # fmt: skip
    parts = [_statuses(calls)]
    for tag in dict.fromkeys(call.operation["tags"][0] for call in calls):
        rows = _rows(call for call in calls if call.operation["tags"][0] == tag)
        parts += [f"## {tag}", markdown.table(("call", "takes", "meaning"), rows)]
    return "\n\n".join(parts)


def _statuses(calls: list[Call]) -> str:
    """What each status means: the same for every call."""
    meanings: dict[str, str] = {}
    for call in calls:
        for status, answer in call.operation["responses"].items():
            meanings[status] = answer["description"] if status >= "400" else "The answer."
    return markdown.table(("status", "meaning"), sorted(meanings.items()))


def _rows(calls: Iterator[Call]) -> Iterator[tuple[str, ...]]:
    for path, method, operation in calls:
        takes = [f"`{one['name']}` ({one['in']})" for one in operation.get("parameters", ()) if one["in"] != "path"]
        takes += [_body(kind, content) for kind, content in operation.get("requestBody", {}).get("content", {}).items()]
        yield (
            markdown.code(f"{method.upper()} {path}"),
            ", ".join(takes),
            operation.get("description", operation["summary"]),
        )


def _body(kind: str, content: dict[str, Any]) -> str:
    """The kind of a body, and the names in it."""
    names = content["schema"].get("properties", {})
    return f"{kind}: {', '.join(map(markdown.code, names))}" if names else kind
