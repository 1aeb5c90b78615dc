"""The wire: what is packed comes back, what is garbled is a ProtocolMismatch, and docs/protocol.md says the truth."""

from __future__ import annotations

import fcntl
import mmap
import os
import re
import socket
import struct
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import zmq
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support import Running
from zoo import errors, results
from zoo.config.schema import ModelConfig
from zoo.errors import ProtocolMismatch
from zoo.timings import Timings
from zoo.wire import payload, protocol

DOC = (Path(__file__).parent.parent.parent / "docs/protocol.md").read_text(encoding="utf-8")

Unpack = Callable[[bytes], Any]
FAMILIES: list[tuple[Any, Unpack]] = [
    (protocol.FromClient, protocol.unpack_from_client),
    (protocol.FromBroker, protocol.unpack_from_broker),
    (protocol.FromWorker, protocol.unpack_from_worker),
    (protocol.LifelineMessage, protocol.unpack_lifeline),
    (protocol.Dispatch, protocol.unpack_dispatch),
]
KINDS: list[tuple[type[protocol.Message], Unpack]] = [
    (kind, unpack) for family, unpack in FAMILIES for kind in (typing.get_args(family) or (family,))
]

# ---------------------------------------------------------------- there and back

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=9),
    lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=5), x, max_size=4),
    max_leaves=8,
)
BY_TYPE: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(-(1 << 63), (1 << 64) - 1),
    float: st.floats(allow_nan=False),
    bool: st.booleans(),
    str: st.text(max_size=30),
    bytes: st.binary(max_size=30),
    str | None: st.none() | st.text(max_size=30),
    float | None: st.none() | st.floats(allow_nan=False),
    tuple[int, ...]: st.lists(st.integers(0, 1 << 40), max_size=6).map(tuple),
    tuple[float, float, float]: st.tuples(*[st.floats(allow_nan=False)] * 3),
    tuple[bytes, ...]: st.lists(st.binary(max_size=20), max_size=4).map(tuple),
    Any: plain,
}


def messages_of(kind: type[protocol.Message | protocol.Item | Timings]) -> st.SearchStrategy[Any]:
    fields = {}
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        if typing.get_origin(hint) is typing.Annotated:
            fields[name] = st.integers(hint.__metadata__[0].ge, hint.__metadata__[0].le)
        else:
            fields[name] = BY_TYPE[hint]
    return st.builds(kind, **fields)


BY_TYPE[Timings] = messages_of(Timings)
BY_TYPE[protocol.Shortage | None] = st.none() | messages_of(protocol.Shortage)
for _item in (protocol.Job, protocol.Outcome):
    BY_TYPE[tuple[_item, ...]] = st.lists(messages_of(_item), max_size=3).map(tuple)


@pytest.mark.parametrize(("kind", "unpack"), KINDS, ids=[k.__name__ for k, _ in KINDS])
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_message_comes_back_as_it_was_and_never_half(
    kind: type[protocol.Message], unpack: Unpack, data: st.DataObject
) -> None:
    message = data.draw(messages_of(kind))
    raw = protocol.pack(message)
    assert unpack(raw) == message
    assert raw[0] == protocol.VERSION
    cut = data.draw(st.integers(0, len(raw) - 1))
    for damaged in (raw[:cut], raw + b"\x00", raw + raw):
        with pytest.raises(ProtocolMismatch):
            unpack(damaged)
    spoiled = bytearray(raw)
    spoiled[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    unpack_or_mismatch(unpack, bytes(spoiled))


def unpack_or_mismatch(unpack: Unpack, raw: bytes) -> None:
    try:
        message = unpack(raw)
    except ProtocolMismatch:
        return
    assert isinstance(message, protocol.Message)


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=80) | st.binary(max_size=80).map(lambda b: bytes([protocol.VERSION]) + b))
@example(b"\x01" + b"\x91" * 60_000)
@example(b"\x01\x95\x04\x01" + b"\x91" * 60_000)
@example(b"\x01\xdd\xff\xff\xff\xff")
@example(b"\x01\x94\x04\x01\xc7\x0c\xff" + b"\xff" * 12)
@example(b"\x01\x93\x04\x01\x81\x90\x01")
@example(b"\x01\x93\x04\x01\x81\x80\x01")
def test_garbage_is_a_protocol_mismatch_and_nothing_else(raw: bytes) -> None:
    for _, unpack in FAMILIES:
        unpack_or_mismatch(unpack, raw)


def test_another_version_is_named() -> None:
    raw = protocol.pack(protocol.Ping())
    for version in set(range(256)) - {protocol.VERSION}:
        with pytest.raises(ProtocolMismatch, match=f"version {version},"):
            protocol.unpack_from_client(bytes([version]) + raw[1:])
    with pytest.raises(ProtocolMismatch, match="version nothing"):
        protocol.unpack_from_client(b"")


def test_headers_have_a_size() -> None:
    at_most = protocol.MAX_HEADER_BYTES
    fits = protocol.pack(protocol.Query(1, "x" * (at_most - 9)))
    assert len(fits) == at_most
    assert isinstance(protocol.unpack_from_client(fits), protocol.Query)
    with pytest.raises(ProtocolMismatch, match="the limit is"):
        protocol.unpack_from_client(protocol.pack(protocol.Query(1, "x" * (at_most - 8))))


def test_a_long_story_fits_into_an_answer() -> None:
    """`explain` after a month: 2000 lines are more than a header from a client may have."""
    value = ["x" * 300] * 2000
    assert protocol.unpack_from_broker(protocol.pack(protocol.Value(1, value))).value == value  # type: ignore[union-attr]
    with pytest.raises(ProtocolMismatch, match="the limit is"):
        protocol.unpack_from_broker(protocol.pack(protocol.Value(1, "x" * protocol.MAX_VALUE_BYTES)))


def test_elements_past_the_last_known_one_are_ignored_and_defaults_may_be_left_out() -> None:
    version = bytes([protocol.VERSION])
    extra = version + msgspec.msgpack.encode([2, 5, "m", 100, 1, [3], "of a later release"])
    assert protocol.unpack_from_client(extra) == protocol.Infer(5, "m", 100, 1, (3,))
    assert protocol.unpack_from_client(version + msgspec.msgpack.encode([2, 5, "m", 100])) == protocol.Infer(
        5, "m", 100
    )


@pytest.mark.parametrize("code", sorted(errors.BY_CODE))
def test_every_error_survives_the_wire(code: str) -> None:
    there = errors.BY_CODE[code]("what happened", retryable=True, retry_after=1.5)
    message = protocol.Error(3, there.code, str(there), there.retryable, there.retry_after, False, 17)
    back = protocol.unpack_from_broker(protocol.pack(message)).exception()  # type: ignore[union-attr]
    assert type(back) is type(there)
    assert (str(back), back.retryable, back.retry_after, back.request) == ("what happened", True, 1.5, 17)


def test_an_error_that_this_side_does_not_know_is_still_an_error() -> None:
    assert type(protocol.Error(1, "made_later", "x").exception()) is errors.ZooError


# ---------------------------------------------------------------- docs/protocol.md


def spelled(hint: Any) -> str:
    """A field's type as the document says it."""
    if typing.get_origin(hint) is typing.Annotated:
        return "rid" if hint.__metadata__[0].ge == 1 else "rid or 0"
    if isinstance(hint, types.UnionType):
        return " or ".join("nil" if part is type(None) else spelled(part) for part in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        inner = typing.get_args(hint)
        if inner[-1] is Ellipsis:
            return f"[{spelled(inner[0])}]"
        return "[" + ", ".join(map(spelled, inner)) + "]"
    if typing.get_origin(hint) in (list, dict):
        inside = [spelled(part) for part in typing.get_args(hint)]
        return f"[{inside[0]}]" if typing.get_origin(hint) is list else "{" + ": ".join(inside) + "}"
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return hint.__name__
    return {int: "int", float: "float", bool: "bool", str: "str", bytes: "bin", Any: "any", np.ndarray: "array"}[hint]


def fields_of(kind: type[msgspec.Struct]) -> str:
    """The fields in order, as the document spells them."""
    hints = typing.get_type_hints(kind, include_extras=True)
    shown = []
    for field in msgspec.structs.fields(kind):
        text = f"`{field.name}` {spelled(hints[field.name])}"
        if not field.required:
            made = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()  # type: ignore[operator]
            text += " = " + ("nil" if made is None else msgspec.json.encode(made).decode())
        shown.append(text)
    return ", ".join(shown) if shown else "–"


def documented(kind: type[msgspec.Struct]) -> str:
    tag = msgspec.json.encode(kind.__struct_config__.tag).decode()
    return f"| `{kind.__name__}` | {tag} | {fields_of(kind)} |"


@pytest.mark.parametrize("kind", [k for k, _ in KINDS], ids=lambda k: k.__name__)
def test_every_message_is_documented_field_by_field(kind: type[protocol.Message]) -> None:
    assert documented(kind) in DOC, f"docs/protocol.md lacks the row\n{documented(kind)}"


def test_no_message_is_left_out() -> None:
    everything = {k for k in vars(protocol).values() if isinstance(k, type) and issubclass(k, protocol.Message)}
    assert everything - {protocol.Message} == {kind for kind, _ in KINDS}


RESULTS = [k for k in typing.get_args(results.AnyResult) if isinstance(k, type)]


@pytest.mark.parametrize("kind", RESULTS, ids=lambda k: k.__name__)
def test_every_typed_result_is_documented_field_by_field(kind: type[results.TypedResult]) -> None:
    assert documented(kind) in DOC, f"docs/protocol.md lacks the row\n{documented(kind)}"


@pytest.mark.parametrize("kind", [payload.FrameRef, payload.InferBody, Timings], ids=lambda k: k.__name__)
def test_what_lies_in_messages_and_bodies_is_documented_field_by_field(kind: type[msgspec.Struct]) -> None:
    assert f"| `{kind.__name__}` | {fields_of(kind)} |" in DOC, fields_of(kind)


def test_every_error_is_documented() -> None:
    for code, kind in errors.BY_CODE.items():
        if kind not in (errors.ZooError, errors.ConfigError):
            assert f"| `{code}` | {'yes' if kind.retryable else 'no'} |" in DOC, code


def test_every_limit_is_documented() -> None:
    rows = dict(re.findall(r"^\| `([A-Z_]+)` \| ([\d.]+) \|", DOC, re.MULTILINE))
    limits = {k: v for k, v in vars(protocol).items() if k.isupper() and isinstance(v, int | float) and k[0] != "_"}
    assert {k: float(v) for k, v in rows.items()} == {k: float(v) for k, v in limits.items() if k != "VERSION"}


def section(title: str) -> str:
    return DOC.split(f"{title}\n", 1)[1].split("\n#", 1)[0]


def named_in(title: str) -> set[str]:
    return set(re.findall(r"^\| `([a-z0-9_.]+)` \|", section(title), re.MULTILINE))


def test_the_fields_of_status_models_and_ps_are_documented(shared_broker: Running) -> None:
    client = shared_broker.client()
    client.infer("toy", np.zeros((2, 2, 3), np.uint8))
    status = client.get_status()
    keys = set(status)
    for part in ("loaded_models", "devices"):
        keys |= {f"{part}.{key}" for key in status[part][0]}
    keys |= {f"broker.{key}" for key in status["broker"]}
    assert named_in("### `status`") == keys
    assert named_in("### `models`") == {key for row in client.models() for key in row}
    assert named_in("### `ps`") == {key for row in client.processes() for key in row}
    overview = client.overview()
    (times,) = overview["times"].values()
    keys = {*overview, *(f"lines.{key}" for key in overview["lines"][0]), *(f"times.{key}" for key in times)}
    assert {name for name in named_in("### `overview`") if not name.startswith("waiting.")} == keys
    assert set(ModelConfig.__struct_fields__) >= {"name", "category", "vram_mb"}


# ---------------------------------------------------------------- the worked example

NAMES: dict[str, Any] = {
    **{k.__name__: k for k, _ in KINDS},
    **{k.__name__: k for k in RESULTS},
    "FrameRef": payload.FrameRef,
    "InferBody": payload.InferBody,
    "Timings": Timings,
    "ResultBody": payload.ResultBody,
    "f32": lambda *v: np.array(v, np.float32),
    "i32": lambda *v: np.array(v, np.int32),
    "zeros": lambda *shape: np.zeros(shape, np.float32),
}


def example_lines() -> list[tuple[str, bytes]]:
    """(expression, bytes) of each line of the document's `wire` block: an expression, then its bytes in hex."""
    (block,) = re.findall(r"^```wire\n(.*?)^```", DOC, re.MULTILINE | re.DOTALL)
    found: list[tuple[str, bytes]] = []
    for text in block.splitlines():
        if text.startswith("    "):
            expression, raw = found[-1]
            found[-1] = expression, raw + bytes.fromhex(text)
        elif text.strip():
            found.append((text.split(":", 1)[1].strip(), b""))
    return found


def encoded(value: Any) -> bytes:
    if isinstance(value, protocol.Message):
        return protocol.pack(value)
    if isinstance(value, payload.InferBody):
        return payload.pack_request(value)
    large = 100  # stands for INLINE_RESULT_BYTES, so that the example stays short
    return payload.pack_result(value, lambda array: 4096 if array.nbytes > large else None)[0]


def test_the_worked_example_is_true() -> None:
    lines = example_lines()
    assert len(lines) >= 12
    for expression, raw in lines:
        value = eval(expression, {"__builtins__": {}}, NAMES)
        assert encoded(value) == raw, f"{expression}\n{encoded(value).hex(' ')}"


def test_the_example_can_be_read_back() -> None:
    for expression, raw in example_lines():
        name = expression.split("(")[0]
        if name == "InferBody":
            assert payload.unpack_request(raw).frames
        elif name == "ResultBody":
            decode = payload.result_decoder(lambda offset, shape, dtype: np.zeros(shape, dtype))
            assert decode(raw).results
        else:
            unpack = next(u for k, u in KINDS if k.__name__ == name)
            assert type(unpack(raw)).__name__ == name


def test_a_client_written_from_the_document_alone_gets_its_answer(shared_broker: Running) -> None:
    """No line of ours but the MessagePack library: sockets, arrays of values and a memfd."""
    encode, decode = msgspec.msgpack.encode, msgspec.msgpack.decode
    key = os.urandom(8)
    front = zmq.Context.instance().socket(zmq.DEALER)
    front.setsockopt(zmq.ROUTING_ID, key + b"any tail")
    front.setsockopt(zmq.RCVTIMEO, 10_000)
    front.connect(shared_broker.endpoint)
    front.send(b"\x01" + encode([1, key, os.getpid(), "by the book"]))
    tag, handoff, limit, *_ = decode(front.recv()[1:])
    assert tag == 1
    fd = os.memfd_create("mine", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as line:
        line.settimeout(10.0)
        line.connect(handoff)
        line.send(b"\x01" + encode([1, "client", key]))
        assert decode(line.recv(4096)[1:]) == [3, 0]
        size = 4096
        assert size <= limit
        os.ftruncate(fd, size)
        os.posix_fallocate(fd, 0, size)
        memory = mmap.mmap(fd, size)
        fcntl.fcntl(fd, 1033, 0x1 | 0x2 | 0x4 | 0x10)
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", fd))
        line.sendmsg([b"\x01" + encode([2, 0])], [rights])
        accepted, number = decode(line.recv(4096)[1:])
        assert accepted == 3
        memory[:12] = bytes(range(12))
        body = encode([[[number, 0, [2, 2, 3], "|u1", "rgb"]], None, {"do": "echo"}])
        front.send_multipart([b"\x01" + encode([2, 1, "toy", 10_000, 2, [number]]), body])
        header, answer = front.recv_multipart()
        assert decode(header[1:])[:3] == [2, 1, 0]
        ((result,), many) = decode(answer)
        assert not many
        assert result["array"].code == 1
        assert decode(result["array"].data) == ["|u1", [2, 2, 3], bytes(range(12))]
    front.close(0)
    os.close(fd)


def test_the_seals_and_numbers_of_the_document_are_the_ones_in_use() -> None:
    from zoo.wire import arena

    for name, value in arena.SEAL.items():
        assert f"F_SEAL_{name} {value:#x}" in DOC
    assert f"extension {payload.EXT_INLINE}" in DOC
    assert f"extension {payload.EXT_ARENA}" in DOC
