"""Labels in all their spellings: what is alike, what a message lists, and what files tell before a load."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from zoo.config.schema import ModelConfig
from zoo.errors import InvalidInput
from zoo.labels import Classes, folded, listed
from zoo.weights import labels


@pytest.mark.parametrize(
    "spellings",
    [
        ("glass_shatter", "Glass Shatter", "glass-shatter", "GLASS_SHATTER", " glass  shatter"),
        ("Gun", "gun", "GUN"),
        ("background", "Background", "__background__"),
        ("Straße", "STRASSE"),
    ],
)
def test_spellings_of_one_label_are_alike(spellings: tuple[str, ...]) -> None:
    assert len({folded(one) for one in spellings}) == 1


def test_labels_are_compared_whole_and_what_is_left_of_none_is_itself() -> None:
    assert folded("male") != folded("female")
    assert folded("non-violent") != folded("violent")
    assert (folded("*"), folded("-"), folded("_")) == ("*", "-", "_")


def test_classes_are_asked_for_by_number_or_in_any_spelling() -> None:
    classes = Classes({0: "Gun", 1: "glass_shatter", 4: "Glass Shatter", 7: "knife"})
    assert classes.numbers(None) is None
    assert classes.numbers([]) == []
    assert classes.numbers(["KNIFE", "glass-shatter", 0]) == [7, 1, 4, 0]
    assert Classes(["a", "b"]).numbers(["B"]) == [1]


@pytest.mark.parametrize("wanted", ["sword", "gu", 2, -1, ""])
def test_a_class_that_the_model_does_not_have_is_refused_with_those_that_it_has(wanted: int | str) -> None:
    with pytest.raises(InvalidInput) as refused:
        Classes({0: "Gun", 1: "Knife"}).numbers(["gun", wanted])
    assert str(refused.value) == f"options: classes: {wanted!r} is none of Gun, Knife"
    assert not refused.value.retryable


def test_a_thousand_labels_are_listed_as_far_as_a_message_goes() -> None:
    with pytest.raises(InvalidInput) as refused:
        Classes([f"label {i}" for i in range(1000)]).numbers(["sword"])
    text = str(refused.value)
    assert len(text) < 1700
    with pytest.raises(InvalidInput, match=r"is none of Gun$"):
        Classes(["Gun"]).numbers(["sword" * 1000])
    assert "label 0, label 1, " in text
    shown = text.count("label ")
    assert text.endswith(f" and {1000 - shown} more (`zoo ls --labels` lists them)")
    assert listed(["a", "b"]) == "a, b"
    assert listed([]) == ""


def test_stand_ins_spell_their_labels_in_several_ways() -> None:
    common = pytest.importorskip("workers.models.standins.common")
    given = ["glass_shatter", "glass_shatter", "glass_shatter", "dent"]
    assert common.spelled(given) == ["glass_shatter", "Glass shatter", "GLASS-SHATTER", "dent"]
    assert [*map(folded, common.spelled(given))] == [*map(folded, given)]
    assert common.named(["cats", "dogs"]) == {"id2label": {0: "cats", 1: "Dogs"}, "label2id": {"cats": 0, "Dogs": 1}}


# ---------------------------------------------------------------- before a load


def described(folder: Path, adapter: str = "my.own:Model", category: str = "", **options: Any) -> list[str] | None:
    return labels.described(ModelConfig(name="it", adapter=adapter, category=category, options=options), folder)


def write(folder: Path, id2label: Any) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "vit", "id2label": id2label}))


CLASSIFIER, VEHICLE, PROMPTED = (
    f"workers.models.{name}"
    for name in ("classify:ImageClassifier", "vehicle:VehicleClassifier", "clip:PromptClassifier")
)


def test_config_json_tells_labels_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    write(tmp_path, {str(i): f"label {i}" for i in reversed(range(12))})
    assert described(tmp_path) == described(tmp_path, CLASSIFIER) == [f"label {i}" for i in range(12)]
    write(tmp_path, {"0": "sun/clear", "1": 7})
    assert described(tmp_path, CLASSIFIER, labels=["day", "night"]) == ["sun/clear", "7"]


@pytest.mark.parametrize(
    "id2label", [None, {}, {"0": "LABEL_0", "1": "LABEL_1"}, {"1": "b"}, {"0": "a", "2": "c"}, ["a"], "a", {"x": "a"}]
)
def test_a_config_json_without_labels_leaves_them_to_config_toml_or_the_load(tmp_path: Path, id2label: Any) -> None:
    write(tmp_path, id2label)
    assert described(tmp_path, CLASSIFIER) is None
    assert described(tmp_path, CLASSIFIER, labels=["day", "night"]) == ["day", "night"]
    assert described(tmp_path, labels=["day", "night"]) is None  # what another adapter means by that is its own


def test_classes_txt_is_for_the_adapters_that_read_it(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("work_van\n\n  Pickup truck \n")
    assert described(tmp_path, VEHICLE) == described(tmp_path) == ["work_van", "Pickup truck"]
    assert described(tmp_path, CLASSIFIER) is None
    write(tmp_path, {"0": "a"})
    assert described(tmp_path, VEHICLE) == ["work_van", "Pickup truck"]
    assert described(tmp_path) == ["a"]


def test_categories_prompts_and_single_files(tmp_path: Path) -> None:
    write(tmp_path, {"0": "L_Eye"})
    assert described(tmp_path, category="embedding") == described(tmp_path, category="ocr") == []
    assert described(tmp_path, category="pose") is None
    assert described(tmp_path, PROMPTED, prompts=["a hat", "no hat"]) == ["a hat", "no hat"]
    (tmp_path / "best.pt").touch()
    assert described(tmp_path / "best.pt") is None
    assert described(tmp_path / "none") is None
    assert labels.described(ModelConfig(name="it"), None) is None


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"[" * 100_000, b'{"id2label": {"0": "a"}'])
def test_a_damaged_config_json_tells_nothing(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "config.json").write_bytes(text)
    assert described(tmp_path) is None


def test_a_fifo_is_not_waited_for_and_a_changed_file_is_read_again(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    assert described(tmp_path) is None
    (tmp_path / "config.json").unlink()
    for label in ("one", "another"):
        write(tmp_path, {"0": label})
        assert described(tmp_path) == [label]
