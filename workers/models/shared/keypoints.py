"""What the points of a body are called."""

from __future__ import annotations

import re

# In COCO's order (Lin et al., Microsoft COCO, 2014).
COCO = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
    "right_ankle",
)  # fmt: skip

_SIDES = {"l": "left", "r": "right"}


def unnamed(count: int) -> list[str]:
    """For a checkpoint that names none of its points: COCO's names for 17 of them, else numbers."""
    return list(COCO) if count == len(COCO) else [f"point_{i}" for i in range(count)]


def spelled(name: str) -> str:
    """A checkpoint's name in COCO's spelling, so that one look-up works for all: "L_Eye" is "left_eye"."""
    words = re.split(r"[\s_-]+", name.strip().lower())
    return "_".join([_SIDES.get(words[0], words[0]), *words[1:]])
