"""X-CLIP: what happens in a video, out of what the caller asks about.

Importing this module imports the model code and runs no tensor operation: the nursery preloads it.

Options: `prompts`, `template`, `top_k` and `max_batch` (videos in one forward pass), with a request or in config.toml;
`half` in config.toml alone. See `shared/prompts.py`.

X-CLIP weighs each prompt anew in the light of the video, so what it says of a prompt cannot be kept. What it reads in
the prompt before that can, which is all of its text encoder: on the published architecture (random weights, one CPU
thread, 1080p frames) that was 4 % of a call with 4 prompts, 10 % with 16 and 17 % with 32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers.models.videomae.image_processing_videomae
import transformers.models.x_clip.modeling_x_clip  # noqa: F401
from torch.nn.functional import normalize
from transformers import XCLIPModel

from workers.models.base import AnyResult, Input, Spec, chunks, images, require_numbers
from workers.models.shared import batches, folder, prompts
from zoo.results import Action

WHAT = "X-CLIP"


class ActionOptions(prompts.PromptOptions, frozen=True, forbid_unknown_fields=True):
    """`PromptOptions`, with fewer in one pass: each is 8 or 16 pictures."""

    max_batch: batches.BatchSize = 8


def sample(given: int, wanted: int) -> list[int]:
    """Which of `given` frames the model looks at, `wanted` of them, in order.

    As many as wanted: each. Fewer: each, then the last one again and again. More: they are cut into `wanted` parts of
    equal length, and of part i it is the frame at its middle, number ⌊(2i + 1) · given / (2 · wanted)⌋.
    """
    if given <= wanted:
        return [min(i, given - 1) for i in range(wanted)]
    return [(2 * i + 1) * given // (2 * wanted) for i in range(wanted)]


class ActionRecognizer:
    """One folder with config.json, preprocessor_config.json, weights and the tokenizer's files, answering `Action`."""

    def load(self, spec: Spec, device: str) -> None:
        """Raises ModelUnavailable without the folder or its tokenizer, LoadFailed when they cannot be served."""
        self._options = batches.Configured(spec, ActionOptions)
        options = self._options.own
        self.max_batch = options.max_batch
        self.labels = [*(options.prompts or ())]
        config = folder.open_config(spec, "xclip", WHAT)
        self._frames = int(config.vision_config.num_frames)
        self._vision = folder.Vision(spec, device, XCLIPModel, WHAT, half=options.half)
        self._texts = prompts.TextEncoder(spec, self._vision.network, WHAT)
        texts = prompts.configured_features(spec, options, self._texts.features)
        # Kernels are chosen while the load is being measured.
        require_numbers(spec, self._probabilities([[np.zeros((224, 224, 3), np.uint8)]], texts))

    def predict(self, inputs: list[Input]) -> list[AnyResult]:
        """The videos that agree in their options in one forward pass, or in as few as `max_batch` allows.

        Frames of one video may differ in size, as crops that follow a person do: each is scaled by itself.
        """
        asked = self._options.of(inputs, prompts.as_said)
        videos = [images([Input(frame, item.options) for frame in item.frames]) for item in inputs]
        return batches.by_options(asked, videos, self._find)

    def _find(self, options: ActionOptions, videos: list[list[np.ndarray]]) -> list[AnyResult]:
        texts = self._texts.features(options.texts)
        rows = [row for some in chunks(videos, options.max_batch) for row in self._probabilities(some, texts)]
        return [Action(labels=labels, scores=scores) for labels, scores in map(options.ranked, rows)]

    def _probabilities(self, videos: Sequence[list[np.ndarray]], texts: Any) -> np.ndarray:
        """(videos, prompts) float32. The model's own `forward`, but with texts that are encoded already."""
        model = self._vision.network
        with torch.inference_mode():
            seen = model.vision_model(pixel_values=self._pixels(videos))
            whole = model.visual_projection(seen.pooler_output).view(len(videos), self._frames, -1)
            whole = model.mit(whole).pooler_output
            places = model.prompts_visual_layernorm(seen.last_hidden_state[:, 1:]) @ model.prompts_visual_projection
            places = places.view(len(videos), self._frames, -1, whole.shape[-1]).mean(1)
            texts = texts.expand(len(videos), -1, -1)
            texts = texts + model.prompts_generator(texts, places)
            cosines = torch.einsum("vd,vpd->vp", normalize(whole.float(), dim=-1), normalize(texts.float(), dim=-1))
            probabilities: np.ndarray = (model.logit_scale.float().exp() * cosines).softmax(-1).cpu().numpy()
        return probabilities

    def _pixels(self, videos: Sequence[list[np.ndarray]]) -> Any:
        """(videos * frames, 3, h, w). A frame that is looked at twice is prepared once."""
        frames: list[np.ndarray] = []
        rows: list[int] = []
        for video in videos:
            chosen = sample(len(video), self._frames)
            distinct = sorted(set(chosen))
            rows += [len(frames) + distinct.index(i) for i in chosen]
            frames += [video[i] for i in distinct]
        return self._vision.pixels(frames).flatten(0, -4)[rows]
