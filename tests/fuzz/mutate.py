"""Seeded damage to bytes and to messages: what all fuzzers here share."""

from __future__ import annotations

import os
import random
from typing import Any

import msgspec

from zoo.wire import protocol

CASES = int(os.environ.get("ZOO_FUZZ_CASES", "3000"))  # per target; `make fuzz CASES=1000000` for a long run
SEED = int(os.environ.get("ZOO_FUZZ_SEED", "1"))

ODD: list[Any] = [
    None, True, False, 0, 1, -1, 2, 7, 1 << 31, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, -(1 << 63), 0.0, -0.5, 1e308,
    float("nan"), float("inf"), "", "m", "\x00", "ä" * 300, "x" * 3000, b"", b"\x00" * 8, b"\xff" * 70, [], [[]],
    [0] * 300, {}, {"a": 1}, {1: 2}, ["|u1"], "|u1", "<f4", "|O", "encoded", [-1, 0, [4, 4, 3], "|u1", "rgb"],
]  # fmt: skip


def flipped(dice: random.Random, raw: bytes) -> bytes:
    """The bytes with a few of them changed, cut out, doubled or added."""
    data = bytearray(raw)
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(data) + 1)
        match dice.randrange(5):
            case 0:
                data[at : at + 1] = bytes([dice.randrange(256)])
            case 1:
                del data[at : at + dice.randint(1, 8)]
            case 2:
                data[at:at] = dice.randbytes(dice.randint(1, 8))
            case 3:
                data[at:at] = data[at : at + dice.randint(1, 16)]
            case _:
                data[at : at + 1] = dice.choice(
                    [b"\xdd\xff\xff\xff\xff", b"\xc0", b"\xcb" + b"\xff" * 8, b"\xc6\x7f\xff\xff\xff"]
                )
    return bytes(data)


def bent(dice: random.Random, value: Any) -> Any:
    """The same structure with one thing in it replaced, dropped or added: it decodes, and means something odd."""
    if isinstance(value, list) and value and dice.random() < 0.8:
        at = dice.randrange(len(value))
        changed = list(value)
        match dice.randrange(6):
            case 0:
                del changed[at]
            case 1:
                changed.insert(at, dice.choice(ODD))
            case _:
                changed[at] = bent(dice, changed[at])
        return changed
    return dice.choice(ODD)


def message(dice: random.Random, valid: list[protocol.Message]) -> bytes:
    """A header: one of the valid ones, whole, flipped or bent."""
    raw = protocol.pack(dice.choice(valid))
    how = dice.random()
    if how < 0.1:
        return raw
    if how < 0.4:
        return flipped(dice, raw)
    return raw[:1] + msgspec.msgpack.encode(bent(dice, msgspec.msgpack.decode(raw[1:])))
