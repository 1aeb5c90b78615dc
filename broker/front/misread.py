"""What to answer a message that is a known one but for a field: the request's own number, and the field's name."""

from __future__ import annotations

import re
import typing

import msgspec

from zoo.errors import InvalidInput, ProtocolMismatch
from zoo.wire import protocol

# A Cancel has no answer of its own: under its number the request that it names is answered.
_FIELDS = {
    kind.__struct_config__.tag: kind.__struct_fields__
    for kind in typing.get_args(protocol.FromClient)
    if "rid" in kind.__struct_fields__ and kind is not protocol.Cancel
}
_PLACE = re.compile(r"\$\[(\d+)\]")


def complaint(raw: bytes, error: ProtocolMismatch) -> tuple[int, str, str]:
    """`rid`, code and text of the `Error` that answers a header which could not be read because of `error`.

    `rid` is 0 when the header is no known message, or its own `rid` is bad.
    """
    text = str(error)
    fields, rid = _known(raw)
    if not fields:
        return 0, error.code, text
    found = _PLACE.search(text)
    at = int(found[1]) - 1 if found is not None else -1
    name = f"{fields[at]}: " if 0 <= at < len(fields) else ""
    return rid, InvalidInput.code, name + text


def _known(raw: bytes) -> tuple[tuple[str, ...], int]:
    """The names of the fields and the `rid`; of nothing when that cannot be told."""
    if raw[:1] != bytes([protocol.VERSION]) or len(raw) > protocol.MAX_HEADER_BYTES:
        return (), 0
    try:
        said = msgspec.msgpack.decode(raw[1:])
    except (msgspec.DecodeError, ValueError, TypeError, RecursionError):  # a TypeError: a map's key that is no key
        return (), 0
    if not isinstance(said, list) or len(said) < 2 or type(said[0]) is not int or type(said[1]) is not int:
        return (), 0
    return (_FIELDS.get(said[0], ()), said[1]) if 1 <= said[1] < 1 << 63 else ((), 0)
