"""Any ONNX graph: arrays by name in and out, or pictures made into its input as its options say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("workers.models.onnx")
import onnxruntime  # noqa: E402
from onnx import TensorProto, helper  # noqa: E402
from PIL import Image  # noqa: E402

from tests.models import graphs  # noqa: E402
from tests.support import Running  # noqa: E402
from workers.models.base import Input, Spec  # noqa: E402
from zoo.errors import InvalidInput, LoadFailed  # noqa: E402

pytestmark = pytest.mark.models

FLOAT, BYTES = TensorProto.FLOAT, TensorProto.UINT8
LEFT = np.arange(12, dtype=np.float32).reshape(4, 3)
RIGHT = np.arange(6, dtype=np.float32).reshape(3, 2)
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def load(path: Path, **options: Any) -> Any:
    model = onnx.OnnxGraph()
    model.load(Spec(name="it", path=path, options=options), "cpu")
    return model


def fails(path: Path, **options: Any) -> str:
    with pytest.raises(LoadFailed) as told:
        load(path, **options)
    assert str(told.value).startswith("it: ")
    assert not told.value.retryable
    return str(told.value)


def ask(model: Any, *arrays: np.ndarray, **options: Any) -> dict[str, Any]:
    (answer,) = model.predict([Input(arrays[0], options, list(arrays))])
    return answer


def echo(path: Path, shape: graphs.Axes, kind: int = FLOAT) -> Path:
    """A graph that answers its input."""
    node = helper.make_node("Identity", ["x"], ["y"])
    return graphs.save(path, [node], {"x": (kind, shape)}, {"y": (kind, shape)})


# ---------------------------------------------------------------- arrays


def test_arrays_in_the_graphs_order_or_by_name(tmp_path: Path) -> None:
    model = load(graphs.linear(tmp_path / "model.onnx"))
    for answer in (ask(model, LEFT, RIGHT), ask(model, RIGHT, LEFT, inputs=["right", "left"])):
        assert list(answer) == ["total", "same"]
        np.testing.assert_array_equal(answer["total"], LEFT @ RIGHT)
        np.testing.assert_array_equal(answer["same"], LEFT)
    assert list(ask(model, LEFT, RIGHT, outputs=["same"])) == ["same"]
    assert list(ask(load(tmp_path / "model.onnx", outputs=["same"]), LEFT, RIGHT)) == ["same"]


def test_arrays_that_the_graph_does_not_take(tmp_path: Path) -> None:
    model = load(graphs.linear(tmp_path / "model.onnx"))
    for arrays, said in (
        ([LEFT], r"2 arrays \(left, right\), got 1"),
        ([LEFT, RIGHT, RIGHT], "got 3"),
        ([LEFT.astype(np.float64), RIGHT], r"left float32 \(n, 3\); got float64 \(4, 3\)"),
        ([LEFT, RIGHT.T], r"right float32 \(3, 2\); got float32 \(2, 3\)"),
        ([LEFT[0], RIGHT], r"got float32 \(3,\)"),
    ):
        with pytest.raises(InvalidInput, match=f"^frame: .*{said}"):
            ask(model, *arrays)
    for options, said in (
        ({"inputs": ["left"]}, "inputs: the graph takes left, right"),
        ({"inputs": ["left", "left"]}, "inputs"),
        ({"outputs": ["nothing"]}, "outputs: the graph answers total, same"),
        ({"outputs": []}, "outputs"),
        ({"image": {}}, "image is set in config"),
    ):
        with pytest.raises(InvalidInput, match=f"^options: {said}"):
            ask(model, LEFT, RIGHT, **options)
    with pytest.raises(InvalidInput, match=r"^boxes: this model takes arrays"):
        model.predict([Input(LEFT[:1, :1], {}, whole=LEFT, box=(0, 0, 1, 1))])


def test_sizes_that_disagree_inside_of_the_graph_leave_the_model_as_it_was(tmp_path: Path) -> None:
    node = helper.make_node("MatMul", ["a", "b"], ["c"])
    inputs = {"a": (FLOAT, ("n", "k")), "b": (FLOAT, ("k", "m"))}
    model = load(graphs.save(tmp_path / "model.onnx", [node], inputs, {"c": (FLOAT, ("n", "m"))}))
    with pytest.raises(Exception, match="MatMul"):
        ask(model, LEFT, LEFT)
    np.testing.assert_array_equal(ask(model, LEFT, RIGHT)["c"], LEFT @ RIGHT)


@pytest.mark.parametrize(
    "kind", [FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT64, TensorProto.BOOL, BYTES]
)
def test_types_of_arrays(kind: int, tmp_path: Path) -> None:
    model = load(echo(tmp_path / "model.onnx", ("n", 2), kind))
    sent = np.array([[0, 1], [1, 0]]).astype(helper.tensor_dtype_to_np_dtype(kind))
    answer = ask(model, sent)["y"]
    assert answer.dtype == sent.dtype
    np.testing.assert_array_equal(answer, sent)


def test_a_number_without_axes(tmp_path: Path) -> None:
    assert float(ask(load(echo(tmp_path / "model.onnx", ())), np.array(2.5, np.float32))["y"]) == 2.5


def test_what_is_no_array_of_numbers_is_refused_when_it_is_loaded(tmp_path: Path) -> None:
    path = echo(tmp_path / "model.onnx", (1,), TensorProto.STRING)
    assert "x tensor(string) (1), which is no array of numbers" in fails(path)
    both = graphs.save(
        path,
        [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("SequenceConstruct", ["x"], ["z"])],
        {"x": (FLOAT, (1,))},
        {"y": (FLOAT, (1,))},
    )
    model = graphs.opened(both)
    model.graph.output.append(helper.make_tensor_sequence_value_info("z", FLOAT, (1,)))
    both.write_bytes(model.SerializeToString())
    assert "z seq(tensor(float))" in fails(both)
    assert list(ask(load(both, outputs=["y"]), np.ones(1, np.float32))) == ["y"]


def test_a_graph_that_fails_on_its_own_sizes_fails_to_load(tmp_path: Path) -> None:
    nodes = [helper.make_node("Reshape", ["x", "to"], ["y"])]
    path = graphs.save(
        tmp_path / "model.onnx", nodes, {"x": (FLOAT, (2, 3)), "to": (TensorProto.INT64, (1,))}, {"y": (FLOAT, None)}
    )
    assert "cannot be run" in fails(path)


# ---------------------------------------------------------------- pictures


def prepared(
    frame: np.ndarray, box: tuple[float, ...] | None = None, scale: int = Image.Resampling.BILINEAR
) -> np.ndarray:
    """(1, 3, 32, 48) as torchvision's transforms make it."""
    pixels = np.asarray(Image.fromarray(np.ascontiguousarray(frame)).resize((48, 32), scale, box)).astype(np.float32)
    return ((pixels / 255 - np.array(MEAN, np.float32)) / np.array(STD, np.float32)).transpose(2, 0, 1)[None]


def test_pictures_are_answered_as_by_onnxruntime_itself(tmp_path: Path, bus: np.ndarray, zidane: np.ndarray) -> None:
    path = graphs.classifier(tmp_path / "model.onnx")
    direct = onnxruntime.InferenceSession(path)
    model = load(path, image={"mean": MEAN, "std": STD}, max_batch=2)
    assert model.max_batch == 2
    backwards = np.ascontiguousarray(zidane[..., ::-1])[..., ::-1]
    frames = [bus, zidane[:300, 100:700], backwards]
    answers = model.predict([Input(frame, {}) for frame in frames])
    for frame, answer in zip(frames, answers, strict=True):
        scores, colours = direct.run(None, {"pixels": prepared(frame)})
        np.testing.assert_allclose(answer["scores"], scores, rtol=1e-4)
        np.testing.assert_allclose(answer["colours"], colours, rtol=1e-4, atol=1e-5)
        assert answer["scores"].shape == (1, 4)


@pytest.mark.parametrize("order", ["nchw", "nhwc"])
def test_how_a_picture_becomes_an_input(order: str, tmp_path: Path, bus: np.ndarray) -> None:
    shape = ("n", 3, 32, 48) if order == "nchw" else ("n", 32, 48, 3)
    path = echo(tmp_path / "model.onnx", shape)

    def seen(frame: np.ndarray = bus, **image: Any) -> np.ndarray:
        value = ask(load(path, image=image), frame)["y"]
        return value if order == "nchw" else value.transpose(0, 3, 1, 2)

    norm = {"mean": MEAN, "std": STD}
    np.testing.assert_allclose(seen(**norm), prepared(bus), atol=1e-5)
    np.testing.assert_allclose(seen(**norm, filter="bicubic"), prepared(bus, scale=Image.Resampling.BICUBIC), atol=1e-5)
    np.testing.assert_allclose(seen(color="bgr"), seen()[:, ::-1], atol=1e-6)
    np.testing.assert_allclose(seen(factor=1), seen() * 255, rtol=1e-5)
    middle = (0.0, 270.0, 810.0, 810.0)  # of 810x1080, in 48:32
    np.testing.assert_allclose(seen(**norm, resize="crop"), prepared(bus, middle), atol=1e-5)
    half = (202.5, 405.0, 607.5, 675.0)
    np.testing.assert_allclose(seen(**norm, resize="crop", keep=0.5), prepared(bus, half), atol=1e-5)
    for strip in (bus[:1], bus[:, :1], bus[:1, :1]):
        for resize in ("stretch", "crop"):
            assert seen(strip, resize=resize).shape == (1, 3, 32, 48)


def test_an_input_of_bytes_gets_the_bytes(tmp_path: Path, bus: np.ndarray) -> None:
    model = load(echo(tmp_path / "model.onnx", (1, "h", "w", 3), BYTES), image={"size": [10, 20]})
    expected = np.asarray(Image.fromarray(bus).resize((20, 10), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(ask(model, bus)["y"], expected[None])
    assert model.max_batch == 1


def test_outputs_without_a_row_for_each_picture_are_asked_for_one_by_one(tmp_path: Path, bus: np.ndarray) -> None:
    node = helper.make_node("ReduceMean", ["x"], ["y"], keepdims=0)
    path = graphs.save(tmp_path / "model.onnx", [node], {"x": (FLOAT, ("n", 3, 8, 8))}, {"y": (FLOAT, ())})
    model = load(path, image={})
    assert model.max_batch == 1
    one, other = model.predict([Input(bus, {}), Input(255 - bus, {})])
    assert float(one["y"]) == pytest.approx(1 - float(other["y"]), abs=1e-2)


@pytest.mark.parametrize(("shape", "kind", "image", "said"), [
    ((1, 3, "h", "w"), FLOAT, {}, "size"), ((1, 3, 8, 8), FLOAT, {"size": 9}, "size"),
    ((1, 3, 8, 3), FLOAT, {}, "order"), ((3, 8, 8), FLOAT, {}, "order"), ((1, 1, 8, 8), FLOAT, {}, "order"),
    ((1, 3, 8, 8), FLOAT, {"order": "nhwc"}, "3 channels"),
    ((1, 3, 8, 8), TensorProto.INT64, {}, "no pixels"), ((1, 3, 8, 8), FLOAT, {"std": [1, 0, 1]}, "std"),
    ((1, 3, 8, 8), FLOAT, {"input": "other"}, "only input"), ((1, 3, 8, 8), FLOAT, {"mean": [1, 2]}, "mean"),
    ((1, 3, 8, 8), FLOAT, {"florble": 1}, "florble"), ((1, 3, 8, 8), FLOAT, {"factor": float("inf")}, "number"),
    ((2, 3, 8, 8), FLOAT, {}, "one at a time"),
])  # fmt: skip
def test_pictures_that_cannot_be_made_into_the_input(
    shape: graphs.Axes, kind: int, image: dict[str, Any], said: str, tmp_path: Path
) -> None:
    assert said in fails(echo(tmp_path / "model.onnx", shape, kind), image=image)


def test_a_picture_is_sent_for_the_only_input(tmp_path: Path, bus: np.ndarray) -> None:
    model = load(graphs.classifier(tmp_path / "model.onnx"), image={})
    assert ask(model, bus, inputs=["pixels"], outputs=["colours"])["colours"].shape == (1, 3)
    with pytest.raises(InvalidInput, match="inputs: the graph takes pixels"):
        ask(model, bus, inputs=["x"])
    with pytest.raises(InvalidInput, match="uint8 images, got shape"):
        ask(model, bus[..., 0])


def test_two_inputs_are_no_picture(tmp_path: Path) -> None:
    assert "only input" in fails(graphs.linear(tmp_path / "model.onnx"), image={})


# ---------------------------------------------------------------- through a broker


def test_a_client_sends_arrays_by_name(broker: Callable[..., Running]) -> None:
    running = broker(
        '[[models]]\nname = "linear"\nadapter = "workers.models.onnx:OnnxGraph"\nvram_mb = 50\npath = "model.onnx"\n',
        start=False,
    )
    weights = running.folder / "weights"
    weights.mkdir(exist_ok=True)
    graphs.linear(weights / "model.onnx")
    client = running.start().client()
    with client.frame((3, 2), "float32") as shared:
        shared.array[:] = RIGHT
        for sent in ({"left": LEFT, "right": RIGHT}, {"right": shared, "left": LEFT}, [LEFT, RIGHT]):
            answer = client.infer("linear", sent)
            np.testing.assert_array_equal(answer["total"], LEFT @ RIGHT)
    for sent, how in (
        ({}, {}),
        ({1: LEFT}, {}),
        ({"left": LEFT}, {}),
        ({"left": LEFT, "right": RIGHT}, {"inputs": ["left"]}),
    ):
        with pytest.raises(InvalidInput):
            client.infer("linear", sent, **how)
