"""Stand-ins for detectors of the DETR family."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from workers.models.standins.common import Builder, built, lively, named, pieces, settle

# COCO's 80 classes as the published checkpoints of RT-DETR spell them.
COCO = [
    "person", "bicycle", "car", "motorbike", "aeroplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "sofa", "pottedplant", "bed", "diningtable", "toilet",
    "tvmonitor", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink",
    "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
]  # fmt: skip
FOUND = ("person", "car", "dog")  # of what the stand-in finds some in an ordinary picture
SMALL_RESNET = {"embedding_size": 16, "hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 1, 1], "layer_type": "basic"}
SMALL_HGNET = {
    "stem_channels": [3, 8, 16], "stage_in_channels": [16, 24, 32, 48], "stage_mid_channels": [8, 8, 16, 16],
    "stage_out_channels": [24, 32, 48, 64], "stage_num_blocks": [1, 1, 1, 1], "stage_numb_of_layers": [2, 2, 2, 2],
    "hidden_sizes": [24, 32, 48, 64], "depths": [1, 1, 1, 1], "embedding_size": 16,
}  # fmt: skip
SMALL_DINOV2 = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "mlp_ratio": 2, "out_indices": [1, 2, 3],
    "num_windows": 2, "image_size": 224, "patch_size": 14,
}  # fmt: skip
SMALL_DETR: dict[str, Any] = {
    "d_model": 32, "encoder_hidden_dim": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "decoder_layers": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "decoder_in_channels": [32, 32, 32],
    "hidden_expansion": 0.5, "num_queries": 100, "encoder_in_channels": [24, 32, 48], "anchor_image_size": [640, 640],
}  # fmt: skip
SMALL_RF_DETR: dict[str, Any] = {
    "d_model": 32, "decoder_ffn_dim": 64, "decoder_layers": 2, "decoder_self_attention_heads": 4,
    "decoder_cross_attention_heads": 4, "num_queries": 50, "group_detr": 2, "intermediate_size": 64,
}  # fmt: skip


def detector(family: str, size: Mapping[str, Any] | None = None, backbone: Mapping[str, Any] | None = None) -> Builder:
    """A detector of COCO's classes in the published layout, small unless told otherwise.

    Args:
        family: "rt_detr", "rt_detr_v2", "d_fine" or "rf_detr".
        size, backbone: of the network and of its backbone, in the words of their configurations.
    """

    def make() -> tuple[Any, Any]:
        adapter: Any = import_module("workers.models.detr")
        transformers: Any = import_module("workers.models.shared.folder").transformers

        if family == "rf_detr":
            below = transformers.RfDetrDinov2Config(**(backbone or SMALL_DINOV2))
            config = transformers.RfDetrConfig(backbone_config=below, **(size or SMALL_RF_DETR), **named(COCO))
            processor = transformers.RfDetrImageProcessor(size={"height": 224, "width": 224}, do_pad=False)
        else:
            kind, small = ("hgnet_v2", SMALL_HGNET) if family == "d_fine" else ("rt_detr_resnet", SMALL_RESNET)
            below = transformers.AutoConfig.for_model(kind, out_indices=[2, 3, 4], **(backbone or small))
            config = transformers.AutoConfig.for_model(
                family, backbone_config=below, **(size or SMALL_DETR), **named(COCO)
            )
            processor = transformers.RTDetrImageProcessor()
        model = adapter.AutoModelForObjectDetection.from_config(config)
        lively(model)
        _calibrate(model, processor)
        return model, processor

    return built(make)


def _calibrate(model: Any, processor: Any) -> None:
    """Has a random network find a few of `FOUND` in an ordinary picture, and next to nothing else."""
    import torch

    pictures = [torch.from_numpy(piece).permute(2, 0, 1) for piece in pieces()[::5]]
    pixels = processor(pictures, return_tensors="pt")["pixel_values"]
    settle(model, pixels)
    if model.config.model_type == "rf_detr":
        last = model.class_embed
        model.bbox_embed.layers[-1].weight.mul_(0.2)  # nothing else bounds what it adds to a proposal
    else:
        last = model.model.decoder.class_embed[-1]
    logits = model(pixels).logits.flatten(0, 1)
    middle, high = logits.median(0).values, logits.topk(2 * len(pictures), dim=0).values[-1]
    found = torch.tensor([label in FOUND for label in COCO])
    middle_to, high_to = torch.where(found, -2.5, -8.0), torch.where(found, 1.0, -5.0)
    scale = (high_to - middle_to) / (high - middle).clamp_min(1e-6)
    last.weight.mul_(scale[:, None])
    last.bias.copy_((last.bias - middle) * scale + middle_to)


STANDINS: dict[str, tuple[str, Builder]] = {"coco-detector": ("coco-detector", detector("rt_detr_v2"))}
