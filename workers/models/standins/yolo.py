"""Stand-ins for ultralytics checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from workers.models.standins import clip
from workers.models.standins.common import SMALL, Builder, repeatable, settle, spelled
from zoo.weights import inventory


def yolo(architecture: str, labels: Sequence[str]) -> Builder:
    """An ultralytics checkpoint with these labels (`spelled`), from one of the package's own architecture files."""

    def build(target: Path, seed: int) -> None:
        # Through the adapter, which sets the environment that the library reads at import.
        YOLO: Any = import_module("workers.models.shared.predictor").ultralytics.YOLO  # noqa: N806

        with repeatable(seed):
            whole = YOLO(architecture)
            config = {**whole.model.yaml, "nc": len(labels)}
            config.pop("channels", None)
            model = type(whole.model)(config, verbose=False)
            model.names = dict(enumerate(spelled(labels)))
            model.args, model.task = whole.model.args, whole.task
            _calibrate(model)
        whole.model = model
        whole.save(target)

    return build


def world(architecture: str) -> Builder:
    """A YOLO-World checkpoint for COCO's classes, with a small text encoder beside it that takes any prompt."""

    def build(target: Path, seed: int) -> None:
        import torch

        library: Any = import_module("workers.models.shared.predictor").ultralytics
        transformers: Any = import_module("workers.models.shared.folder").transformers

        encoder = target.parent / "text_encoder"
        with repeatable(seed):
            config = transformers.CLIPTextConfig(**SMALL, **clip.SPECIALS, vocab_size=clip.TOKENS, projection_dim=512)
            text = transformers.CLIPTextModelWithProjection(config).eval()
            text.save_pretrained(encoder)
            clip.write_tokenizer(encoder)
            inventory.mark_stand_in(encoder, "yolo-world-s")
            whole = library.YOLOWorld(architecture)
            tokenizer = transformers.AutoTokenizer.from_pretrained(encoder)
            names = library.utils.YAML.load(library.utils.ROOT / "cfg/datasets/coco8.yaml")["names"]
            with torch.no_grad():
                tokens = tokenizer(list(names.values()), padding=True, return_tensors="pt")
                found = text(**tokens).text_embeds
            whole.model.txt_feats = torch.nn.functional.normalize(found, dim=-1)[None]
            whole.model.names = names
            _calibrate(whole.model)
        whole.save(target)

    return build


def _photos() -> list[Any]:
    """The photographs inside the ultralytics package as (1, 3, h, w) in 0..1, scaled by its own code.

    By its own, because a random network is sensitive to fine grain, and libraries smooth differently.
    """
    import numpy as np
    import torch
    from PIL import Image
    from ultralytics.data.augment import LetterBox
    from ultralytics.utils import ASSETS

    photos = []
    for name in ("bus.jpg", "zidane.jpg"):
        scaled = LetterBox((640, 640), auto=True, stride=32)(image=np.array(Image.open(ASSETS / name).convert("RGB")))
        photos.append(torch.from_numpy(scaled).permute(2, 0, 1)[None].float() / 255)
    return photos


def _calibrate(model: Any) -> None:
    """Makes a random network answer a few boxes of ordinary scores instead of thousands of equal ones.

    With random weights every place scores alike. So the normalisation layers are given the statistics of the
    photographs inside the ultralytics package, and the scores are stretched so that on those photographs the fourth
    best place per grid gets 0.25: per class (the second best, where there are several), or for YOLO-World, whose
    classes share one scale, among all.
    """
    import torch
    from torch.nn.functional import pad

    pictures = _photos()
    settle(model, torch.cat([pad(p, (0, 640 - p.shape[3], 0, 640 - p.shape[2]), value=114 / 255) for p in pictures]))
    head = model.model[-1]
    by_text = hasattr(head, "cv4") and hasattr(head.cv4[0], "logit_scale")
    last = list(head.cv4) if by_text else [branch[-1] for branch in head.cv3]
    seen: dict[int, list[Any]] = {level: [] for level in range(len(last))}
    hooks = [
        layer.register_forward_hook(lambda _m, _i, out, level=i: seen[level].append(out.flatten(2)[0]))
        for i, layer in enumerate(last)
    ]
    try:
        with torch.no_grad():
            for photo in pictures:
                model(photo)
            for level, layer in enumerate(last):
                logits = torch.cat(seen[level], dim=1) - layer.bias.view(-1, 1)
                if by_text:
                    logits = logits.view(1, -1)
                best = logits.topk(8, dim=1).values
                scale = 2.2 / (best[:, 0] - best[:, -1]).clamp_min(1e-6)  # best and eighth best 2.2 apart
                if by_text:
                    layer.logit_scale += scale.log()[0]
                else:
                    layer.weight *= scale.view(-1, 1, 1, 1)
                layer.bias.copy_(-1.1 - best[:, max(1, 3 // len(best))] * scale)
            if hasattr(head, "kpt_shape"):  # spread the points over a person, not over one cell of the grid
                for branch in head.cv4:
                    branch[-1].weight *= 4
    finally:
        for hook in hooks:
            hook.remove()


STANDINS: dict[str, tuple[str, Builder]] = {
    "yolo11-face": ("yolo11-face/model.pt", yolo("yolo11n.yaml", ["face"])),
    "threat-detection-yolov8n": (
        "threat-detection-yolov8n/weights/best.pt",
        yolo("yolov8n.yaml", ["Gun", "Explosive", "Grenade", "Knife"]),
    ),
    "yolo11-license-plate": (
        "yolo11-license-plate/license-plate-finetune-v1n.pt",
        yolo("yolo11n.yaml", ["License_Plate"]),
    ),
    # The published one is YOLOv8s; this is the same with fewer channels.
    "yolo-world-s": ("yolo-world-s/yolov8s-worldv2.pt", world("yolov8n-worldv2.yaml")),
    "yolov8n-pose": ("yolov8n-pose/yolov8n-pose.pt", yolo("yolov8n-pose.yaml", ["person"])),
    # The published one is YOLO11x; a stand-in of that size would take a minute to make.
    "vehicle-damage-detection": (
        "vehicle-damage-detection/best.pt",
        yolo("yolo11n-seg.yaml", ["crack", "dent", "glass_shatter", "lamp_broken", "scratch", "tire_flat"]),
    ),
}
