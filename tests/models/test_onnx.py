"""The ONNX detector answers as ultralytics does from the same file, and what it does not understand it refuses."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("workers.models.onnx")
pytest.importorskip("ultralytics")
import torch  # noqa: E402
import torchvision  # noqa: E402
from onnx import TensorProto, helper  # noqa: E402
from ultralytics import YOLO  # noqa: E402
from ultralytics.utils.nms import non_max_suppression  # noqa: E402

from tests.models import graphs  # noqa: E402
from tests.support import ROOT  # noqa: E402
from workers.models.base import Input, Spec  # noqa: E402
from workers.models.graphs import heads, session  # noqa: E402
from zoo.demo import scenes, wheels  # noqa: E402
from zoo.errors import InferenceFailed, InvalidInput, LoadFailed, ModelUnavailable  # noqa: E402
from zoo.results import Detections  # noqa: E402

pytestmark = pytest.mark.models

HOW: dict[str, dict[str, Any]] = {
    "fixed": {"imgsz": [256, 320]},
    "dynamic": {"imgsz": 320, "dynamic": True},
    "nms inside": {"imgsz": 320, "nms": True},
}
NUDENET = wheels.Carried(  # the licence file in the wheel is the AGPL's, its metadata say MIT: for this test alone
    "nudenet", "3.4.2", "5937dbd84e5d8e5de038f08ffea5a1bb50a08475776bf2b4795914ce0eaf0331",
    "nudenet/320n.onnx", "c15d8273adad2d0a92f014cc69ab2d6c311a06777a55545f2c4eb46f51911f0f", "AGPL-3.0",
)  # fmt: skip
PICTURES = ("bus.jpg", "zidane.jpg", "astronaut.png", "chelsea.png", "coffee.png")
BLANK = np.zeros((64, 96, 3), np.uint8)


def load(path: Path | None, device: str = "cpu", **options: Any) -> Any:
    model = onnx.OnnxDetector()
    model.load(Spec(name="it", path=path, category="detection", options=options), device)
    return model


def fails(path: Path | None, error: type[Exception] = LoadFailed, **options: Any) -> str:
    with pytest.raises(error) as told:
        load(path, **options)
    assert str(told.value).startswith("it: ")
    assert not told.value.retryable  # type: ignore[attr-defined]
    return str(told.value)


def ask(model: Any, *frames: np.ndarray, **options: Any) -> list[Detections]:
    return model.predict([Input(frame, options) for frame in frames])


def same(found: Detections, rows: np.ndarray) -> None:
    """`rows`: x1, y1, x2, y2, score, class."""
    rows = rows[np.argsort(-rows[:, 4], kind="stable")]
    np.testing.assert_allclose(found.boxes, rows[:, :4], atol=1e-3)
    np.testing.assert_allclose(found.scores, rows[:, 4], atol=1e-5)
    np.testing.assert_array_equal(found.class_ids, rows[:, 5])


@pytest.fixture(scope="module")
def exported(standin: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def export(how: str) -> Path:
        if how not in made:
            path = tmp_path_factory.mktemp("export") / "model.onnx"
            made[how] = graphs.exported(standin("threat-detection-yolov8n"), path, **HOW[how])
        return made[how]

    return export


# ---------------------------------------------------------------- as the library


@pytest.mark.parametrize("how", ["fixed", "dynamic", pytest.param("nms inside", marks=pytest.mark.slow)])
def test_it_answers_as_ultralytics_does_from_the_same_file(
    how: str, exported: Callable[[str], Path], bus: np.ndarray, zidane: np.ndarray
) -> None:
    path = exported(how)
    model, library = load(path), YOLO(path, task="detect")
    for frame in (bus, zidane, bus[395:905, 50:245], zidane[:40, :900]):
        options = {} if how == "nms inside" else {"conf": 0.1, "iou": 0.5, "max_det": 40}
        (found,) = ask(model, frame, **options)
        (expected,) = library.predict(np.ascontiguousarray(frame[..., ::-1]), verbose=False, **options)
        same(found, expected.boxes.data.numpy())
        assert found.labels == [expected.names[i] for i in found.class_ids]
    assert len(ask(model, bus, conf=0.1)[0].boxes)


def test_a_batch_is_answered_as_each_alone(
    exported: Callable[[str], Path], bus: np.ndarray, zidane: np.ndarray
) -> None:
    model = load(exported("dynamic"), max_batch=2)
    assert model.max_batch == 2
    frames = [bus, zidane, bus[:540], bus[:, ::-1], np.ascontiguousarray(zidane[..., ::-1])[..., ::-1]]
    together = model.predict([Input(frame, {"conf": 0.1, "imgsz": 320}) for frame in frames])
    for frame, found in zip(frames, together, strict=True):
        (alone,) = ask(model, frame, conf=0.1, imgsz=320)
        np.testing.assert_allclose(found.boxes, alone.boxes, atol=1e-2)
        np.testing.assert_allclose(found.scores, alone.scores, atol=1e-4)
    np.testing.assert_allclose(together[1].boxes, together[4].boxes, atol=1e-2)
    assert load(exported("fixed")).max_batch == 1


def test_sizes(exported: Callable[[str], Path], bus: np.ndarray) -> None:
    fixed, dynamic = load(exported("fixed")), load(exported("dynamic"), imgsz=320, max_batch=1)
    with pytest.raises(InvalidInput, match=r"imgsz: this graph takes 320x256 pixels and no other"):
        ask(fixed, bus, imgsz=320)
    assert len(ask(fixed, bus, imgsz=(256, 320), conf=0.01)[0].boxes)
    with pytest.raises(InvalidInput, match=r"imgsz: 352x352 is more at once than the 102400 pixels"):
        ask(dynamic, bus, imgsz=340)
    assert len(ask(dynamic, bus, imgsz=150, conf=0.01)[0].boxes)
    assert "imgsz" in fails(exported("fixed"), imgsz=640)


def test_a_graph_of_any_size_may_take_one_picture_at_a_time(tmp_path: Path) -> None:
    path = graphs.saying(tmp_path / "model.onnx", np.full((1, 8, places()), 0.5), picture=(1, 3, "height", "width"))
    model = load(path, imgsz=[64, 96])
    assert model.max_batch == 1
    assert len(ask(model, *[BLANK] * 3, imgsz=32)) == 3  # nine of which have the pixels of one


def test_classes_by_label_in_any_spelling_or_by_number(exported: Callable[[str], Path], bus: np.ndarray) -> None:
    model = load(exported("fixed"))
    (everything,) = ask(model, bus, conf=0.01)
    assert set(everything.class_ids) > {0, 3}
    first, *_, last = model.labels
    for classes in ([first.upper(), last.lower()], [0, 3]):
        (found,) = ask(model, bus, conf=0.01, classes=classes)
        assert set(found.labels) == {first, last}
    with pytest.raises(InvalidInput, match=f"'car' is none of {', '.join(model.labels)}"):
        ask(model, bus, classes=["car"])
    assert "'car' is none of" in fails(exported("fixed"), classes=["car"])


@pytest.fixture(scope="module")
def real() -> Path:
    """A detector of body parts that a package carries: YOLOv8n as ultralytics 8.2 exported it."""
    pytest.importorskip("pip", reason="no pip here, which fetches the wheel")
    try:
        return wheels.fetch(NUDENET, ROOT / ".demo" / "wheels")
    except ModelUnavailable as e:
        if not e.retryable:
            raise
        pytest.skip(str(e))


@pytest.mark.slow
def test_real_weights_see_faces_and_answer_as_the_library_does(real: Path) -> None:
    model, library = load(real), YOLO(real, task="detect")
    faces = {}
    for name in PICTURES:
        frame = scenes.photograph(name)
        for options in ({"conf": 0.25}, {"conf": 0.01, "iou": 0.5, "imgsz": 320}, {"conf": 0.05, "classes": [1, 12]}):
            (found,) = ask(model, frame, **options)
            (expected,) = library.predict(np.ascontiguousarray(frame[..., ::-1]), verbose=False, **options)
            same(found, expected.boxes.data.numpy())
            assert found.labels == [expected.names[i] for i in found.class_ids]
        faces[name] = len(ask(model, frame, classes=["face male", "Face-Female"])[0].boxes)
    assert faces == {"bus.jpg": 2, "zidane.jpg": 1, "astronaut.png": 1, "chelsea.png": 0, "coffee.png": 0}


# ---------------------------------------------------------------- layouts


def places(strides: tuple[int, ...] = (8, 16, 32)) -> int:
    """Of a picture of 96x64."""
    return sum(-(-64 // s) * -(-96 // s) for s in strides)


def boxes(random: np.random.Generator, count: int) -> np.ndarray:
    """Centres and sizes, many of them over each other."""
    centres = random.uniform((0, 0), (96, 64), (count, 2)).round(-1)
    return np.hstack([centres + random.normal(size=(count, 2)), random.uniform(8, 20, (count, 2))]).astype(np.float32)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_scores_of_an_object_and_of_its_classes(kind: int, tmp_path: Path) -> None:
    """YOLOv5's layout, against the library's own suppression of the products."""
    random = np.random.default_rng(3)
    count = 3 * places()
    said = np.hstack([boxes(random, count), random.uniform(size=(count, 5)).astype(np.float32)])
    said = said.astype(helper.tensor_dtype_to_np_dtype(kind)).astype(np.float32)
    model = load(graphs.saying(tmp_path / "v5.onnx", said[None], kind=kind))
    (found,) = ask(model, BLANK, conf=0.3, iou=0.4, max_det=25)
    products = np.hstack([said[:, :4], said[:, 5:] * said[:, 4:5]]).T[None]
    (expected,) = non_max_suppression(torch.from_numpy(products.copy()), 0.3, 0.4, max_det=25)
    assert 10 < len(found.boxes) <= 25
    expected[:, :4] = expected[:, :4].clamp(torch.zeros(4), torch.tensor([96, 64, 96, 64]))
    same(found, expected.numpy())
    assert set(found.labels) <= set(graphs.LABELS)


def test_rows_that_are_answers_already(tmp_path: Path) -> None:
    said = np.zeros((1, 20, 6), np.float32)
    said[0, 3] = [10, 10, 30, 40, 0.5, 2]
    said[0, 7] = [12, 10, 30, 40, 0.75, 1]
    model = load(graphs.saying(tmp_path / "model.onnx", said))
    (found,) = ask(model, np.zeros((128, 192, 3), np.uint8))
    assert found.boxes.tolist() == [[24, 20, 60, 80], [20, 20, 60, 80]]
    assert found.labels == ["water_bottle", "Kite"]
    assert ask(model, BLANK, conf=0.6)[0].labels == ["water_bottle"]
    assert ask(model, BLANK, classes=["kite"])[0].labels == ["Kite"]
    assert ask(model, BLANK, max_det=1)[0].labels == ["Kite"]  # as the library: the first ones


def test_a_class_without_a_label(tmp_path: Path) -> None:
    said = np.full((1, 20, 6), [1, 2, 3, 4, 0.5, 4], np.float32)
    model = load(graphs.saying(tmp_path / "model.onnx", said), layout="end2end")
    with pytest.raises(InferenceFailed, match="a class 4; it has 4 labels"):
        ask(model, BLANK)


COUNTS = [1, 2, 4, 80]


@pytest.mark.parametrize("count", COUNTS)
def test_each_layout_is_told_from_the_others(count: int) -> None:
    random = np.random.default_rng(count)
    rows = random.uniform(size=(1, 300, 6)).astype(np.float32)
    rows[..., 5] = random.integers(count, size=(1, 300))
    for sides in ((640, 640), (384, 640), (64, 96), (32, 32)):
        n = sum(-(-sides[0] // s) * -(-sides[1] // s) for s in (8, 16, 32))
        for shape, layout in (
            ((1, 4 + count, n), "v8"), ((1, 3 * n, 5 + count), "v5"), ((1, n, 5 + count), None),
            ((1, n, 4 + count), None), ((1, 4 + count + 32, n), None), ((1, 300, 4 + count), None), ((1, 25, 7), None),
        ):  # fmt: skip
            output = random.uniform(0.01, 0.99, size=shape).astype(np.float32)
            assert heads.recognised(output, sides, count) == layout, (shape, sides)
        assert heads.recognised(rows, sides, count) == "end2end"


def test_numbers_that_two_layouts_could_have_are_not_guessed_at() -> None:
    """Three places for each cell, each with six numbers, the last of them whole."""
    n = 3 * places()
    assert heads.recognised(np.full((1, n, 6), 0.5, np.float32), (64, 96), 1) == "v5"
    assert heads.recognised(np.zeros((1, n, 6), np.float32), (64, 96), 1) is None


@pytest.mark.parametrize("said", [
    [np.full((1, places(), 9), 0.5)],  # YOLOX: not yet in pixels
    [np.full((1, 4 + 4 + 32, places()), 0.5), np.zeros((1, 32, 16, 24))],  # masks
    [np.full((1, places(), 4), 0.5), np.full((1, places(), 4), 0.5)],
    [np.full((40, 7), 0.5)],
    [np.full((1, 300, 6), 0.5)],
    [np.full((2, 8, places()), 0.5)],
])  # fmt: skip
def test_an_unknown_layout_is_refused_with_what_was_found(said: list[np.ndarray], tmp_path: Path) -> None:
    message = fails(graphs.saying(tmp_path / "model.onnx", *said))
    for i, answer in enumerate(said):
        assert f"output{i} {answer.shape}" in message
    assert "96x64" in message
    assert "4 labels" in message
    assert "OnnxGraph" in message


def test_a_layout_can_be_said_and_has_to_be_true(tmp_path: Path) -> None:
    odd = np.full((1, 500, 9), 0.5)
    path = graphs.saying(tmp_path / "model.onnx", odd)
    assert "`layout`" in fails(path)
    assert len(ask(load(path, layout="v5"), BLANK, conf=0.2)[0].boxes) == 1
    for layout in ("v8", "end2end"):
        assert f"that is not '{layout}'" in fails(path, layout=layout)
    with pytest.raises(InvalidInput, match="layout is set in config"):
        ask(load(path, layout="v5"), BLANK, layout="v8")


def test_an_output_that_is_no_array_is_not_looked_at(tmp_path: Path) -> None:
    path = graphs.saying(tmp_path / "model.onnx", V8)
    model = graphs.opened(path)
    model.graph.node.append(helper.make_node("SequenceConstruct", ["output0"], ["sequence"]))
    model.graph.output.append(helper.make_tensor_sequence_value_info("sequence", TensorProto.FLOAT, None))
    path.write_bytes(model.SerializeToString())
    assert len(ask(load(path), BLANK)[0].boxes)


@pytest.mark.parametrize("seed", range(4))
def test_suppression_is_torchvisions(seed: int) -> None:
    random = np.random.default_rng(seed)
    corners = random.uniform(0, 100, (400, 2)).astype(np.float32)
    found = np.hstack([corners, corners + random.uniform(0, 30, (400, 2)).astype(np.float32)])
    found[::50, 2:] = found[::50, :2]  # without area
    found[1::50] = found[::50]
    scores = random.uniform(size=400).astype(np.float32).round(2)
    for iou in (0.0, 0.3, 0.7, 1.0):
        expected = torchvision.ops.nms(torch.from_numpy(found), torch.from_numpy(scores), iou).numpy()
        np.testing.assert_array_equal(heads.suppressed(found, scores, iou, 400), expected)
        np.testing.assert_array_equal(heads.suppressed(found, scores, iou, 7), expected[:7])


# ---------------------------------------------------------------- labels


V8 = np.full((1, 8, places()), 0.5)


def test_labels_of_ones_own(tmp_path: Path) -> None:
    path = graphs.saying(tmp_path / "model.onnx", V8, labels=None)
    assert "`labels`" in fails(path)
    assert load(path, labels=["a", "b", "c", "d"]).labels == ["a", "b", "c", "d"]
    (tmp_path / "names.txt").write_text("a\r\nb \n\nc\nd\n")
    assert load(path, labels="names.txt").labels == ["a", "b", "c", "d"]
    assert "nowhere.txt" in fails(path, ModelUnavailable, labels="nowhere.txt")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    assert "bytes.txt, cannot be read ('utf-8'" in fails(path, labels="bytes.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    assert "pipe.txt, cannot be read" in fails(path, labels="pipe.txt")  # and not waited for
    assert "3 labels" in fails(path, labels=["a", "b", "c"])


def test_labels_of_the_metadata_and_those_that_overrule_them(tmp_path: Path) -> None:
    path = graphs.saying(tmp_path / "model.onnx", V8)
    assert load(path).labels == graphs.LABELS
    assert load(path, labels=["a", "b", "c", "d"]).labels == ["a", "b", "c", "d"]
    listed = graphs.saying(tmp_path / "list.onnx", V8, labels=None, names=str(graphs.LABELS))
    assert load(listed).labels == graphs.LABELS


@pytest.mark.parametrize("names", [
    "__import__('os').mkdir('ran')", "{0: 'a', 2: 'b'}", "{'0': 'a'}", "{0: 1}", "'abcd'", "4", "", "{", "(" * 5000,
    "{0: 'a'" + " " * (1 << 20) + "}", "{True: 'a', False: 'b'}x", "{0.5: 'a'}", "{0: b'a'}", "[['a']]", "{(): 'a'}",
])  # fmt: skip
def test_metadata_is_read_and_never_run(names: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = graphs.saying(tmp_path / "model.onnx", V8, labels=None, names=names)
    assert "`names`" in fails(path)
    assert not (tmp_path / "ran").exists()


def test_an_export_for_another_task(tmp_path: Path) -> None:
    assert "exported for 'pose'" in fails(graphs.saying(tmp_path / "model.onnx", V8, task="pose"))
    assert "stride 'wide'" in fails(graphs.saying(tmp_path / "model.onnx", V8, stride="'wide'"))
    assert "stride 0" in fails(graphs.saying(tmp_path / "model.onnx", V8, stride="0"))


@pytest.mark.parametrize(("picture", "kind"), [
    ((1, 1, 64, 96), TensorProto.FLOAT), ((1, 64, 96, 3), TensorProto.FLOAT), ((4, 3, 64, 96), TensorProto.FLOAT),
    ((1, 3, 64, "width"), TensorProto.FLOAT), ((3, 64, 96), TensorProto.FLOAT), ((1, 3, 64, 96), TensorProto.DOUBLE),
])  # fmt: skip
def test_an_input_that_is_no_picture(picture: tuple[Any, ...], kind: int, tmp_path: Path) -> None:
    path = graphs.saying(tmp_path / "model.onnx", V8, picture=picture, kind=kind)
    assert "images" in fails(path)


def test_weights_that_are_no_numbers(tmp_path: Path) -> None:
    assert "not a number" in fails(graphs.saying(tmp_path / "model.onnx", V8 * np.nan))


# ---------------------------------------------------------------- files


def test_a_folder_with_one_graph(tmp_path: Path) -> None:
    assert "no graph at" in fails(tmp_path, ModelUnavailable)
    assert "no graph at" in fails(None, ModelUnavailable)
    graphs.saying(tmp_path / "model.onnx", V8)
    assert load(tmp_path).labels == graphs.LABELS
    graphs.saying(tmp_path / "other.onnx", V8)
    assert "holds 2 .onnx files" in fails(tmp_path)


def opened(path: Path) -> Any:
    return session.Graph(Spec("it", path), "cpu")


def refused(path: Path) -> str:
    with pytest.raises(LoadFailed) as told:
        opened(path)
    assert not told.value.retryable
    assert str(path) in str(told.value)
    return str(told.value)


def test_weights_beside_the_graph_lie_in_its_folder(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "deep").mkdir(parents=True)
    numbers = np.arange(4, dtype=np.float32)
    for file in (home / "own.bin", home / "deep" / "own.bin", tmp_path / "secret.bin"):
        numbers.tofile(file)
    (home / "link.bin").symlink_to("../secret.bin")
    (home / "short.bin").write_bytes(b"abc")
    path = home / "model.onnx"
    for location in ("own.bin", "deep/own.bin"):
        found = opened(graphs.with_weights_in(path, location)).run({"x": numbers})
        assert found["y"].tolist() == [0, 2, 4, 6]
    for location in (
        "../secret.bin", str(tmp_path / "secret.bin"), str(home / "own.bin"), "deep/../../secret.bin", "link.bin",
        "short.bin", "none.bin", "/dev/zero", "", ".", "deep",
    ):  # fmt: skip
        refused(graphs.with_weights_in(path, location))
    for offset, length in (("4", "16"), ("-5", "16"), ("0", str(1 << 62)), (str(1 << 62), "16"), ("abc", "16")):
        refused(graphs.with_weights_in(path, "own.bin", offset, length))
    assert "own folder" in refused(graphs.with_weights_in(path, "../secret.bin"))


def test_operators_that_onnxruntime_does_not_have(tmp_path: Path) -> None:
    inputs = {"x": (TensorProto.FLOAT, (1, 3))}
    outputs = {"y": (TensorProto.FLOAT, None)}
    custom = helper.make_node("Evil", ["x"], ["y"], domain="my.ops")
    unknown = helper.make_node("Nope", ["x"], ["y"])
    cached = helper.make_node(
        "EPContext", ["x"], ["y"], domain="com.microsoft", embed_mode=0, ep_cache_context="../../etc/passwd"
    )
    path = tmp_path / "model.onnx"
    assert "wants an operator" in refused(graphs.save(path, [custom], inputs, outputs, domains={"my.ops": 1}))
    assert "wants an operator" in refused(graphs.save(path, [unknown], inputs, outputs))
    assert "EPContext" in refused(graphs.save(path, [cached], inputs, outputs, domains={"com.microsoft": 1}))
    assert "cannot serve" in refused(
        graphs.save(path, [helper.make_node("Relu", ["x"], ["y"])], inputs, outputs, domains={"": 99})
    )


def test_what_is_no_graph(tmp_path: Path) -> None:
    path = graphs.saying(tmp_path / "model.onnx", V8)
    whole = path.read_bytes()
    for content in (b"text", b"", bytes(1000), whole[: len(whole) // 2], whole[:-1], b"\x80\x02}q\x00."):
        path.write_bytes(content)
        refused(path)


def test_bytes_that_were_changed_are_refused_or_served(tmp_path: Path) -> None:
    """A process that dies of one is the worker's: the broker says so. Here none does."""
    whole = graphs.saying(tmp_path / "model.onnx", np.full((1, 8, 5), 0.5)).read_bytes()
    random = np.random.default_rng(int(os.environ.get("SEED", "1")))
    path, served, cases = tmp_path / "changed.onnx", 0, int(os.environ.get("CASES", "300"))
    for _ in range(cases):
        changed = bytearray(whole)
        for at in random.integers(len(whole), size=random.integers(1, 4)):
            changed[at] = random.integers(256)
        path.write_bytes(changed)
        with contextlib.suppress(LoadFailed):
            load(path, layout="v8", labels=graphs.LABELS)
            served += 1
    assert 0 < served < cases


# ---------------------------------------------------------------- what it takes


def test_neither_torch_nor_ultralytics_is_needed(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib, numpy\n"
        "sys.modules['torch'] = sys.modules['ultralytics'] = None\n"
        "from workers.models import base, onnx\n"
        "model = onnx.OnnxDetector()\n"
        "model.load(base.Spec('it', pathlib.Path(sys.argv[1])), 'cpu')\n"
        "print(len(model.predict([base.Input(numpy.zeros((9, 9, 3), numpy.uint8), {})])[0].boxes))\n"
    )
    path = graphs.saying(tmp_path / "model.onnx", V8)
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout == "1\n", done.stderr


# ---------------------------------------------------------------- devices


def test_a_gpu_without_the_library_for_it(tmp_path: Path) -> None:
    if session.CUDA in session.onnxruntime.get_available_providers():
        pytest.skip("onnxruntime-gpu is here")
    with pytest.raises(LoadFailed, match="install onnxruntime-gpu in its place") as told:
        load(graphs.saying(tmp_path / "model.onnx", V8), "cuda:0")
    assert not told.value.retryable


class Pretended:
    """onnxruntime on a GPU that does not start: it goes on without, and says so only when asked."""

    def __init__(self, *_: Any, **how: Any) -> None:
        self.how = how
        Pretended.last = self

    def get_providers(self) -> list[str]:
        return ["CPUExecutionProvider"]

    def get_inputs(self) -> list[Any]:
        return []

    get_outputs = get_inputs

    def get_modelmeta(self) -> Any:
        return SimpleNamespace(custom_metadata_map={})


def test_a_gpu_that_does_not_start_is_not_replaced_by_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = session.onnxruntime
    monkeypatch.setattr(library, "get_available_providers", lambda: [session.CUDA, "CPUExecutionProvider"])
    monkeypatch.setattr(library, "preload_dlls", lambda: None)
    monkeypatch.setattr(library, "InferenceSession", Pretended)
    with pytest.raises(LoadFailed, match="could not start its CUDA provider on cuda:1"):
        load(graphs.saying(tmp_path / "model.onnx", V8), "cuda:1")
    (name, settings), _ = Pretended.last.how["providers"]  # type: ignore[attr-defined]
    assert (name, settings["device_id"]) == (session.CUDA, 1)
