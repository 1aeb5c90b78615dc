"""Postures of drawn skeletons. Their joints are in torsos from the hips, x ahead, y down."""

from __future__ import annotations

import numpy as np
import pytest

from workers.models.shared.keypoints import COCO, spelled, unnamed
from workers.models.shared.posture import POSTURES, posture

SIDES = ("left", "right")
Point = tuple[float, float]


def body(shoulders: list[Point], hips: list[Point], knees: list[Point], ankles: list[Point]) -> dict[str, Point]:
    """Joints by name; each list holds the left one and the right one."""
    lists = {"shoulder": shoulders, "hip": hips, "knee": knees, "ankle": ankles}
    return {f"{side}_{joint}": pair[i] for joint, pair in lists.items() for i, side in enumerate(SIDES)}


def beside(shoulder: Point, left: list[Point], right: list[Point]) -> dict[str, Point]:
    """Seen from the side, hips at (0, 0): knee and ankle of each leg."""
    return body([shoulder, shoulder], [(0, 0), (0, 0)], [left[0], right[0]], [left[1], right[1]])


def before(knees: list[Point], ankles: list[Point], top: float = -1.0) -> dict[str, Point]:
    """Seen from the front."""
    return body([(0.35, top), (-0.35, top)], [(0.2, 0), (-0.2, 0)], knees, ankles)


STRAIGHT: list[Point] = [(0, 0.85), (0, 1.7)]
LEVEL: list[Point] = [(0.85, 0), (0.85, 0.85)]

DRAWN = [
    ("standing", "side", beside((0, -1), STRAIGHT, STRAIGHT)),
    ("standing", "one foot a little ahead", beside((0, -1), [(0.1, 0.84), (0.2, 1.68)], [(-0.05, 0.85), (-0.1, 1.7)])),
    ("standing", "front", before([(0.2, 0.85), (-0.2, 0.85)], [(0.2, 1.7), (-0.2, 1.7)])),
    ("standing", "at ease", before([(0.28, 0.85), (-0.28, 0.85)], [(0.37, 1.7), (-0.37, 1.7)])),
    ("standing", "bent down", beside((0.95, -0.2), STRAIGHT, STRAIGHT)),
    ("walking", "longest step", beside((0.1, -1), [(0.35, 0.77), (0.7, 1.55)], [(-0.15, 0.83), (-0.65, 1.5)])),
    ("walking", "swing", beside((0, -1), STRAIGHT, [(0.3, 0.8), (-0.2, 1.45)])),
    ("walking", "towards the camera", before([(0.2, 0.85), (-0.2, 0.8)], [(0.2, 1.7), (-0.2, 1.3)])),
    ("walking", "running", beside((0.3, -0.95), [(0.7, 0.45), (0.75, 1.3)], [(-0.2, 0.82), (-1.0, 0.95)])),
    ("walking", "upstairs", beside((0.1, -1), LEVEL, STRAIGHT)),
    ("sitting", "on a chair, side", beside((-0.1, -1), LEVEL, LEVEL)),
    ("sitting", "on a chair, leaning over a desk", beside((0.7, -0.7), LEVEL, LEVEL)),
    ("sitting", "on a chair, front", before([(0.3, 0.2), (-0.3, 0.2)], [(0.3, 1.05), (-0.3, 1.05)])),
    ("sitting", "on a chair, from above", before([(0.3, 0.45), (-0.3, 0.45)], [(0.3, 1.2), (-0.3, 1.2)], top=-0.85)),
    ("sitting", "on the floor", beside((-0.2, -1), [(0.85, 0.02), (1.7, 0.05)], [(0.85, 0.02), (1.7, 0.05)])),
    ("crouching", "level squat", beside((0.3, -0.95), [(0.85, 0), (0.36, 0.7)], [(0.85, 0), (0.36, 0.7)])),
    ("crouching", "deep squat, front", before([(0.5, -0.1), (-0.5, -0.1)], [(0.35, 0.5), (-0.35, 0.5)])),
    ("crouching", "half down", beside((0.6, -0.8), [(0.6, 0.62), (-0.1, 1.1)], [(0.6, 0.62), (-0.1, 1.1)])),
    ("crouching", "on both knees", beside((0, -1), [(0, 0.85), (-0.85, 0.87)], [(0, 0.85), (-0.85, 0.87)])),
    ("crouching", "on one knee", beside((0, -1), LEVEL, [(0, 0.85), (-0.85, 0.87)])),
    ("lying", "stretched out", beside((-1, 0.05), [(0.85, 0), (1.7, 0.05)], [(0.85, -0.05), (1.7, -0.1)])),
    ("lying", "curled up", beside((-1, 0), [(0.5, 0.4), (0.9, -0.1)], [(0.55, 0.35), (0.95, -0.15)])),
    ("lying", "across a slope", beside((-0.9, -0.45), [(0.77, 0.35), (1.55, 0.7)], [(0.77, 0.38), (1.55, 0.72)])),
    ("unknown", "upside down", beside((0, 1), [(0, -0.85), (0, -1.7)], [(0, -0.85), (0, -1.7)])),
    ("unknown", "legs up in the air", beside((0, -1), [(0.5, -0.7), (0.5, -1.5)], [(0.5, -0.7), (0.5, -1.5)])),
    ("unknown", "torso towards the camera", beside((0, -0.2), STRAIGHT, STRAIGHT)),
    ("unknown", "all in one place", beside((0, 0), [(0, 0), (0, 0)], [(0, 0), (0, 0)])),
]


def drawn(joints: dict[str, Point], scale: float = 100.0) -> np.ndarray:
    """(17, 2) pixels; the points that no rule looks at lie in a corner."""
    points = np.zeros((len(COCO), 2), np.float32)
    for name, (x, y) in joints.items():
        points[COCO.index(name)] = 400 + scale * x, 300 + scale * y
    return points


def judged(joints: dict[str, Point], **how) -> str:
    return posture(drawn(joints, **how), np.ones(len(COCO), np.float32), COCO)


@pytest.mark.parametrize(("expected", "how", "joints"), DRAWN, ids=[f"{word}: {how}" for word, how, _ in DRAWN])
def test_drawn_people(expected, how, joints):
    assert judged(joints) == expected
    facing_left = {name: (-x, y) for name, (x, y) in joints.items()}
    swap = {"left": "right", "right": "left"}
    other_side = {
        f"{swap[side]}_{joint}": joints[f"{side}_{joint}"] for side, joint in (name.split("_") for name in joints)
    }
    assert judged(facing_left) == judged(other_side) == expected
    assert judged(joints, scale=3.0) == judged(joints, scale=2000.0) == expected


@pytest.mark.parametrize(
    "joints",
    [
        body([(175, 505), (85, 500)], [(155, 640), (100, 640)], [(175, 765), (87, 755)], [(190, 855), (70, 850)]),
        body([(320, 495), (255, 500)], [(300, 635), (262, 635)], [(318, 738), (262, 755)], [(283, 798), (266, 835)]),
    ],
    ids=["light coat", "dark coat"],
)
def test_two_who_walk_in_a_photograph(joints):
    """Read off bus.jpg by eye. Under their coats the hips may as well be taken to lie lower."""
    assert judged(joints) == "walking"
    lower = {name: (x, y + 25 * name.endswith("hip")) for name, (x, y) in joints.items()}
    assert judged(lower) == "walking"


def partly(*hidden: str, score: float = 0.1) -> str:
    scores = np.ones(len(COCO), np.float32)
    scores[[COCO.index(name) for name in hidden]] = score
    return posture(drawn(DRAWN[0][2]), scores, COCO)


@pytest.mark.parametrize(
    "hidden",
    [
        ("left_shoulder", "right_shoulder"),
        ("left_hip", "right_hip"),
        ("left_ankle", "right_knee"),
        ("left_hip", "right_ankle"),
        COCO,
    ],
)
def test_too_little_of_a_body_is_unknown(hidden):
    assert partly(*hidden) == "unknown"


def test_one_shoulder_and_one_leg_are_enough():
    assert partly("left_shoulder", "left_hip", "left_knee", "left_ankle", "nose") == "standing"


def test_points_count_from_a_score_of_0_3():
    assert partly(*COCO, score=0.3) == "standing"
    assert partly(*COCO, score=0.29) == "unknown"
    points, scores = drawn(DRAWN[0][2]), np.full(len(COCO), 0.29, np.float32)
    assert posture(points, scores, COCO, min_score=0.2) == "standing"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_points_that_are_not_numbers_are_not_seen(bad):
    assert posture(np.full((len(COCO), 2), bad, np.float32), np.ones(len(COCO)), COCO) == "unknown"
    assert posture(drawn(DRAWN[0][2]), np.full(len(COCO), np.nan), COCO) == "unknown"


def test_other_skeletons_are_unknown():
    assert posture(np.zeros((21, 2), np.float32), np.ones(21), unnamed(21)) == "unknown"


def test_random_points_get_one_of_the_words():
    rng = np.random.default_rng(0)
    words = {posture(rng.uniform(0, 500, (17, 2)), rng.uniform(0, 1, 17), COCO) for _ in range(500)}
    assert words <= set(POSTURES)


def test_names_in_cocos_spelling():
    assert [spelled(name) for name in ("Nose", "L_Eye", "R_Ankle", "left_hip", "Right Knee", "l-ear")] == [
        "nose", "left_eye", "right_ankle", "left_hip", "right_knee", "left_ear",
    ]  # fmt: skip
    assert unnamed(17) == list(COCO)
    assert unnamed(2) == ["point_0", "point_1"]
