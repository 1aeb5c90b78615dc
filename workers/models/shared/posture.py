"""What a body does, by where its joints are in one picture: standing, walking, sitting, crouching or lying.

Rules over the shoulders, hips, knees and ankles that were seen. Lengths are in torsos (shoulders to hips, as seen), so
neither the size of the picture nor the distance of the person counts. The limits follow from the proportions of a body
(Drillis and Contini 1966; Winter, Biomechanics and Motor Control of Human Movement): of the height, the torso is 0.29,
the thigh and the shin 0.245 each, so thigh and shin are 0.85 torsos, and the hips of a standing person are 1.7 above
the ankles.

One picture has no depth and no time. So walking and running are one word; a person who stands still with one foot
ahead, or on one leg, walks; one who lies along the camera's line of sight, or is seen from steeply above, may be taken
for upright; on all fours is lying, on the knees is crouching. What the rules cannot tell is "unknown".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

POSTURES = ("standing", "walking", "sitting", "crouching", "lying", "unknown")

SEEN = 0.3  # a point that scores less is a guess, and is not drawn either

# Lying: the torso is nearer to the horizontal than 30 degrees, and so is the whole body: a straight one at 30 degrees
# is 0.58 (its tangent) times as high as wide. Who bends down has a flat torso too, but legs below it.
FLAT_TORSO = 60.0  # degrees from the vertical
FLAT_BODY = 0.6  # height by width
# How far the knee is below the hip: 0.85 when standing, 0.60 with the thigh at 45 degrees. Less than that, because hips
# under a coat are easily marked too low, which makes the torso longer as well.
THIGH_DOWN = 0.55
# Hips above ankles. On a chair a shin's length, 0.85; a squat with level thighs has its shins 35 degrees aslant and its
# hips 0.70 above the ankles. Knees bent to a right angle leave 1.2, kneeling 0.85.
SQUAT = 0.75
LOW = 1.2
# Angles of a knee, in degrees; 180 is straight. One that stands is never quite: it gives by 20 to 30 degrees when
# walking takes weight on it, by 60 in its swing.
STRAIGHT = 145.0
BENT = 130.0
# Ankles apart, sideways in the picture. A step is 0.41 of the height, 1.4 torsos, at its longest; a third of that is
# more than a foot set ahead. A standing person has them no farther apart than the shoulders look from the same side.
STRIDE = 0.5
STANCE = 1.2  # by the width of the shoulders
# One ankle above the other: a foot in the air, or one step nearer to a camera that looks down.
LIFTED = 0.3
# Twice its proportion: the torso points towards the camera, and is no measure for anything.
FORESHORTENED = 1.7


def posture(points: np.ndarray, scores: np.ndarray, names: Sequence[str], min_score: float = SEEN) -> str:
    """One of `POSTURES`.

    Args:
        points: (k, 2), xy in pixels, y down. scores: (k,). names: of the k points, in COCO's spelling.
        min_score: points below it count as not seen. A shoulder, and the hip, knee and ankle of one leg, have to be
            seen; else the answer is "unknown".
    """
    seen = {
        name: point
        for name, point, score in zip(names, np.asarray(points, np.float64), scores, strict=True)
        if score >= min_score and np.isfinite(point).all()
    }
    shoulders = [seen[name] for name in ("left_shoulder", "right_shoulder") if name in seen]
    hips = [seen[name] for name in ("left_hip", "right_hip") if name in seen]
    legs = [
        np.stack([seen[f"{side}_{joint}"] for joint in ("hip", "knee", "ankle")])
        for side in ("left", "right")
        if all(f"{side}_{joint}" in seen for joint in ("hip", "knee", "ankle"))
    ]
    if not shoulders or not legs:
        return "unknown"
    torso = np.mean(hips, axis=0) - np.mean(shoulders, axis=0)
    length = float(np.hypot(*torso))
    limbs = [float(np.hypot(*bone)) for leg in legs for bone in np.diff(leg, axis=0)]
    if length == 0 or min(limbs) == 0 or max(limbs) > FORESHORTENED * length:
        return "unknown"

    lean = float(np.degrees(np.arctan2(abs(torso[0]), torso[1])))  # 0 upright, 90 level, 180 upside down
    width, height = np.ptp(np.concatenate([shoulders, hips, *legs]), axis=0)
    if FLAT_TORSO <= lean <= 180 - FLAT_TORSO and height <= FLAT_BODY * width:
        return "lying"
    ankle_drop = max(leg[2, 1] - leg[0, 1] for leg in legs) / length
    if lean > 180 - FLAT_TORSO or ankle_drop <= 0:
        return "unknown"

    knees = [_angle(leg) for leg in legs]
    # The lower knee decides: who runs or goes upstairs lifts the other thigh as high as one who sits.
    if max(leg[1, 1] - leg[0, 1] for leg in legs) / length < THIGH_DOWN:
        legs_stretched = min(knees) >= STRAIGHT  # sitting on the floor
        return "sitting" if ankle_drop >= SQUAT or legs_stretched else "crouching"
    if ankle_drop < LOW and max(knees) < STRAIGHT:
        return "crouching"
    if len(legs) == 2:
        apart, lifted = np.abs(legs[0][2] - legs[1][2]) / length
        broad = abs(shoulders[0][0] - shoulders[-1][0]) / length
        if apart > max(STRIDE, STANCE * broad) or lifted > LIFTED:
            return "walking"
    if max(knees) < BENT:
        return "crouching"
    return "walking" if min(knees) < STRAIGHT else "standing"


def _angle(leg: np.ndarray) -> float:
    """Of a knee, in degrees, between hip and ankle: (3, 2) points."""
    up, down = leg[0] - leg[1], leg[2] - leg[1]
    return float(np.degrees(np.arccos(np.clip(up @ down / (np.hypot(*up) * np.hypot(*down)), -1, 1))))
