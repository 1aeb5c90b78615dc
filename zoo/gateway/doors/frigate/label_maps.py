"""Which number Frigate gives to a class: the line of its label map, from 0."""

from __future__ import annotations

from zoo.gateway.doors.frigate.messages import key

# COCO's 91 categories. The published checkpoints know 80 of them, in the same order.
COCO_91 = [
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "street sign", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "hat", "backpack", "umbrella", "shoe", "eye glasses", "handbag", "tie",
    "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard",
    "surfboard", "tennis racket", "bottle", "plate", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana",
    "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "mirror", "dining table", "window", "desk", "toilet", "door", "tv", "laptop", "mouse",
    "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "blender", "book",
    "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush", "hair brush",
]  # fmt: skip
NOT_IN_80 = {
    "street sign", "hat", "shoe", "eye glasses", "plate", "mirror", "window", "desk", "door", "blender", "hair brush",
}  # fmt: skip


def numbers(labels: str | list[str]) -> dict[str, int]:
    """By `messages.key`. Of a name that is there twice, the first."""
    names = labels
    if isinstance(names, str):
        names = COCO_91 if names == "coco91" else [name for name in COCO_91 if name not in NOT_IN_80]
    made: dict[str, int] = {}
    for number, name in enumerate(names):
        made.setdefault(key(name), number)
    return made
