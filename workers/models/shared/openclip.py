"""A CLIP in open_clip's own form: open_clip_config.json, open_clip_model.safetensors and, where the configuration names
one of Hugging Face's tokenizers, that tokenizer's files. Marqo's FashionCLIP is published so.

Its folder holds a config.json as well, for code of its own that is fetched with it and that the zoo never runs: where
there is an open_clip_config.json, that one counts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import PIL.ImageFile  # noqa: F401  (Image comes by it)
import torch
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from torch.nn.functional import normalize

from workers.models.base import Spec, not_there, require_trust, unservable
from workers.models.shared import contents, folder
from workers.models.shared.pictures import middle
from workers.models.shared.prompts import PER_PASS, Kept, check_length, check_vocabulary, require_tokenizer
from zoo.errors import LoadFailed

WHAT = "an open_clip model"
CONFIG = "open_clip_config.json"
# The first that open_clip looks for, in its own order: what is checked here is what it reads.
TOKENIZER_SETTINGS = {"clean", "strip_sep_token", "language", "context_length"}
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")


def is_open_clip(path: Path | None) -> bool:
    """Whether the folder at `path` is of this form."""
    return path is not None and (path / CONFIG).is_file()


class OpenClip:
    """A `workers.models.clip.DualEncoder`.

    What the network adds to every logit alike (SigLIP's bias) is left out: it changes no probability.
    """

    def __init__(self, spec: Spec, device: str, *, half: bool) -> None:
        """Raises ModelUnavailable without weights or tokenizer, LoadFailed when they cannot be served."""
        path, text = _checked(spec)
        torch.set_num_threads(spec.threads)  # before the load: its many small operations are split over all cores else
        precision = "fp16" if half else "fp32"
        try:
            self._model, self._preprocess = open_clip.create_model_from_pretrained(
                f"local-dir:{path}", precision=precision, device=device
            )
            # The folder's configuration may pass arguments on to transformers; these go over them.
            theirs = folder.LOCAL if text.get("hf_tokenizer_name") else {}
            self._tokenizer: Any = open_clip.get_tokenizer(f"local-dir:{path}", **theirs)
        except Exception as e:
            raise folder.failed(spec, WHAT, e) from e
        self._model.eval()
        self._device = device
        self._dtype = open_clip.get_input_dtype(precision)
        own = isinstance(self._tokenizer, SimpleTokenizer)
        check_vocabulary(
            spec,
            self._tokenizer.vocab_size if own else len(self._tokenizer.tokenizer),
            text.get("vocab_size", open_clip.CLIPTextCfg.vocab_size),
        )
        self._words = dict(self._tokenizer.cache) if own else None
        self.scale = self._model.logit_scale.exp().item()
        self.text_features = Kept(self._encode)

    def image_features(self, frames: Sequence[np.ndarray]) -> Any:
        pictures = [Image.fromarray(np.ascontiguousarray(middle(frame))) for frame in frames]
        pixels = torch.stack([self._preprocess(picture) for picture in pictures])
        with torch.inference_mode():
            return normalize(self._model.encode_image(pixels.to(self._device, self._dtype)).float(), dim=-1)

    def _encode(self, texts: tuple[str, ...]) -> Any:
        ids = self._tokenizer(list(texts))
        # The library cuts a long text without a word; one that was cut reads differently with room for one token more.
        context = self._tokenizer.context_length
        roomier = self._tokenizer(list(texts), context_length=context + 1)
        if self._words is not None:
            self._tokenizer.cache = dict(self._words)  # it keeps every word it has ever met
        check_length(texts, (ids != roomier[:, :context]).any(1).tolist(), context)
        with torch.inference_mode():
            passes = [self._model.encode_text(some.to(self._device)) for some in ids.split(PER_PASS)]
            return normalize(torch.cat(passes).float(), dim=-1)


def _checked(spec: Spec) -> tuple[Path, dict[str, Any]]:
    """The folder and its configuration of the text half, if all files are there and may be read."""
    path = spec.path
    assert path is not None
    contents.look_at(spec, path)
    weights = next((path / name for name in WEIGHTS if (path / name).is_file()), None)
    if weights is None:
        raise not_there(spec, f"{path} holds no {WEIGHTS[0]}")
    if weights.suffix != ".safetensors":
        require_trust(spec, weights)
    try:
        config = contents.description(spec, path / CONFIG)["model_cfg"]
        text, vision = dict(config["text_cfg"]), dict(config["vision_cfg"])
    except (ValueError, KeyError, TypeError) as e:
        raise folder.failed(spec, WHAT, e) from e
    if unknown := sorted({*(text.get("tokenizer_kwargs") or {})} - TOKENIZER_SETTINGS):
        passed = ", ".join(sorted(TOKENIZER_SETTINGS))
        raise unservable(
            spec,
            f"{path / CONFIG} has {unknown[0]!r} among its tokenizer_kwargs; only {passed} are passed on",
        )
    if not re.fullmatch(r"[\w.-]*", str(vision.get("timm_model_name") or "")):
        raise _not_whole(spec, "image", vision["timm_model_name"], "which timm fetches")
    if text.get("hf_model_name"):
        elsewhere = "whose configuration open_clip fetches from Hugging Face"
        raise _not_whole(spec, "text", text["hf_model_name"], elsewhere)
    if text.get("hf_tokenizer_name"):
        require_tokenizer(spec)
    return path, text


def _not_whole(spec: Spec, half: str, named: Any, elsewhere: str) -> LoadFailed:
    return unservable(
        spec,
        f"the {half} half of {spec.path} is {named!r}, {elsewhere}; only checkpoints that are whole in their folder "
        "are served",
    )
