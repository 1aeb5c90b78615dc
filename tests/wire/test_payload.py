"""Bodies: nothing in a message makes a reader look outside the memory it names, or raises an unexpected error."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from zoo import results
from zoo.errors import InvalidInput, ProtocolMismatch
from zoo.wire import payload
from zoo.wire.arrays import KINDS, view
from zoo.wire.payload import FrameRef, InferBody, ResultBody

wire_ints = st.integers(-(1 << 63), (1 << 64) - 1) | st.integers(-4, 40)
dtypes = st.sampled_from(["|u1", "<f4", ">i2", "<c16", "|b1", "<f2", "|O", "|V8", "<U3", "<M8[s]"]) | st.text(
    max_size=8
)


# ---------------------------------------------------------------- frames


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 300), wire_ints, st.lists(wire_ints, max_size=10).map(tuple), dtypes)
@example(10, 0, (0, 1 << 63), "|u1")
@example(10, 0, (0, 1 << 40, 1 << 40), "|u1")
@example(0, 0, (0,), "<f4")
@example(10, 10, (0,), "|u1")
@example(16, 0, (1 << 32, 1 << 32), "|u1")
@example(8, 0, ((1 << 64) - 1,), "<f4")
@example(8, 0, (2,), "(2,)f4")
@example(8, 0, (2,), "f4,f4")
def test_a_view_lies_inside_its_memory_or_is_refused(
    size: int, offset: int, shape: tuple[int, ...], dtype: str
) -> None:
    memory = np.arange(size, dtype=np.uint32).astype(np.uint8)
    try:
        array = view(memory, size, offset, shape, dtype)
    except InvalidInput as refused:
        text = str(refused)
        assert text.startswith(("dtype:", "shape:", "frame:"))
        return
    assert array.shape == shape
    assert not array.flags.writeable
    assert array.dtype.kind in KINDS
    assert offset >= 0
    assert offset + array.nbytes <= size
    assert array.tobytes() == memory[offset : offset + array.nbytes].tobytes()


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_a_garbled_request_is_an_invalid_input(raw: bytes) -> None:
    try:
        body = payload.unpack_request(raw)
    except InvalidInput as refused:
        text = str(refused)
        assert text.startswith("request body")
    else:
        assert isinstance(body, InferBody)


bodies = st.builds(
    InferBody,
    st.lists(
        st.builds(
            FrameRef,
            st.integers(-1, 9),
            wire_ints,
            st.lists(wire_ints, max_size=4).map(tuple),
            st.text(),
            st.text(),
            st.none() | st.tuples(wire_ints, wire_ints),
            st.none() | wire_ints,
            st.none() | st.tuples(*[st.floats(allow_nan=False)] * 2),
        ),
        max_size=3,
    ).map(tuple),
    st.none() | st.lists(st.tuples(*[st.floats(allow_nan=False)] * 4), max_size=3).map(tuple),
    st.dictionaries(
        st.text(max_size=5), st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5), max_size=3
    ),
)


@settings(max_examples=150, deadline=None)
@given(bodies, st.data())
def test_requests_round_trip_and_survive_damage(body: InferBody, data: st.DataObject) -> None:
    raw = payload.pack_request(body)
    assert payload.unpack_request(raw) == body
    cut = data.draw(st.integers(0, len(raw) - 1))
    with pytest.raises(InvalidInput):
        payload.unpack_request(raw[:cut])
    with pytest.raises(InvalidInput):
        payload.unpack_request(raw + b"\xc0")


@pytest.mark.parametrize("nested", [b"\x93\x90\xc0\x81\xa1x" + b"\x91" * 100_000, b"\x91" * 1_000_000])
def test_endless_nesting_is_an_invalid_input(nested: bytes) -> None:
    with pytest.raises(InvalidInput):
        payload.unpack_request(nested)


def test_options_that_cannot_travel_name_themselves() -> None:
    loop: dict[str, Any] = {}
    loop["x"] = loop
    for bad in ({"x": object()}, {"x": 1 << 70}, {"x": np.zeros(3)}, loop):
        with pytest.raises(InvalidInput, match="options"):
            payload.pack_request(InferBody((), None, bad))


# ---------------------------------------------------------------- results

arrays = hnp.arrays(
    st.sampled_from(["|u1", "<f4", ">f8", "<i8", "|b1", "<c8", "<f2"]),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
)
words = st.lists(st.text(max_size=6), max_size=4)
maybe = st.none() | arrays
typed = (
    st.builds(results.Detections, boxes=arrays, scores=arrays, class_ids=arrays, labels=words, masks=maybe)
    | st.builds(results.Keypoints, points=arrays, scores=arrays, boxes=maybe, names=words, postures=words)
    | st.builds(results.Classification, labels=words, scores=arrays)
    | st.builds(results.Embedding, vector=arrays)
    | st.builds(results.DepthMap, depth=arrays)
    | st.builds(
        results.Segmentation, mask=arrays, labels=words, coverage=st.dictionaries(st.text(max_size=4), st.floats(0, 1))
    )
    | st.builds(results.OcrText, text=st.text(), lines=words, scores=arrays, boxes=maybe, score=st.floats(0, 1))
    | st.builds(results.Quality, score=st.floats(0, 100), verdict=st.text(max_size=5))
    | st.builds(results.Action, labels=words, scores=arrays)
)
leaves = st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text(max_size=5) | arrays
plain = st.dictionaries(
    st.text(max_size=5),
    st.recursive(leaves, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=4), x, max_size=3)),
    max_size=4,
)


class Shelf:
    """Stands for the worker's arena: every other array goes into it."""

    def __init__(self) -> None:
        self.memory = np.zeros(1 << 16, np.uint8)
        self.offsets: list[int] = []
        self.end = 0
        self.count = 0

    def place(self, value: np.ndarray) -> int | None:
        self.count += 1
        if self.count % 2 or self.end + value.nbytes + 16 > len(self.memory):
            return None
        offset, self.end = self.end, self.end + -(-max(1, value.nbytes) // 16) * 16
        self.memory[offset : offset + value.nbytes] = np.frombuffer(value.tobytes(), np.uint8)
        self.offsets.append(offset)
        return offset

    def look_up(self, offset: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        return view(self.memory, len(self.memory), offset, shape, dtype)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return (
            isinstance(b, np.ndarray)
            and (a.shape, a.dtype) == (b.shape, b.dtype)
            and a.tobytes() == b.tobytes()
            and not b.flags.writeable
        )
    if isinstance(a, results.TypedResult):
        return type(a) is type(b) and all(same(getattr(a, f), getattr(b, f)) for f in a.__struct_fields__)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(v, b[k]) for k, v in a.items())
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or (a != a and b != b))


@settings(max_examples=300, deadline=None)
@given(st.lists(typed | plain, min_size=1, max_size=3))
def test_results_round_trip(answers: list[Any]) -> None:
    shelf = Shelf()
    raw, offsets = payload.pack_result(ResultBody(answers, many=True), shelf.place)
    assert list(offsets) == shelf.offsets
    body = payload.result_decoder(shelf.look_up)(raw)
    assert body.many
    assert same(answers, body.results)


def test_numpy_scalars_arrive_as_plain_numbers() -> None:
    raw, _ = payload.pack_result(ResultBody([{"a": np.float32(0.5), "b": np.int64(3), "c": np.bool_(True)}]), no_place)
    assert payload.result_decoder(no_look_up)(raw).results == [{"a": 0.5, "b": 3, "c": True}]


def no_place(_: np.ndarray) -> None:
    return None


def no_look_up(offset: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return view(bytes(64), 64, offset, shape, dtype)


@pytest.mark.parametrize(
    "bad", [object(), np.array(["a"]), np.array([object()]), np.zeros(2, "M8[s]"), {1, 2}.__iter__()]
)
def test_what_a_result_may_not_hold_is_the_adapters_fault(bad: Any) -> None:
    with pytest.raises(TypeError):
        payload.pack_result(ResultBody([{"x": bad}]), no_place)


def unreadable(raw: bytes) -> None:
    with pytest.raises(ProtocolMismatch):
        payload.result_decoder(no_look_up)(raw)


def with_ext(code: int, data: bytes) -> bytes:
    return msgspec.msgpack.encode([[{"x": msgspec.msgpack.Ext(code, data)}], False])


def test_garbled_extensions_are_protocol_mismatches() -> None:
    encode = msgspec.msgpack.encode
    for code in (payload.EXT_INLINE, payload.EXT_ARENA, 0, 3, 127, -2, -128):
        for data in (b"", b"\xff", b"\x93\x00", bytes(20), b"\x91" * 5000):
            unreadable(with_ext(code, data))
    unreadable(with_ext(payload.EXT_INLINE, encode(["|u1", [5], b"1234"])))
    unreadable(with_ext(payload.EXT_INLINE, encode(["|O", [1], bytes(8)])))
    unreadable(with_ext(payload.EXT_INLINE, encode(["<f4", [-1], bytes(8)])))
    unreadable(with_ext(payload.EXT_ARENA, encode([0, "|u1", [65]])))
    unreadable(with_ext(payload.EXT_ARENA, encode([-1, "|u1", [1]])))
    unreadable(with_ext(payload.EXT_ARENA, encode([0, "|u1", [0, 1 << 63]])))


def test_wrong_shapes_of_results_are_protocol_mismatches() -> None:
    encode = msgspec.msgpack.encode
    unreadable(encode([[["embedding", "not an array"]], False]))
    unreadable(encode([[["no-such-type", 1]], False]))
    unreadable(encode([[], False]))
    unreadable(encode([[{}, {}], False]))
    unreadable(b"\x91" * 100_000)
    assert payload.result_decoder(no_look_up)(encode([[], True])).results == []


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=120), st.integers(-128, 127))
def test_a_garbled_result_is_a_protocol_mismatch(noise: bytes, code: int) -> None:
    for raw in (noise, with_ext(code, noise)):
        try:
            payload.result_decoder(no_look_up)(raw)
        except ProtocolMismatch:
            pass


@settings(max_examples=150, deadline=None)
@given(st.lists(typed | plain, min_size=1, max_size=2), st.data())
def test_a_damaged_result_is_a_protocol_mismatch_or_another_result(answers: list[Any], data: st.DataObject) -> None:
    raw = bytearray(payload.pack_result(ResultBody(answers, many=True), no_place)[0])
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        payload.result_decoder(no_look_up)(bytes(raw))
    except ProtocolMismatch:
        pass


def test_nbytes() -> None:
    assert FrameRef(1, 0, (2, 3, 4), "<f4").nbytes == math.prod((2, 3, 4)) * 4
