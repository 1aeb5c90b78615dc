"""config.toml, from its schema: each key with its type, its default and the meaning that its class tells."""

from __future__ import annotations

import inspect
import re
from typing import Any

import msgspec

from docs.site import markdown
from zoo.config import cluster, gateway, rules, schema

TABLES: tuple[tuple[str, type[msgspec.Struct]], ...] = (
    ("[broker]", schema.BrokerConfig),
    ("[[devices]]", schema.DeviceConfig),
    ("[[models]]", schema.ModelConfig),
    ("[enrich]", rules.EnrichConfig),
    ("[[enrich.rules]]", rules.Rule),
    ("[gateway]", gateway.GatewayConfig),
    ("[[gateway.frigate]]", gateway.FrigateConfig),
    ("[cluster]", cluster.ClusterConfig),
    ("[[cluster.nodes]]", cluster.NodeConfig),
)
AT_RUN_TIME = {"available"}  # no key of the file
ELSEWHERE = {"rules", "frigate", "nodes"}  # tables of their own


def page() -> str:
    return "\n\n".join(f"## `{name}`\n\n{_table(kind)}" for name, kind in TABLES)


def _table(kind: type[msgspec.Struct]) -> str:
    said = meanings(kind)
    rows = [
        (markdown.code(field.encode_name), _type(field.type), _default(field), said[field.name])
        for field in msgspec.structs.fields(kind)
        if field.name not in AT_RUN_TIME | ELSEWHERE
    ]
    return markdown.table(("key", "type", "default", "meaning"), rows)


def meanings(kind: type) -> dict[str, str]:
    """What a docstring's `Attributes` say of each name; names that share a text share it here too."""
    found: dict[str, str] = {}
    _, _, told = inspect.getdoc(kind).partition("Attributes:\n")  # type: ignore[union-attr]
    for names, text in re.findall(r"^ {4}(\w+(?:, \w+)*): (.*(?:\n {6,}.*)*)", told, re.M):
        found |= dict.fromkeys(names.split(", "), text)
    return found


def _type(kind: Any) -> str:
    """In the words of TOML."""
    info = msgspec.inspect.type_info(kind)
    match info:
        case msgspec.inspect.UnionType(types=types):
            return " or ".join(_of(one) for one in types if not isinstance(one, msgspec.inspect.NoneType))
        case _:
            return _of(info)


def _of(info: msgspec.inspect.Type) -> str:
    match info:
        case msgspec.inspect.LiteralType(values=values):
            return ", ".join(markdown.code(msgspec.json.encode(value).decode()) for value in values)
        case msgspec.inspect.EnumType(cls=cls):
            return ", ".join(markdown.code(f'"{one.name}"') for one in cls)
        case msgspec.inspect.ListType() | msgspec.inspect.VarTupleType():
            return f"list of {_of(info.item_type)}"
        case msgspec.inspect.DictType():
            return "table"
        case msgspec.inspect.IntType() | msgspec.inspect.FloatType():
            return " ".join(filter(None, ("whole number" if _is_whole(info) else "number", _bounds(info))))
        case msgspec.inspect.BoolType():
            return "`true`, `false`"
    return "text"


def _is_whole(info: msgspec.inspect.Type) -> bool:
    return isinstance(info, msgspec.inspect.IntType)


def _bounds(info: msgspec.inspect.IntType | msgspec.inspect.FloatType) -> str:
    said = ((info.gt, "> "), (info.ge, "≥ "), (info.lt, "< "), (info.le, "≤ "))
    return ", ".join(f"{sign}{value:g}" for value, sign in said if value is not None)


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.default_factory is not msgspec.NODEFAULT:
        return markdown.code(msgspec.json.encode(field.default_factory()).decode())
    if field.default is msgspec.NODEFAULT:
        return "needed"
    if field.default is None:
        return ""
    name = getattr(field.default, "name", None)
    return markdown.code(f'"{name}"' if name else msgspec.json.encode(field.default).decode())
