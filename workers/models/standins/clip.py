"""Stand-ins for CLIP, in both forms that it is published in, and for X-CLIP."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from workers.models.standins.common import SMALL, Builder, repeatable

SMALL_VISION = {**SMALL, "patch_size": 32}
SMALL_VIDEO = {**SMALL_VISION, "mit_hidden_size": 64, "mit_intermediate_size": 128, "mit_num_attention_heads": 4}
TOKENS = 514  # what `write_tokenizer` writes
CONTEXT = 77
# As published. They are not the tokenizer's: the text encoder is read at the place of the highest token.
SPECIALS = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
SHARPNESS = 4.6052  # ln 100, the factor of the cosines that the published ones have learned
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
# The form of these files is that of the first publications, which have been left as they were.
CLIP_PROCESSOR = {
    "crop_size": 224, "do_center_crop": True, "do_normalize": True, "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor", "image_mean": MEAN, "image_std": STD, "resample": 3, "size": 224,
}  # fmt: skip
XCLIP_PROCESSOR = {
    "do_center_crop": True, "do_normalize": True, "do_resize": True,
    "feature_extractor_type": "VideoMAEFeatureExtractor", "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225], "resample": 2, "size": 224,
}  # fmt: skip


def clip(projection_dim: int, vision: Mapping[str, Any] = SMALL_VISION, text: Mapping[str, Any] = SMALL) -> Builder:
    """A transformers CLIP with features of this length, of the published layout; small unless told otherwise.

    Args:
        vision, text: the sizes of its two halves, in the words of their configurations.
    """

    def build(target: Path, seed: int) -> None:
        # Through what the adapters share, which sets the environment that the library reads at import.
        transformers: Any = import_module("workers.models.shared.folder").transformers

        config = transformers.CLIPConfig(
            projection_dim=projection_dim,
            text_config={**SPECIALS, "vocab_size": TOKENS, **text, "projection_dim": projection_dim},
            vision_config={**vision, "projection_dim": projection_dim},
            logit_scale_init_value=SHARPNESS,
        )
        _build(transformers.CLIPModel, config, CLIP_PROCESSOR, target, seed)

    return build


def xclip(
    frames: int,
    projection_dim: int = 64,
    prompt_heads: int = 4,
    vision: Mapping[str, Any] = SMALL_VIDEO,
    text: Mapping[str, Any] = SMALL,
) -> Builder:
    """A transformers X-CLIP for videos of so many frames, of the published layout; small unless told otherwise.

    Args:
        prompt_heads: of the attention that weighs prompts by the video.
        vision, text: as of `clip`.
    """

    def build(target: Path, seed: int) -> None:
        transformers: Any = import_module("workers.models.shared.folder").transformers

        config = transformers.XCLIPConfig(
            projection_dim=projection_dim,
            prompt_num_attention_heads=prompt_heads,
            text_config={**SPECIALS, "vocab_size": TOKENS, **text},
            vision_config={**vision, "num_frames": frames},
            # Left at the library's own logit scale: at the published one, random features of 64 numbers answer 0 or 1.
        )
        _build(transformers.XCLIPModel, config, XCLIP_PROCESSOR, target, seed)

    return build


def open_clip(target: Path, seed: int) -> None:
    """Builds a CLIP in open_clip's form as Marqo publishes its FashionCLIP, small but of that layout.

    Beside it lie the files of the other form, which need code of their own: none of them may be looked at.
    """
    import torch
    from safetensors.torch import save_file

    library: Any = import_module("workers.models.shared.openclip").open_clip

    vision = {"image_size": 224, "layers": 2, "width": 64, "patch_size": 32}
    # open_clip brings this tokenizer itself, with its 49,408 entries.
    text = {"context_length": CONTEXT, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    model_config = {"embed_dim": 64, "vision_cfg": vision, "text_cfg": text}
    with repeatable(seed):
        model = library.CLIP(**model_config, init_logit_scale=SHARPNESS)
        with torch.no_grad():
            model.text_projection.normal_(0, text["width"] ** -0.5)
        target.mkdir(parents=True)
        save_file(model.state_dict(), target / "open_clip_model.safetensors", metadata={"format": "pt"})
    colours = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    _write(target / "open_clip_config.json", {"model_cfg": model_config, "preprocess_cfg": colours})
    code = {"AutoConfig": "marqo_fashionCLIP.MarqoFashionCLIPConfig", "AutoModel": "marqo_fashionCLIP.MarqoFashionCLIP"}
    _write(target / "config.json", {"auto_map": code, "model_type": "clip"})
    write_tokenizer(target)


def write_tokenizer(target: Path) -> None:
    """A CLIP tokenizer that knows letters (bytes) but no words: `TOKENS` entries, each byte inside a word and at its
    end, and the two that begin and end a text.
    """
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    entries = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    _write(target / "vocab.json", {entry: i for i, entry in enumerate(entries)})
    (target / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(
        vocab=str(target / "vocab.json"), merges=str(target / "merges.txt"), model_max_length=CONTEXT
    )
    tokenizer.save_pretrained(target)


def _build(kind: Any, config: Any, processor: dict[str, Any], target: Path, seed: int) -> None:
    """The whole folder. Its weights have the two tensors that today's library counts no more."""
    import torch
    from safetensors.torch import load_file, save_file

    with repeatable(seed):
        kind(config).save_pretrained(target)
    file = target / "model.safetensors"
    weights = load_file(file)
    for half in ("text_model", "vision_model"):
        places = weights[f"{half}.embeddings.position_embedding.weight"].shape[0]
        weights[f"{half}.embeddings.position_ids"] = torch.arange(places)[None]
    save_file(weights, file, metadata={"format": "pt"})
    write_tokenizer(target)
    _write(target / "preprocessor_config.json", processor)


def _write(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")


STANDINS: dict[str, tuple[str, Builder]] = {
    "clip-vit-l": ("clip-vit-l", clip(768)),
    "fashion-clip": ("fashion-clip", clip(512)),
    "xclip-base": ("xclip-base", xclip(8)),
}
