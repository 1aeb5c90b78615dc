"""A ViT as timm saves it: the network of transformers' ViT under other names, with query, key and value in one tensor.

Some are published like that beside a config.json for transformers, jaranohaal/vit-base-violence-detection among them.
transformers knows none of those names, makes up every weight and goes on.
"""

from __future__ import annotations

import re
from typing import Any

from safetensors import SafetensorError, safe_open

from workers.models.base import Spec
from workers.models.shared import contents, state_dict

MARK = "blocks.0.attn.qkv.weight"  # where there is this one, it is timm's
EPSILON = 1e-6  # of timm's layer norms; a config.json may have transformers' 1e-12

NAMES = {  # timm's, as patterns, and the ones that transformers publishes
    r"cls_token": "vit.embeddings.cls_token",
    r"pos_embed": "vit.embeddings.position_embeddings",
    r"patch_embed\.proj\.(\w+)": r"vit.embeddings.patch_embeddings.projection.\1",
    r"blocks\.(\d+)\.norm1\.(\w+)": r"vit.encoder.layer.\1.layernorm_before.\2",
    r"blocks\.(\d+)\.norm2\.(\w+)": r"vit.encoder.layer.\1.layernorm_after.\2",
    r"blocks\.(\d+)\.attn\.proj\.(\w+)": r"vit.encoder.layer.\1.attention.output.dense.\2",
    r"blocks\.(\d+)\.mlp\.fc1\.(\w+)": r"vit.encoder.layer.\1.intermediate.dense.\2",
    r"blocks\.(\d+)\.mlp\.fc2\.(\w+)": r"vit.encoder.layer.\1.output.dense.\2",
    r"norm\.(\w+)": r"vit.layernorm.\1",
    r"head\.(\w+)": r"classifier.\1",
}
TOGETHER = re.compile(r"blocks\.(\d+)\.attn\.qkv\.(\w+)")


def read(spec: Spec) -> dict[str, Any] | None:
    """The tensors in the folder `spec.path` under transformers' names; None if they are not timm's.

    Raises:
        LoadFailed: a pickle that is not trusted, or that is damaged.
    """
    path = spec.path
    assert path is not None
    held = contents.weights_in(spec, path)
    if len(held.files) > 1:
        return None  # timm saves one
    (file,) = held.files
    if held.safe:
        try:
            with safe_open(file, "pt") as content:
                if MARK not in content.keys():  # noqa: SIM118  (it is no dict)
                    return None
        except SafetensorError:
            return None  # transformers will say what is wrong
    found = state_dict.read(spec, file)
    return renamed(found) if MARK in found else None


def renamed(tensors: dict[str, Any]) -> dict[str, Any]:
    """A name that is none of timm's stays as it is."""
    out: dict[str, Any] = {}
    for name, value in tensors.items():
        if match := TOGETHER.fullmatch(name):
            for part, tensor in zip(("query", "key", "value"), value.chunk(3), strict=True):
                out[f"vit.encoder.layer.{match[1]}.attention.attention.{part}.{match[2]}"] = tensor.contiguous()
            continue
        for pattern, replacement in NAMES.items():
            if match := re.fullmatch(pattern, name):
                name = match.expand(replacement)
                break
        out[name] = value
    return out
