"""YOLO-World: boxes around whatever the prompts name.

Importing this module imports everything that loading and predicting touch and runs no tensor operation: the nursery
preloads it. Options, in config.toml's `options` table or with a request: those of `predictor.YoloOptions`, and
`prompts`, which are the labels of the answer too; without any, the checkpoint's own classes. In config.toml alone:
`text_encoder`.

The network compares its picture with vectors that CLIP ViT-B/32 makes of texts; the checkpoint holds those of its own
classes and no CLIP. For other prompts there must be beside the checkpoint, or where `text_encoder` says,

* a folder `text_encoder` with CLIP's text half in transformers' form, for any prompt, or
* a file `embeddings.npz` with the vectors of the prompts that will be used: see `_read_embeddings`.

The folder is preferred. Vectors are made or looked up once per set of prompts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
import transformers.models.clip.modeling_clip  # noqa: F401
from torch.nn.functional import normalize
from transformers import CLIPTextModelWithProjection

from workers.models.base import AnyResult, Input, Spec, configured, images, unservable
from workers.models.shared import batches, folder, predictor
from workers.models.shared.prompts import Kept, Prompts, TextEncoder
from zoo.errors import InvalidInput, ModelUnavailable
from zoo.labels import folded
from zoo.results import Detections
from zoo.weights import inventory

WHAT = "CLIP's text half"
FOLDER, FILE = "text_encoder", "embeddings.npz"
SHOWN = 100  # texts that a message lists

Features = Callable[[tuple[str, ...]], Any]  # n prompts → (n, d) on the device, each of unit length


class WorldOptions(predictor.YoloOptions, frozen=True, forbid_unknown_fields=True):
    """What a request may ask for, over `YoloOptions`.

    Attributes:
        prompts: 1 to 256 texts of 1 to 200 characters; None for the checkpoint's own classes.
        text_encoder: the folder, absolute or as seen from the checkpoint's. In config.toml alone.
    """

    iou: predictor.Share = 0.45
    prompts: Prompts | None = None
    text_encoder: str | None = None


class OpenVocabularyDetector:
    """One YOLO-World checkpoint, answering `Detections`."""

    max_frames = 1

    def load(self, spec: Spec, device: str) -> None:
        """Raises ModelUnavailable without weights, LoadFailed when they, or what makes vectors, cannot be served."""
        self._options = batches.Configured(spec, WorldOptions, "text_encoder")
        self.max_batch = self._options.own.max_batch
        with predictor.served(spec):
            self._open(spec, device, self._options.own)

    def _open(self, spec: Spec, device: str, options: WorldOptions) -> None:
        self._network = predictor.Network(spec, device, options)
        own = getattr(self._network.model, "txt_feats", None)  # (1, classes, d)
        if own is None or own.shape[1] != len(self._network.names):
            raise unservable(spec, f"{spec.path} is not a YOLO-World checkpoint")
        self._own = tuple(self._network.names[i] for i in range(own.shape[1]))
        self.labels = [*(options.prompts or self._own)]
        self._own_features = own[0].to(device, torch.float32)
        self._features = _features(spec, options, dict(zip(self._own, self._own_features, strict=True)))
        with configured(spec):
            self._features(options.prompts or self._own[:1])  # so that the memory this takes is seen during the load
            self._say(options.prompts)
        self._network.warm_up(options)

    def predict(self, inputs: list[Input]) -> list[AnyResult]:
        """One call of the network for the inputs that agree in their options, prompts among them."""
        frames = images(inputs)
        return batches.by_options(self._options.of(inputs), frames, self._find)

    def _find(self, options: WorldOptions, frames: list[np.ndarray]) -> list[AnyResult]:
        self._say(options.prompts)
        return [_result(found, options.prompts or self._own) for found in self._network(frames, options)]

    def _say(self, prompts: tuple[str, ...] | None) -> None:
        """Tells the network what to look for. Raises InvalidInput for a prompt that no vector can be had for."""
        features = self._own_features if prompts is None else self._features(prompts)
        self._network.model.txt_feats = features[None]
        self._network.model.model[-1].nc = len(features)


def _result(found: Any, labels: tuple[str, ...]) -> Detections:
    rows, _ = predictor.rows_of(found)
    class_ids = rows[:, 5].astype(np.int32)
    return Detections(
        boxes=rows[:, :4], scores=rows[:, 4], class_ids=class_ids, labels=[labels[int(i)] for i in class_ids]
    )


def _features(spec: Spec, options: WorldOptions, own: dict[str, Any]) -> Features:
    """From the text encoder if there is one, else from the file's vectors and the checkpoint's own."""
    assert spec.path is not None
    beside = spec.path.parent
    encoder = beside / (options.text_encoder or FOLDER)
    example = next(iter(own.values()))
    if options.text_encoder or encoder.is_dir():
        return _open_encoder(spec, encoder, len(example), example.device, half=options.half).features
    known = own | _read_embeddings(spec, beside / FILE, len(example), example.device)
    return Kept(functools.partial(_look_up, known, beside))


def _text_half(model: Any, **tokens: Any) -> Any:
    return normalize(model(**tokens).text_embeds.float(), dim=-1)


def _open_encoder(spec: Spec, path: Path, width: int, device: Any, *, half: bool) -> TextEncoder:
    """Raises LoadFailed if the folder lacks something, is another model's, or is a stand-in and the weights are not."""
    assert spec.path is not None
    if inventory.is_stand_in(path, quick=True) and not inventory.is_stand_in(spec.path, quick=True):
        raise unservable(
            spec,
            f"{path} is a stand-in, and the weights are not: what they answered would mean nothing; remove it, or put "
            f"{WHAT} there (see docs/models.md)",
        )
    there = msgspec.structs.replace(spec, path=path)
    try:
        model = folder.open_model(there, str(device), CLIPTextModelWithProjection, WHAT, half=half)
        encoder = TextEncoder(there, model, WHAT, _text_half)
    except ModelUnavailable as e:
        raise unservable(
            spec,
            f"{path} must hold {WHAT}: config.json, model.safetensors, and tokenizer.json or vocab.json and merges.txt "
            "(see docs/models.md)",
        ) from e
    if model.config.projection_dim != width:
        made = model.config.projection_dim
        raise unservable(
            spec, f"the text encoder in {path} makes vectors of {made} numbers, the checkpoint wants {width}"
        )
    return encoder


def _read_embeddings(spec: Spec, file: Path, width: int, device: Any) -> dict[str, Any]:
    """Vectors of texts, from what `numpy.savez(file, names=…, embeddings=…)` writes: n texts, and (n, `width`) numbers,
    each row of unit length. None where there is no such file.

    Raises:
        LoadFailed: it is there, and is not that.
    """
    if not file.is_file():
        return {}
    try:
        with np.load(file, allow_pickle=False) as content:
            names = [str(name) for name in content["names"].tolist()]
            rows = np.asarray(content["embeddings"], np.float32)
        if rows.shape != (len(names), width):
            raise ValueError(f"{len(names)} names with embeddings of shape {rows.shape}, not ({len(names)}, {width})")
        if not np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-2):
            raise ValueError("an embedding is not of unit length")
    except Exception as e:
        why = f"{type(e).__name__}: {e}"
        raise unservable(spec, f"{file} cannot be read as names and embeddings ({why}); see docs/models.md") from e
    return dict(zip(names, torch.from_numpy(rows).to(device), strict=True))


def _look_up(known: dict[str, Any], beside: Path, prompts: tuple[str, ...]) -> Any:
    alike = {folded(name): name for name in reversed(known)}
    names = [prompt if prompt in known else alike.get(folded(prompt), "") for prompt in prompts]
    if missing := [prompt for prompt, name in zip(prompts, names, strict=True) if not name]:
        more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
        raise InvalidInput(
            f"options: prompts: no vector is known for {', '.join(map(repr, missing[:5]))} ({len(missing)} in all); "
            f"put {WHAT} into {beside / FOLDER}, or vectors into {beside / FILE}, as docs/models.md says; "
            f"known are {', '.join([*known][:SHOWN])}{more}"
        )
    return torch.stack([known[name] for name in names])
