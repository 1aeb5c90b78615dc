"""What an adapter answers, or says when it fails, costs that request alone; a failed load says if a retry helps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zoo
from tests.support import Running, toy
from workers.answers import check
from zoo import results
from zoo.errors import InferenceFailed

FRAME = np.zeros((8, 8, 3), np.uint8)


def floats(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def detections(**other: Any) -> results.Detections:
    sound = {"boxes": floats(2, 4), "scores": floats(2), "class_ids": np.zeros(2, np.int32), "labels": ["a", "b"]}
    return results.Detections(**{**sound, **other})


SOUND = [
    detections(), detections(masks=np.zeros((2, 5, 6), bool)),
    detections(boxes=floats(0, 4), scores=floats(0), class_ids=floats(0), labels=[], masks=np.zeros((0, 5, 6), bool)),
    results.Keypoints(points=floats(2, 17, 2), scores=floats(2, 17)),
    results.Keypoints(points=floats(1, 3, 2), scores=floats(1, 3), boxes=floats(1, 4), names=["a"] * 3, postures=["x"]),
    results.Classification(labels=["a"], scores=floats(1)), results.Action(labels=[], scores=floats(0)),
    results.Embedding(vector=floats(512)), results.DepthMap(depth=floats(3, 4)),
    results.Segmentation(mask=np.zeros((3, 4), np.uint8), labels=["a", "b"]),
    results.OcrText(text="A", lines=["a"], scores=floats(1)),
    results.OcrText(text="A", lines=["a"], scores=floats(1), boxes=floats(1, 4, 2)), results.Quality(score=1.0),
    {}, {"a": [1, "x", None, {"b": np.zeros(3)}], "c": (1.5, True)},
]  # fmt: skip

WRONG = [
    (None, "answered None"), ([], "answered a list"), (3, "answered a int"), ("text", "answered a str"),
    (floats(3), "answered a ndarray"), (results.TypedResult(), "answered a TypedResult"),
    ({1: "x"}, "the key 1"), ({"a": {"b": [{None: 1}]}}, "the key None"), ({b"a": 1}, "the key b'a'"),
    (detections(labels=["a"]), "disagree: boxes are of 2, labels of 1"), (detections(scores=floats(3)), "disagree"),
    (detections(boxes=floats(2, 5)), r"boxes of shape \(2, 5\), not \(n, 4\)"),
    (detections(boxes=None), "boxes that is None"), (detections(boxes=[[1, 2, 3, 4]] * 2), "boxes that is a list"),
    (detections(labels=["a", 3]), "labels that is no list of texts"), (detections(labels=None), "no list of texts"),
    (detections(masks=np.zeros((1, 5, 6), bool)), "disagree"), (detections(scores=np.array(["a", "b"])), "no array"),
    (results.Classification(labels=["a", "b"], scores=floats(3)), "disagree: labels are of 2, scores of 3"),
    (results.Keypoints(points=floats(2, 17, 2), scores=floats(2, 16)), "disagree"),
    (results.Keypoints(points=floats(2, 17, 2), scores=floats(2, 17), postures=["x"]), "disagree"),
    (results.Keypoints(points=floats(2, 17, 2), scores=floats(2, 17), names=None), "no list of texts"),
    (results.Embedding(vector=floats(1, 512)), r"of shape \(1, 512\)"), (results.DepthMap(depth=None), "no array"),
    (results.OcrText(text="", lines=["a"], scores=floats(0)), "disagree"),
]  # fmt: skip


@pytest.mark.parametrize("answer", SOUND)
def test_a_sound_answer_passes(answer: Any) -> None:
    check(answer)


@pytest.mark.parametrize(("answer", "says"), WRONG)
def test_an_answer_whose_parts_do_not_fit_together_says_which(answer: Any, says: str) -> None:
    with pytest.raises(InferenceFailed, match=f"the adapter answered .*{says}|the adapter {says}"):
        check(answer)


def test_values_inside_of_themselves_have_an_end() -> None:
    endless: dict[str, Any] = {}
    endless["again"] = [endless]
    with pytest.raises(InferenceFailed, match="without end"):
        check(endless)


ADAPTER = """
import numpy as np
from zoo import results
from zoo.errors import InvalidInput

SURROGATE = "caf\\udce9"
ANSWERS = {
    "none": lambda: None,
    "keys": lambda: {1: 2},
    "text": lambda: {"text": SURROGATE},
    "key": lambda: {SURROGATE: 1},
    "label": lambda: results.Classification(labels=[SURROGATE], scores=np.zeros(1, np.float32)),
    "lengths": lambda: results.Classification(labels=["a", "b"], scores=np.zeros(3, np.float32)),
    "object": lambda: {"it": object()},
    "strings": lambda: {"it": np.array(["a"])},
    "good": lambda: {"is": "good"},
}

class Unspeakable(Exception):
    def __str__(self):
        raise ValueError("no words")

class Answers:
    max_batch = 8
    def load(self, spec, device):
        pass
    def predict(self, inputs):
        how = inputs[0].options["how"]
        if how == "raise": raise ValueError(SURROGATE)
        if how == "refuse": raise InvalidInput("frame: " + SURROGATE)
        if how == "unspeakable": raise Unspeakable
        if how == "nothing": return None
        if how == "few": return []
        return [ANSWERS[item.options["how"]]() for item in inputs]

class Surrogate:
    def load(self, spec, device):
        raise ValueError(SURROGATE)
"""


@pytest.fixture
def answering(broker: Callable[..., Running]) -> Running:
    models = [{"name": name.lower(), "adapter": f"own:{name}", "vram_mb": 10} for name in ("Answers", "Surrogate")]
    running = broker(models, start=False)
    (running.folder / "own.py").write_text(ADAPTER)
    return running.start()


def test_what_an_adapter_answers_costs_its_request_and_no_process(answering: Running) -> None:
    client = answering.client()
    assert client.infer("answers", FRAME, how="good") == {"is": "good"}
    (process,) = client.get_status()["loaded_models"]
    hows = (
        "none",
        "keys",
        "text",
        "key",
        "label",
        "lengths",
        "object",
        "strings",
        "raise",
        "unspeakable",
        "nothing",
        "few",
    )
    for how in hows:
        with pytest.raises(InferenceFailed, match=r"answers: the adapter|answers: a result may") as told:
            client.infer("answers", FRAME, how=how)
        assert len(str(told.value)) > len("answers: the adapter raised "), how
    with pytest.raises(zoo.InvalidInput, match=r"frame: caf\\udce9"):
        client.infer("answers", FRAME, how="refuse")
    assert client.infer("answers", FRAME, how="good") == {"is": "good"}
    (still,) = client.get_status()["loaded_models"]
    assert still.get("pid") == process.get("pid")
    assert "worker_crashed" not in answering.log()


def test_a_load_that_fails_in_words_that_are_no_utf8_is_told(answering: Running) -> None:
    with pytest.raises(zoo.LoadFailed, match=r"ValueError: caf\\udce9"):
        answering.client().get_model("surrogate")


BROKEN = {
    "absent": ("no_such_module_of_ours:Model", "No module named"),
    "classless": ("own:NoSuchClass", "has no 'NoSuchClass'"),
    "library": ("needs:Model", "No module named 'no_such_library'"),
    "mistake": ("wrong:Model", "SyntaxError"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_no_retry_mends_is_not_retryable(name: str, broker: Callable[..., Running]) -> None:
    """The first time, and as long as no new try is made."""
    adapter, says = BROKEN[name]
    running = broker([{"name": name, "adapter": adapter, "vram_mb": 10}], start=False)
    (running.folder / "own.py").write_text("")
    (running.folder / "needs.py").write_text("import no_such_library\n")
    (running.folder / "wrong.py").write_text("def (:\n")
    client = running.start().client()
    for _ in range(2):
        with pytest.raises(zoo.LoadFailed, match=says) as told:
            client.infer(name, FRAME)
        assert told.value.retryable is False
        assert told.value.retry_after is not None


def test_a_pickle_without_trust_is_not_retryable_and_other_failures_are(
    broker: Callable[..., Running], tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    (tmp_path / "it.pth").write_bytes(b"x")
    pickle = {"name": "pickle", "adapter": "workers.models.osnet:PersonEmbedder", "path": "it.pth", "vram_mb": 10}
    client = broker([pickle, toy("broken", options={"load": "raise"})], weights_dir=str(tmp_path)).client()
    for _ in range(2):
        with pytest.raises(zoo.LoadFailed, match="trust_pickle") as told:
            client.infer("pickle", FRAME, timeout=60)
        assert told.value.retryable is False
    with pytest.raises(zoo.LoadFailed, match="cheese") as told:
        client.infer("broken", FRAME, timeout=60)
    assert told.value.retryable is True
    assert json.dumps(told.value.retry_after)
