"""Which models are asked about an event, where they look, in which order, and what becomes of it. No process, no clock.

The table is the one that config.toml ships, so these tests hold what DOMAIN's backend relies on.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import re
import tomllib
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from zoo import (
    BrokerUnreachable,
    DeadlineExceeded,
    InferenceFailed,
    InvalidInput,
    LoadFailed,
    ModelUnavailable,
    ProtocolMismatch,
    QueueFull,
    WorkerCrashed,
    ZooError,
    results,
)
from zoo.client.enrich import Ask, Plan, Residence, Table, read_table
from zoo.client.event import Event, read_detections
from zoo.config.reading import load_config
from zoo.config.rules import Rule
from zoo.drawing.picture import HEAD_BYTES
from zoo.enrichment import Enrichment
from zoo.wire import formats

ROOT = Path(__file__).parent.parent.parent
SHIPPED = load_config(ROOT / "config.toml")
FRAME = np.zeros((100, 200, 3), np.uint8)
PERSON = ("person", (10, 10, 50, 90))
CAR = ("car", (60, 20, 160, 60))
DOG = ("dog", (0, 0, 20, 20))
BIRD = ("bird", (5, 5, 9, 9))
EVERY = {"weather-classification", "brisque-quality"}
EVENT_WIDE = {"weather-classification", "brisque-quality", "violence-detection", "xclip-base"}
ON_A_PERSON = {
    "threat-detection-yolov8n", "fashion-clip", "segformer-b2-clothes", "vitpose-small", "osnet-x0-25",
    "depth-anything-v2-small", "yolo11-face",
}  # fmt: skip
ON_A_FACE = {"vit-age-classifier", "vit-gender-classifier"}
ON_A_VEHICLE = {
    "vehicle-segment-classification", "vehicle-damage-detection", "yolo11-license-plate", "depth-anything-v2-small",
}  # fmt: skip

World = Callable[[Ask], Any]


def shipped(loaded: tuple[str, ...] = (), **changed: Any) -> Table:
    """The shipped table, as the broker hands it out."""
    models = {m.name: Residence("loaded" if m.name in loaded else "unloaded", m.vram_mb) for m in SHIPPED.models}
    return Table(
        **{**{f: getattr(SHIPPED.enrich, f) for f in SHIPPED.enrich.__struct_fields__}, **changed}, models=models
    )


def table(*rules: Rule, states: dict[str, str] | None = None, **keys: Any) -> Table:
    """A table of its own: models of 100 MB, and unloaded unless `states` says otherwise."""
    names = {model for rule in rules for model in rule.models}
    models = {name: Residence((states or {}).get(name, "unloaded"), 100.0) for name in names}
    return Table(rules=list(rules), models=models, **keys)


def boxes(*found: tuple[float, float, float, float]) -> results.Detections:
    n = len(found)
    return results.Detections(
        boxes=np.array(found, np.float32).reshape(-1, 4), scores=np.ones(n, np.float32),
        class_ids=np.zeros(n, np.int32), labels=["thing"] * n,
    )  # fmt: skip


def finds(ask: Ask) -> Any:
    """Every model finds a box in the middle of what it is shown."""
    if ask.boxes is None:
        return boxes((90, 40, 110, 60))
    return [boxes(((3 * x1 + x2) / 4, (3 * y1 + y2) / 4, (x1 + x2) / 2, (y1 + y2) / 2)) for x1, y1, x2, y2 in ask.boxes]


def finds_nothing(ask: Ask) -> Any:
    return boxes() if ask.boxes is None else [boxes() for _ in ask.boxes]


def carried_out(plan: Plan, world: World = finds) -> tuple[Enrichment, list[Ask]]:
    """The event, with everything answered at once, and what was asked, in order."""
    asked: list[Ask] = []
    clock = itertools.count()
    while not plan.done:
        for ask in plan.take(0.0):
            asked.append(ask)
            plan.answer(ask.model, world(ask), 0.0)
        assert next(clock) < 1000
    return plan.result(1.0), asked


def enriched(
    detections: Any, world: World = finds, frames: Any = FRAME, rules: Table | None = None, **how: Any
) -> tuple[Enrichment, dict[str, Ask]]:
    found, asked = carried_out(Plan(rules or shipped(), Event(frames, detections, **how), 0.0), world)
    assert len({ask.model for ask in asked}) == len(asked), "a model was asked twice"
    return found, {ask.model: ask for ask in asked}


# ---------------------------------------------------------------- the table


@pytest.mark.parametrize(
    ("detections", "on_boxes", "on_the_frame"),
    [
        ([PERSON], ON_A_PERSON | ON_A_FACE, EVERY),
        ([PERSON, PERSON], ON_A_PERSON | ON_A_FACE, EVERY | {"violence-detection"}),
        *(
            ([(kind, CAR[1])], ON_A_VEHICLE | {"paddleocr"}, EVERY)
            for kind in ("car", "truck", "bus", "motorcycle", "bicycle", "CAR", "Truck")
        ),
        ([DOG], {"pet-classifier", "depth-anything-v2-small"}, EVERY),
        ([("Cat", DOG[1])], {"pet-classifier", "depth-anything-v2-small"}, EVERY),
        ([BIRD], {"pet-classifier"}, EVERY),
        ([("bench", CAR[1])], set(), EVERY),
        ([], set(), set()),
    ],
)
def test_each_kind_of_detection_gets_its_models(
    detections: list[Any], on_boxes: set[str], on_the_frame: set[str]
) -> None:
    found, asked = enriched(detections)
    assert {model for model, ask in asked.items() if ask.boxes is not None} == on_boxes
    assert {model for model, ask in asked.items() if ask.boxes is None} == on_the_frame
    for detection in found.detections:
        assert detection.answers.keys() == on_boxes
    assert found.frame.keys() == on_the_frame
    assert found.skipped.keys() == EVENT_WIDE - on_the_frame


def test_the_document_tells_the_shipped_table_and_every_key_of_a_rule() -> None:
    told = (ROOT / "docs/enrich.md").read_text(encoding="utf-8")
    asked = {model for rule in SHIPPED.enrich.rules for model in rule.models}
    rows = "\n".join(line for line in told.splitlines() if line.startswith("|"))
    assert all(model in rows for model in asked)
    assert all(model.name in told for model in SHIPPED.models)
    keys = {field.encode_name for field in msgspec.structs.fields(Rule)}
    assert set(re.findall(r"`([a-z_]+)`", "\n".join(re.findall(r"^\| (`.*?) \|", told, re.MULTILINE)))) >= keys
    (example,) = re.findall(r"```toml\n(.*?)```", told, re.DOTALL)
    plate = next(rule for rule in SHIPPED.enrich.rules if rule.models == ["paddleocr"])
    assert plate in msgspec.convert(tomllib.loads(example)["enrich"]["rules"], list[Rule])


def test_several_detections_share_a_request() -> None:
    """A model is asked once per event, about all of its detections, and each answer goes to its own."""
    given = [PERSON, CAR, ("PERSON", (100, 0, 150, 50)), DOG]
    found, asked = enriched(given)
    assert asked["osnet-x0-25"].boxes == ((10, 10, 50, 90), (100, 0, 150, 50))
    assert asked["depth-anything-v2-small"].boxes == tuple(box for _, box in given)
    assert asked["weather-classification"].boxes is None
    for detection in found.detections:
        x1, y1, x2, y2 = detection.box
        depth = detection.answers["depth-anything-v2-small"]
        np.testing.assert_allclose(depth.boxes[0, 2:], ((x1 + x2) / 2, (y1 + y2) / 2))


def test_an_unknown_kind_is_left_alone_and_that_is_said() -> None:
    found, _ = enriched([("bench", CAR[1]), PERSON])
    bench, person = found.detections
    assert "bench" in bench.note
    assert not bench.answers
    assert not bench.missing
    assert not bench.skipped
    assert person.note == ""
    assert person.answers


@pytest.mark.parametrize(
    ("score", "min_score", "taken"), [(0.5, None, 1), (0.49, None, 0), (0.3, 0.25, 1), (0.6, 0.7, 0)]
)
def test_unsure_detections_are_left_alone(score: float, min_score: float | None, taken: bool) -> None:
    found, asked = enriched([(*PERSON, score)], min_score=min_score)
    assert bool(asked) == taken
    assert ("score" in found.detections[0].note) != taken


def test_an_unsure_person_is_no_second_person() -> None:
    found, asked = enriched([PERSON, (*PERSON, 0.4)])
    assert "violence-detection" not in asked
    assert "2 persons or more, not with 1" in found.skipped["violence-detection"]


@pytest.mark.parametrize("suspicious", [False, True])
@pytest.mark.parametrize("count", [1, 2, 8])
def test_actions_want_a_suspicious_event_and_several_frames(suspicious: bool, count: int) -> None:
    found, asked = enriched([PERSON], frames=[FRAME] * count, suspicious=suspicious)
    if suspicious and count > 1:
        assert asked["xclip-base"] == Ask("xclip-base", None, {}, True)
        assert "xclip-base" in found.frame
    else:
        assert "xclip-base" not in asked
        assert ("suspicious" if not suspicious else "2 frames") in found.skipped["xclip-base"]
    without, _ = enriched([CAR], frames=[FRAME] * count, suspicious=True)
    assert "person" in without.skipped["xclip-base"]


def test_only_frames_that_a_model_looks_at_are_placed() -> None:
    first, last = FRAME, FRAME + 1
    assert Plan(shipped(), Event([first, last], [PERSON]), 0.0).frames == [last]
    video = Plan(shipped(), Event([first, last], [PERSON], suspicious=True), 0.0).frames
    assert [id(frame) for frame in video] == [id(first), id(last)]


# ---------------------------------------------------------------- where they look


def test_a_face_is_looked_for_in_the_upper_half_of_a_person() -> None:
    assert enriched([PERSON])[1]["yolo11-face"].boxes == ((10, 10, 50, 50),)


def test_a_plate_is_looked_for_a_little_around_the_vehicle() -> None:
    _, asked = enriched([CAR])
    assert asked["yolo11-license-plate"].boxes == ((50, 16, 170, 64),)
    assert asked["vehicle-damage-detection"].boxes == ((60, 20, 160, 60),)


def test_a_list_of_boxes_in_shares_of_the_frame_is_refused_with_the_remedy() -> None:
    for shares in ([("car", (0.1, 0.2, 0.5, 0.6))], [{"label": "car", "box": [0, 0, 1, 1]}], (("car", (0, 0, 1, 1)),)):
        for frame in (FRAME, [FRAME, FRAME]):
            with pytest.raises(InvalidInput, match=r"detections: .*the width, 200, and y by the height, 100"):
                Event(frame, shares)
    assert Event(FRAME, [("car", (0.1, 0.2, 0.5, 0.6)), CAR]).detections[0].box == (0.1, 0.2, 0.5, 0.6)


def test_what_a_detector_found_in_the_first_pixel_is_no_share() -> None:
    found, _ = enriched(boxes((0.1, 0.2, 0.5, 0.6)))
    assert [one.box for one in found.detections] == [pytest.approx((0.1, 0.2, 0.5, 0.6))]


def test_a_crop_ends_at_the_frame() -> None:
    assert enriched([("car", (-20.5, 0, 199.2, 99.9))])[1]["yolo11-license-plate"].boxes == ((0, 0, 200, 100),)


def test_the_second_model_of_a_chain_looks_where_the_first_one_found_something_and_nothing_is_cropped_twice() -> None:
    """Boxes of answers are in the frame already, whatever was shown to the model."""

    def world(ask: Ask) -> Any:
        return (
            [boxes((100, 40, 140, 50), (0, 0, 1, 1)), boxes((20, 80, 40, 90))] if "plate" in ask.model else finds(ask)
        )

    found, asked = enriched([CAR, ("truck", (0, 50, 80, 100))], world)
    assert asked["paddleocr"].boxes == ((98, 39, 142, 51), (19, 79, 41, 91))
    assert asked["paddleocr"].options == {"mode": "line"}
    assert all("paddleocr" in detection.answers for detection in found.detections)


def test_age_and_gender_need_a_face() -> None:
    def world(ask: Ask) -> Any:
        return [boxes(), boxes((30, 12, 40, 22))] if ask.model == "yolo11-face" else finds(ask)

    found, asked = enriched([PERSON, PERSON], world)
    for model in ON_A_FACE:
        assert asked[model].boxes == ((30, 12, 40, 22),)
        assert found.detections[0].skipped[model] == "yolo11-face found nothing"
        assert model in found.detections[1].answers
    empty, asked = enriched([PERSON], finds_nothing)
    assert not ON_A_FACE & asked.keys()
    assert empty.detections[0].skipped.keys() == ON_A_FACE
    assert "yolo11-face" in empty.detections[0].answers


def test_a_chain_follows_keypoints_and_goes_on_as_long_as_it_likes() -> None:
    def world(ask: Ask) -> Any:
        if ask.model == "a":
            pose = results.Keypoints(points=np.zeros((1, 3, 2), np.float32), scores=np.ones((1, 3), np.float32))
            return msgspec.structs.replace(pose, boxes=np.array([[10, 20, 60, 80]], np.float32))
        return finds(ask)

    chain = table(
        Rule(models=["a"], labels=["*"], on="frame"), Rule(models=["b"], after="a"), Rule(models=["c"], after="b")
    )
    found, asked = enriched([PERSON], world, rules=chain)
    assert [asked[model].boxes for model in "abc"] == [None, ((10, 20, 60, 80),), ((22, 35, 35, 50),)]
    assert found.frame.keys() == {"a", "b", "c"}
    assert found.detections[0].answers == {}
    assert "no rule" in found.detections[0].note


def test_a_link_of_a_chain_may_have_a_condition_of_its_own() -> None:
    chain = table(
        Rule(models=["a"], labels=["person"]),
        Rule(models=["b"], after="a", suspicious=True),
        Rule(models=["c"], after="b"),
    )
    found, asked = enriched([PERSON], rules=chain)
    assert asked.keys() == {"a"}
    assert found.detections[0].skipped == {
        "b": "only when the event is suspicious",
        "c": "b was skipped: only when the event is suspicious",
    }
    assert enriched([PERSON], rules=chain, suspicious=True)[1].keys() == {"a", "b", "c"}


def test_a_model_without_boxes_leads_nowhere() -> None:
    chain = table(Rule(models=["a"], labels=["person"]), Rule(models=["b"], after="a"))
    found, asked = enriched([PERSON], lambda ask: [{"x": 1}], rules=chain)
    assert asked.keys() == {"a"}
    assert isinstance(found.detections[0].missing["b"], InferenceFailed)
    assert "dict holds no boxes" in str(found.detections[0].missing["b"])


NONSENSE = [(5, 5, 5, 9), (9, 9, 5, 5), (300, 10, 400, 20), (-9, -9, -1, -1), (0, 0, math.nan, 5), (0, 0, math.inf, 5)]


@pytest.mark.parametrize("box", NONSENSE)
def test_a_box_that_makes_no_sense_costs_its_own_detection_alone(box: tuple[float, ...]) -> None:
    found, asked = enriched([PERSON, ("person", box), CAR])
    good, bad, _ = found.detections
    assert asked["osnet-x0-25"].boxes == (PERSON[1],)
    assert bad.answers == {}
    assert bad.missing.keys() == ON_A_PERSON | ON_A_FACE
    assert all(isinstance(error, InvalidInput) and "boxes[1]" in str(error) for error in bad.missing.values())
    assert good.missing == {}
    assert good.answers.keys() == ON_A_PERSON | ON_A_FACE


def test_growing_does_not_bring_a_box_back_into_the_frame() -> None:
    found, asked = enriched([("car", (201, 10, 260, 50))])
    assert found.detections[0].missing.keys() == ON_A_VEHICLE | {"paddleocr"}
    assert asked.keys() == EVERY


def test_a_part_outside_the_frame_costs_that_model_alone() -> None:
    found, asked = enriched([("person", (0, -200, 50, 90))])
    assert "yolo11-face" not in asked
    assert isinstance(found.detections[0].missing["yolo11-face"], InvalidInput)
    assert found.detections[0].missing.keys() == ON_A_FACE | {"yolo11-face"}
    assert "osnet-x0-25" in found.detections[0].answers


def test_a_box_that_a_model_made_up_costs_its_chain_alone() -> None:
    def world(ask: Ask) -> Any:
        return [boxes((500, 500, 600, 600))] if ask.model == "yolo11-face" else finds(ask)

    found, asked = enriched([PERSON], world)
    assert not ON_A_FACE & asked.keys()
    assert found.detections[0].missing.keys() == ON_A_FACE


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize(
    ("turned", "size"), [(1, (64, 48)), (6, (48, 64)), (8, (48, 64)), (0, (64, 48)), (9, (64, 48)), (21, (64, 48))]
)
def test_the_size_of_an_encoded_picture_is_that_of_it_upright(turned: int, size: tuple[int, int], kind: str) -> None:
    out = io.BytesIO()
    image = Image.new("RGB", (64, 48))
    exif = image.getexif()
    exif[0x0112] = turned
    image.save(out, kind, exif=exif)
    assert Event(out.getvalue(), []).size == size
    in_memory = np.frombuffer(out.getvalue(), np.uint8)  # as a `Frame` has it that a file was read into
    assert Event(in_memory, [], how=formats.check_format("encoded")).size == size
    _, asked = enriched([("person", (0, 0, 1000, 1000))], frames=out.getvalue())
    assert asked["osnet-x0-25"].boxes == ((0, 0, *size),)


def test_the_size_of_a_large_png_is_found_at_its_beginning() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (500, 600, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, "PNG")
    assert len(out.getvalue()) > HEAD_BYTES
    assert Event(out.getvalue(), []).size == (600, 500)


def test_a_format_that_no_worker_takes_is_not_even_looked_at() -> None:
    out = io.BytesIO()
    Image.new("RGB", (64, 48)).save(out, "EPS")
    assert Event(out.getvalue(), []).size == (math.inf, math.inf)


@pytest.mark.parametrize(("segments", "size"), [(6, (64, 48)), (9, (math.inf, math.inf))])
def test_the_size_is_looked_for_at_the_beginning_alone(segments: int, size: tuple[float, float]) -> None:
    out = io.BytesIO()
    Image.new("RGB", (64, 48)).save(out, "JPEG")
    comment = b"\xff\xfe\xff\xff" + bytes(0xFFFF - 2)
    assert Event(b"\xff\xd8" + segments * comment + out.getvalue()[2:], []).size == size


def test_what_only_a_decoder_can_tell_is_left_to_it() -> None:
    _, asked = enriched([("person", (1.5, 2, 1000, 1000))], frames=b"no picture")
    assert asked["osnet-x0-25"].boxes == ((1, 2, 1000, 1000),)


# ---------------------------------------------------------------- in which order


def first_asked(plan: Plan) -> list[str]:
    return [ask.model for ask in carried_out(plan)[1]]


def test_loaded_models_go_first_and_small_ones_before_large_ones() -> None:
    loaded = ("segformer-b2-clothes", "osnet-x0-25", "vit-age-classifier")
    order = first_asked(Plan(shipped(loaded, parallel=1), Event(FRAME, [PERSON]), 0.0))
    sizes = {m.name: m.vram_mb for m in SHIPPED.models}
    assert order[:2] == ["osnet-x0-25", "segformer-b2-clothes"]
    age = order.index("vit-age-classifier")
    assert age == order.index("yolo11-face") + 1  # as soon as it could be asked, for it is loaded
    rest = [sizes[model] for model in order[2:] if model not in ON_A_FACE]
    assert rest == sorted(rest)
    states = {"b": "loading", "c": "loaded", "d": "evicting"}
    rules = table(*(Rule(models=[m], labels=["*"]) for m in "abcd"), states=states, parallel=1)
    assert first_asked(Plan(rules, Event(FRAME, [PERSON]), 0.0)) == ["c", "b", "a", "d"]


def test_no_more_are_under_way_than_allowed_and_a_chain_goes_on_at_once() -> None:
    plan = Plan(shipped(("yolo11-face", *ON_A_FACE), parallel=3), Event(FRAME, [PERSON]), 0.0)
    under_way = {ask.model: ask for ask in plan.take(0.0)}
    assert len(under_way) == 3
    assert "yolo11-face" in under_way
    assert plan.take(1.0) == []
    assert plan.wake == math.inf
    plan.answer("yolo11-face", finds(under_way["yolo11-face"]), 2.0)
    (then,) = plan.take(2.0)
    assert then.model in ON_A_FACE
    assert not plan.done


# ---------------------------------------------------------------- what goes wrong


def test_a_failure_is_told_and_takes_nothing_else_along() -> None:
    def world(ask: Ask) -> Any:
        failures = {
            "fashion-clip": ModelUnavailable("no weights"),
            "yolo11-face": WorkerCrashed("twice"),
            "brisque-quality": InvalidInput("frame: flat"),
        }
        return failures.get(ask.model) or finds(ask)

    found, _ = enriched([PERSON], world)
    (person,) = found.detections
    assert {model: type(error) for model, error in person.missing.items()} == {
        "fashion-clip": ModelUnavailable,
        "yolo11-face": WorkerCrashed,
        **dict.fromkeys(ON_A_FACE, WorkerCrashed),
    }
    assert str(person.missing["vit-age-classifier"]) == "yolo11-face comes first: twice"
    assert {model: type(error) for model, error in found.missing.items()} == {"brisque-quality": InvalidInput}
    assert person.answers.keys() == ON_A_PERSON - {"fashion-clip", "yolo11-face"}
    assert found.frame.keys() == {"weather-classification"}


ONE = Rule(models=["a"], labels=["*"])


def test_what_may_pass_is_tried_once_more_when_its_time_has_come() -> None:
    plan = Plan(table(ONE, timeout=10.0), Event(FRAME, [PERSON]), 100.0)
    (ask,) = plan.take(100.0)
    plan.answer("a", LoadFailed("back-off", retry_after=2.0), 101.0)
    assert not plan.done
    assert plan.take(101.5) == []
    assert plan.wake == 103.0
    assert plan.take(103.0) == [ask]
    plan.answer("a", LoadFailed("again", retry_after=0.1), 104.0)
    assert plan.done
    found = plan.result(104.0)
    assert str(found.detections[0].missing["a"]) == "again"
    assert found.timings == {"a": 4.0}


@pytest.mark.parametrize(
    "error",
    [
        LoadFailed("damaged", retryable=False),
        LoadFailed("too late", retry_after=10.0),
        InvalidInput("frame"),
        DeadlineExceeded("over"),
        BrokerUnreachable("shutting down"),
        WorkerCrashed("twice"),
    ],
)
def test_what_cannot_succeed_is_not_tried_again(error: ZooError) -> None:
    plan = Plan(table(ONE, timeout=10.0), Event(FRAME, [PERSON]), 0.0)
    plan.take(0.0)
    plan.answer("a", error, 1.0)
    assert plan.done
    assert type(plan.result(1.0).detections[0].missing["a"]) is type(error)


def test_a_retry_that_succeeds_leaves_no_trace() -> None:
    tries = iter([QueueFull("full"), [boxes()]])
    found, asked = carried_out(Plan(table(ONE), Event(FRAME, [PERSON]), 0.0), lambda _: next(tries))
    assert len(asked) == 2
    assert found.detections[0].missing == {}
    assert "a" in found.detections[0].answers


def test_when_time_is_up_what_was_not_asked_is_missing_and_what_is_under_way_still_counts() -> None:
    rules = table(ONE, Rule(models=["b"], labels=["*"]), Rule(models=["c"], after="a"), parallel=1, timeout=5.0)
    plan = Plan(rules, Event(FRAME, [PERSON]), 100.0)
    assert plan.deadline == 105.0
    (ask,) = plan.take(104.9)
    plan.answer(ask.model, finds(ask), 105.1)
    assert plan.take(105.1) == []
    assert plan.done
    (person,) = plan.result(105.1).detections
    assert person.answers.keys() == {"a"}
    assert {model: type(error) for model, error in person.missing.items()} == dict.fromkeys("bc", DeadlineExceeded)
    assert "5 s" in str(person.missing["b"])


def test_a_caller_may_bring_its_own_timeout() -> None:
    assert Plan(shipped(), Event(FRAME, []), 10.0, 2.0).deadline == 12.0
    assert Plan(shipped(), Event(FRAME, []), 10.0).deadline == 40.0


def test_a_lost_broker_leaves_what_was_there() -> None:
    plan = Plan(shipped(("osnet-x0-25",), parallel=4), Event(FRAME, [PERSON]), 0.0)
    ask = next(ask for ask in plan.take(0.0) if ask.model == "osnet-x0-25")
    plan.answer(ask.model, finds(ask), 0.5)
    plan.fail(BrokerUnreachable("it went away"), 1.0)
    assert plan.done
    found = plan.result(1.0)
    (person,) = found.detections
    assert person.answers.keys() == {"osnet-x0-25"}
    assert person.missing.keys() == (ON_A_PERSON | ON_A_FACE) - {"osnet-x0-25"}
    assert {type(error) for error in [*person.missing.values(), *found.missing.values()]} == {BrokerUnreachable}


def test_an_answer_that_does_not_fit_the_question_is_no_answer() -> None:
    for outcome in ([], [boxes(), boxes()], boxes()):
        found, _ = carried_out(Plan(table(ONE), Event(FRAME, [PERSON]), 0.0), lambda _, given=outcome: given)
        assert isinstance(found.detections[0].missing["a"], ProtocolMismatch)


def test_an_error_that_is_kept_keeps_no_frame_alive() -> None:
    class Large(np.ndarray):
        pass

    frame = np.zeros((10, 10, 3), np.uint8).view(Large)
    gone = weakref.ref(frame)

    def world(_: Ask) -> Any:
        held = gone()
        try:
            raise WorkerCrashed(f"at {held is not None}")
        except WorkerCrashed as e:  # with a traceback, and in it `held`
            return e

    found, _ = enriched([("person", (5, 5, 5, 5)), ("person", (1, 1, 9, 9))], world, frames=frame)
    assert found.missing
    assert all(detection.missing for detection in found.detections)
    del frame
    assert gone() is None


# ---------------------------------------------------------------- arguments


def detected() -> list[Any]:
    """The same two detections in each form that is taken."""
    box = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.float32)
    two = np.ones(2, np.float32)
    pose = results.Keypoints(points=np.zeros((2, 17, 2), np.float32), scores=np.zeros((2, 17), np.float32), boxes=box)
    return [
        results.Detections(boxes=box, scores=two, class_ids=np.zeros(2, np.int32), labels=["person"] * 2),
        pose,
        [("person", row) for row in box],
        (("person", (1, 2, 3, 4), 1.0), ["person", [5.0, 6, 7, 8], np.float32(1)]),
        [{"label": "person", "box": row.tolist(), "score": 1, "id": 7} for row in box],
        [{"label": "person", "box": (1, 2, 3, 4)}, ("person", (5, 6, 7, 8))],
    ]


@pytest.mark.parametrize("given", detected())
def test_detections_come_in_many_forms(given: Any) -> None:
    read = read_detections(given)
    assert [(d.label, d.box, d.score) for d in read] == [
        ("person", (1.0, 2.0, 3.0, 4.0), 1.0),
        ("person", (5.0, 6.0, 7.0, 8.0), 1.0),
    ]


@pytest.mark.parametrize(
    "given",
    [
        None, 3, "person", {"label": "person", "box": (1, 2, 3, 4)}, np.zeros((1, 4)), [3], ["person"], [("person",)],
        [("person", (1, 2, 3))], [("person", "abcd")], [("person", (1, 2, 3, "x"))], [("", (1, 2, 3, 4))],
        [(3, (1, 2, 3, 4))], [("person", (1, 2, 3, 4), 1.1)], [("person", (1, 2, 3, 4), -0.1)],
        [("person", (1, 2, 3, 4), math.nan)], [("person", (1, 2, 3, 4), None)], [{"label": "person"}],
        [("person", (1, 2, 3, 4))] * 1025,
        results.Keypoints(points=np.zeros((1, 17, 2), np.float32), scores=np.zeros((1, 17), np.float32)),
        results.Embedding(vector=np.zeros(3, np.float32)),
    ],
)  # fmt: skip
def test_what_is_no_detection_is_refused_by_name(given: Any) -> None:
    with pytest.raises(InvalidInput, match="detections"):
        read_detections(given)


@pytest.mark.parametrize("frame", [[], b"", np.zeros(7, np.uint8), np.zeros((0, 4, 3), np.uint8), None, "photo.jpg"])
def test_what_is_no_frame_is_refused_by_name(frame: Any) -> None:
    with pytest.raises(InvalidInput, match="frame"):
        Event(frame, [])


@pytest.mark.parametrize("min_score", [-0.1, 1.1, math.nan, "0.5"])
def test_a_least_score_is_a_share(min_score: Any) -> None:
    with pytest.raises(InvalidInput, match="min_score"):
        Event(FRAME, [], min_score=min_score)


def test_a_table_comes_over_the_wire_as_it_is() -> None:
    there = shipped(("paddleocr",))
    plain = msgspec.msgpack.decode(msgspec.msgpack.encode(there))
    assert plain["rules"][0]["for"] == ["person"]
    assert read_table(plain) == there
    plain["rules"][0]["of a later release"] = 1
    assert read_table(plain) == there
    plain["rules"][0]["after"] = "nobody"
    for broken in (plain, {**plain, "rules": 3}, None, {}, {**plain, "models": {}}):
        with pytest.raises(ProtocolMismatch, match="table of enrichment"):
            read_table(broken)


# ---------------------------------------------------------------- what comes back


def test_the_result_is_plain_json_with_maps_only_when_asked_for() -> None:
    def world(ask: Ask) -> Any:
        if ask.model == "depth-anything-v2-small":
            return [results.DepthMap(depth=np.arange(6, dtype=np.float32).reshape(2, 3))]
        if ask.model == "segformer-b2-clothes":
            return [results.Segmentation(mask=np.zeros((2, 3), np.uint8), labels=["Hat"], coverage={"Hat": 1.0})]
        if ask.model == "fashion-clip":
            return [{"vector": np.ones(3), "n": np.int64(3)}]
        return LoadFailed("no", retryable=False) if ask.model == "osnet-x0-25" else finds(ask)

    found, _ = enriched([PERSON], world)
    for maps in (False, True):
        plain = json.loads(json.dumps(found.to_dict(maps=maps)))
        answers = plain["detections"][0]["answers"]
        assert plain["detections"][0]["box"] == [10, 10, 50, 90]
        assert plain["detections"][0]["missing"]["osnet-x0-25"] == {
            "error": "load_failed", "message": "no", "retryable": False, "retry_after": None,
        }  # fmt: skip
        assert answers["depth-anything-v2-small"]["depth"] == ([[0, 1, 2], [3, 4, 5]] if maps else {"shape": [2, 3]})
        assert answers["segformer-b2-clothes"]["mask"] == ([[0] * 3] * 2 if maps else {"shape": [2, 3]})
        assert answers["segformer-b2-clothes"]["coverage"] == {"Hat": 1.0}
        assert answers["fashion-clip"] == {"vector": [1, 1, 1], "n": 3}
        assert plain["skipped"].keys() == {"violence-detection", "xclip-base"}
        assert plain["frame"].keys() == {"weather-classification", "brisque-quality"}
    assert answers.keys() == found.detections[0].answers.keys()
    assert found.to_dict()["detections"][0]["answers"]["depth-anything-v2-small"]["median"] == 2.5


def test_everything_is_drawn_on_a_copy_of_the_frame() -> None:
    def world(ask: Ask) -> Any:
        if ask.model == "segformer-b2-clothes":
            mask = np.ones((80, 40), np.uint8)
            return [
                results.Segmentation(mask=mask, labels=["Background", "Hat"], origin=(10, 10)) for _ in ask.boxes or ()
            ]
        if ask.model == "vitpose-small":
            return [results.Keypoints(points=np.full((1, 3, 2), 150, np.float32), scores=np.ones((1, 3), np.float32))]
        if ask.model == "fashion-clip":
            return [results.Classification(labels=["coat"], scores=np.ones(1, np.float32))]
        return WorkerCrashed("x") if ask.model in ("osnet-x0-25", "brisque-quality") else finds(ask)

    frame = np.full((200, 200, 3), 90, np.uint8)
    found, _ = enriched([PERSON, ("person", (0, 0, math.nan, 3))], world, frames=frame)
    painted = found.draw(frame)
    changed = (painted != 90).any(axis=2)
    assert (frame == 90).all()
    assert changed[10:90, 10:50].all()  # the mask, in its place
    assert changed[145:155, 145:155].any()  # the keypoints
    assert not changed[160:, 160:].any()
    nothing, _ = enriched([], finds, frames=frame)
    np.testing.assert_array_equal(nothing.draw(frame), frame)
    with pytest.raises(InvalidInput, match="frame"):
        found.draw(frame[..., 0])


@pytest.mark.parametrize("spelling", ["traffic light", "Traffic_Light", "TRAFFIC-LIGHT"])
@pytest.mark.parametrize("ruled", ["traffic_light", "Traffic light"])
def test_labels_of_rules_and_detections_are_compared_in_any_spelling(spelling: str, ruled: str) -> None:
    rules = table(Rule(models=["a"], labels=[ruled]), Rule(models=["b"], labels=["light"]))
    found, asked = enriched([(spelling, CAR[1])], rules=rules)
    assert set(asked) == {"a"}
    assert found.detections[0].label == spelling


# ---------------------------------------------------------------- any table, any event

NAMES, LABELS = "abcdef", ["person", "car", "dog", "*"]
ERRORS = [
    InvalidInput("frame"), WorkerCrashed("x"), QueueFull("x"), LoadFailed("x", retry_after=0.5),
    DeadlineExceeded("x"), LoadFailed("x", retry_after=99.0),
]  # fmt: skip


@st.composite
def tables(draw: st.DrawFn) -> Table:
    """Each model in one rule, after none or one of the models before it."""
    rules = []
    for i, name in enumerate(draw(st.permutations(NAMES))):
        earlier = [rule.models[0] for rule in rules]
        after = draw(st.sampled_from([None, *earlier])) if i else None
        on = "box" if after else draw(st.sampled_from(["box", "box", "frame", "video"]))
        rules.append(
            Rule(
                models=[name],
                labels=None if after else draw(st.lists(st.sampled_from(LABELS), min_size=1, max_size=3)),
                after=after,
                on=on,
                grow=draw(st.sampled_from([0.0, 0.1, 1.0])) if on == "box" else 0.0,
                upper=draw(st.sampled_from([1.0, 0.5, 0.01])) if on == "box" else 1.0,
                suspicious=draw(st.integers(0, 5)) == 0,
                min_frames=draw(st.sampled_from([0, 0, 2])),
                min_persons=draw(st.sampled_from([0, 0, 2])),
            )
        )
    states = draw(st.dictionaries(st.sampled_from(NAMES), st.sampled_from(["loaded", "loading", "failed"])))
    return table(*rules, states=states, parallel=draw(st.integers(1, 4)), timeout=10.0)


NUMBERS = st.floats(-50, 250) | st.sampled_from([0.0, 1.0, 100.0, 200.0, math.nan, math.inf])
FOUND = st.lists(
    st.tuples(
        st.sampled_from(["person", "PERSON", "car", "Dog", "chair"]),
        st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS),
        st.sampled_from([0.2, 0.5, 1.0]),
    ),
    max_size=5,
).filter(lambda found: not found or any(not -0.1 <= value <= 1.1 for _, box, _ in found for value in box))  # pixels


def expected(rules: list[Rule], detection: Any) -> set[str]:
    """The models between which and this detection something must be said."""
    if detection.score < 0.5:
        return set()
    direct = {
        model
        for rule in rules
        if rule.on == "box" and rule.labels is not None
        for model in rule.models
        if "*" in rule.labels or detection.label.lower() in rule.labels
    }
    return _with_chains(rules, direct)


def _with_chains(rules: list[Rule], models: set[str]) -> set[str]:
    more = models | {model for rule in rules if rule.after in models for model in rule.models}
    return models if more == models else _with_chains(rules, more)


@settings(max_examples=300, deadline=None)
@given(tables(), FOUND, st.integers(1, 3), st.booleans(), st.data())
def test_between_a_model_and_what_it_is_for_exactly_one_thing_is_said(
    rules: Table, detections: list[Any], frames: int, suspicious: bool, data: st.DataObject
) -> None:
    plan = Plan(rules, Event([FRAME] * frames, detections, suspicious=suspicious), 0.0)
    now, under_way, asked = 0.0, dict[str, Ask](), dict[str, int]()
    while not plan.done:
        for ask in plan.take(now):
            assert ask.model not in under_way
            asked[ask.model] = asked.get(ask.model, 0) + 1
            under_way[ask.model] = ask
            for x1, y1, x2, y2 in ask.boxes or ():
                assert 0 <= x1 < x2 <= 200
                assert 0 <= y1 < y2 <= 100
        assert len(under_way) <= rules.parallel
        if data.draw(st.integers(0, 30)) == 0:
            plan.fail(BrokerUnreachable("gone"), now)
            break
        if under_way:
            now += data.draw(st.sampled_from([0.0, 0.1, 1.0, 4.0]))
            model = data.draw(st.sampled_from(sorted(under_way)))
            ask = under_way.pop(model)
            count = 1 if ask.boxes is None else len(ask.boxes)
            answers = [
                boxes(*data.draw(st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS), max_size=2)))
                for _ in range(count)
            ]
            outcome = data.draw(st.sampled_from([answers if ask.boxes is not None else answers[0]] * 4 + ERRORS))
            plan.answer(model, outcome, now)
        elif not plan.done:
            assert now < plan.wake <= plan.deadline
            now = plan.wake
    found = plan.result(now)
    event = {model for rule in rules.rules if rule.on != "box" for model in rule.models}
    said = [
        (detection.answers, detection.missing, detection.skipped, expected(rules.rules, detection))
        for detection in found.detections
    ]
    for answers, missing, skipped, wanted in [
        *said,
        (found.frame, found.missing, found.skipped, _with_chains(rules.rules, event)),
    ]:
        names = [*answers, *missing, *skipped]
        assert sorted(names) == sorted(wanted)
        assert all(isinstance(error, ZooError) for error in missing.values())
        assert all(skipped.values())
    for detection, (*_, wanted) in zip(found.detections, said, strict=True):
        assert bool(detection.note) == (not wanted)
    assert all(count <= 2 for count in asked.values())
    assert found.timings.keys() == asked.keys()
    json.dumps(found.to_dict(), allow_nan=True)
