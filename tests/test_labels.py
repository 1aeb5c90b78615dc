"""Labels in all their spellings: what is alike, and what a message lists."""

from __future__ import annotations

import pytest

from zoo.errors import InvalidInput
from zoo.labels import Classes, folded, listed


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
    labels = [f"label {i}" for i in range(1000)]
    with pytest.raises(InvalidInput) as refused:
        Classes(labels).numbers(["sword"])
    text = str(refused.value)
    assert len(text) < 1700
    assert "label 0, label 1, " in text
    shown = text.count("label ")
    assert text.endswith(f" and {1000 - shown} more (`zoo ls --labels` lists them)")
    assert listed(["a", "b"]) == "a, b"
    assert listed([]) == ""


def test_stand_ins_spell_their_labels_in_several_ways() -> None:
    common = pytest.importorskip("workers.models.standins.common")
    labels = ["glass_shatter", "glass_shatter", "glass_shatter", "dent"]
    assert common.spelled(labels) == ["glass_shatter", "Glass shatter", "GLASS-SHATTER", "dent"]
    assert [*map(folded, common.spelled(labels))] == [*map(folded, labels)]
    assert common.named(["cats", "dogs"]) == {"id2label": {0: "cats", 1: "Dogs"}, "label2id": {"cats": 0, "Dogs": 1}}
