"""Stand-ins for the models that answer about every pixel: keypoints, depth, segmentation."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from workers.models.standins.common import Builder, built, lively, named, photos

KEYPOINTS = [
    "Nose", "L_Eye", "R_Eye", "L_Ear", "R_Ear", "L_Shoulder", "R_Shoulder", "L_Elbow", "R_Elbow", "L_Wrist", "R_Wrist",
    "L_Hip", "R_Hip", "L_Knee", "R_Knee", "L_Ankle", "R_Ankle",
]  # fmt: skip
CLOTHES = [
    "Background", "Hat", "Hair", "Sunglasses", "Upper-clothes", "Skirt", "Pants", "Dress", "Belt", "Left-shoe",
    "Right-shoe", "Face", "Left-leg", "Right-leg", "Left-arm", "Right-arm", "Bag", "Scarf",
]  # fmt: skip
SMALL_VITPOSE = {
    "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "part_features": 12, "out_indices": [3],
}  # fmt: skip
SMALL_DINOV2 = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "out_indices": [1, 2, 3, 4]}
SMALL_DEPTH = {
    "reassemble_hidden_size": 32, "neck_hidden_sizes": [8, 16, 32, 32], "fusion_hidden_size": 16, "head_hidden_size": 8,
}  # fmt: skip
SMALL_SEGFORMER = {
    "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 3, 4],
    "decoder_hidden_size": 64,
}  # fmt: skip
IMAGENET: dict[str, Any] = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def vitpose(backbone: Mapping[str, Any] = SMALL_VITPOSE) -> Builder:
    """ViTPose+ with its six experts and its head of two deconvolutions, on a backbone of this size."""

    def make() -> tuple[Any, Any]:
        import torch

        adapter: Any = import_module("workers.models.vitpose")
        transformers: Any = import_module("workers.models.shared.folder").transformers

        config = transformers.VitPoseConfig(
            backbone_config=transformers.VitPoseBackboneConfig(num_experts=6, **backbone),
            use_simple_decoder=False,
            **named(KEYPOINTS),
        )
        processor = adapter.VitPoseImageProcessor()
        model = adapter.VitPoseForPoseEstimation(config).eval()
        lively(model.backbone)
        _smooth(model.head.deconv1)
        _smooth(model.head.deconv2)
        # Each keypoint gets a map whose best place scores about 0.9 and whose ordinary place scores nothing, as of
        # a person who is seen well.
        boxes = [[[40, 40, 200, 400], [300, 60, 240, 480]]] * len(photos())
        pictures = [picture[0] for picture in photos()]
        pixels = processor(pictures, boxes=boxes, do_rescale=False, return_tensors="pt")["pixel_values"]
        maps = model(pixels, dataset_index=torch.zeros(len(pixels), dtype=torch.long)).heatmaps
        _stretch(model.head.conv, maps, low=0.5, high=0.99, low_to=0.0, high_to=0.7)
        return model, processor

    return built(make)


def depth_anything(backbone: Mapping[str, Any] = SMALL_DINOV2, head: Mapping[str, Any] = SMALL_DEPTH) -> Builder:
    """Depth Anything V2 on a DINOv2, of these sizes."""

    def make() -> tuple[Any, Any]:
        import torch

        adapter: Any = import_module("workers.models.depth")
        transformers: Any = import_module("workers.models.shared.folder").transformers

        dinov2 = transformers.Dinov2Config(
            image_size=518, patch_size=14, apply_layernorm=True, reshape_hidden_states=False, **backbone
        )
        config = transformers.DepthAnythingConfig(backbone_config=dinov2, **head)
        processor = adapter.DPTImageProcessor(
            size={"height": 518, "width": 518}, keep_aspect_ratio=True, ensure_multiple_of=14, **IMAGENET
        )
        model = adapter.DepthAnythingForDepthEstimation(config).eval()
        lively(model)
        # What is nearest is at about 10, and hardly anything infinitely far away (0, below which the network cuts).
        last = model.head.conv3
        seen: list[Any] = []
        hook = last.register_forward_hook(lambda _module, _args, out: seen.append(out))
        for picture in photos():
            model(**processor(picture[0], do_rescale=False, return_tensors="pt"))
        hook.remove()
        all_of_it = torch.cat([out.flatten(2) for out in seen], 2)
        _stretch(last, all_of_it, low=0.02, high=0.98, low_to=0.5, high_to=10.0)
        return model, processor

    return built(make)


def segformer(size: Mapping[str, Any] = SMALL_SEGFORMER) -> Builder:
    """SegFormer with the 18 labels of the clothes data set, of this size."""

    def make() -> tuple[Any, Any]:

        adapter: Any = import_module("workers.models.segformer")
        transformers: Any = import_module("workers.models.shared.folder").transformers

        config = transformers.SegformerConfig(**size, **named(CLOTHES))
        processor = adapter.SegformerImageProcessor()
        model = adapter.SegformerForSemanticSegmentation(config).eval()
        lively(model)
        # Every label is about as likely as every other.
        pictures = [picture[0] for picture in photos()]
        logits = model(**processor(pictures, do_rescale=False, return_tensors="pt")).logits
        _stretch(model.decode_head.classifier, logits, low=0.5, high=0.9, low_to=0.0, high_to=1.0)
        return model, processor

    return built(make)


def _smooth(layer: Any) -> None:
    """Makes a deconvolution enlarge linearly: its maps get hilltops, as learned ones have, instead of grain."""
    import torch

    slope = torch.tensor([0.25, 0.75, 0.75, 0.25])
    mix = torch.randn(layer.weight.shape[:2]) / layer.weight.shape[0] ** 0.5
    layer.weight.copy_(mix[..., None, None] * torch.outer(slope, slope))


def _stretch(layer: Any, out: Any, *, low: float, high: float, low_to: float, high_to: float) -> None:
    """Scales a last layer: in each channel, the quantiles `low` and `high` of `out` move to where they are told."""
    values = out.transpose(0, 1).flatten(1)
    bottom, top = (values.quantile(q, dim=1) for q in (low, high))
    scale = (high_to - low_to) / (top - bottom).clamp_min(1e-6)
    layer.weight.mul_(scale.view(-1, *[1] * (layer.weight.ndim - 1)))
    layer.bias.copy_((layer.bias - bottom) * scale + low_to)


STANDINS: dict[str, tuple[str, Builder]] = {
    "vitpose-small": ("vitpose-small", vitpose()),
    "depth-anything-v2-small": ("depth-anything-v2-small", depth_anything()),
    "segformer-b2-clothes": ("segformer-b2-clothes", segformer()),
}
