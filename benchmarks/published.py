"""Checkpoints of the published sizes with random weights, in the form and place of the published ones.

A stand-in of a few megabytes answers in a few milliseconds, and beside that whatever is around the network looks large.
So what is measured here are the published architectures, whose sizes are in their published configurations, made by the
builders of the stand-ins. `python -m benchmarks.published DIR NAME…` writes them; they are never kept.

Of CLIP ViT-L/14 and YOLO-World the text half stays small: nothing is measured that would use it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from workers.models import standins
from workers.models.standins import classify, clip, dense, detr, yolo
from workers.models.standins.common import Builder

BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
RESNET_18 = {
    "embedding_size": 64, "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2], "layer_type": "basic",
}  # fmt: skip
VITPOSE_SMALL = {
    "hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 12, "part_features": 96, "out_indices": [12],
}  # fmt: skip
DINOV2_SMALL = {
    "hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "out_indices": [3, 6, 9, 12],
}  # fmt: skip
DEPTH_SMALL = {
    "reassemble_hidden_size": 384, "neck_hidden_sizes": [48, 96, 192, 384], "fusion_hidden_size": 64,
    "head_hidden_size": 32,
}  # fmt: skip
SEGFORMER_B2 = {
    "hidden_sizes": [64, 128, 320, 512], "depths": [3, 4, 6, 3], "num_attention_heads": [1, 2, 5, 8],
    "decoder_hidden_size": 768,
}  # fmt: skip
RT_DETR_18 = {"encoder_in_channels": [128, 256, 512], "hidden_expansion": 0.5, "decoder_layers": 3}
MIT = {"mit_hidden_size": 512, "mit_intermediate_size": 2048, "mit_num_attention_heads": 8}
TEXT = {
    "hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8, "intermediate_size": 2048,
    "vocab_size": 49408,
}  # fmt: skip

# By name, where the stand-in is smaller than what is published.
LARGER: dict[str, Builder] = {
    "coco-detector": detr.detector("rt_detr_v2", RT_DETR_18, RESNET_18),
    "violence-detection": classify.classifier("vit", ["non-violent", "violent"], BASE),
    "vit-age-classifier": classify.classifier("vit", classify.AGES, BASE),
    "vit-gender-classifier": classify.classifier("vit", ["female", "male"], BASE),
    "weather-classification": classify.classifier("siglip", classify.WEATHER, BASE),
    "pet-classifier": classify.classifier("resnet", ["cats", "dogs"], RESNET_18),
    "clip-vit-l": clip.clip(768, {**LARGE, "patch_size": 14}),
    "fashion-clip": clip.clip(512, {**BASE, "patch_size": 32}, TEXT),
    "xclip-base": clip.xclip(8, 512, 8, {**BASE, **MIT, "patch_size": 32}, TEXT),
    "vitpose-small": dense.vitpose(VITPOSE_SMALL),
    "depth-anything-v2-small": dense.depth_anything(DINOV2_SMALL, DEPTH_SMALL),
    "segformer-b2-clothes": dense.segformer(SEGFORMER_B2),
    "yolo-world-s": yolo.world("yolov8s-worldv2.yaml"),
    "vehicle-damage-detection": yolo.yolo(
        "yolo11x-seg.yaml", ["crack", "dent", "glass_shatter", "lamp_broken", "scratch", "tire_flat"]
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Write checkpoints of the published sizes with random weights.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help="as in config.toml")
    args = parser.parse_args()
    for name in args.names:
        if name in standins.STANDINS:
            relative, small = standins.STANDINS[name]
            standins.place(LARGER.get(name, small), args.directory / relative, name)


if __name__ == "__main__":
    main()
