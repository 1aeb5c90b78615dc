"""Prompts: what a caller may say to a CLIP-like model, and the features of what was said.

A prompt that is longer than the text encoder's context is refused, not cut: two prompts that differ after the cut would
get the same score, and a score would be given for words that were never read.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import msgspec
import numpy as np
import torch
import transformers.models.clip.tokenization_clip  # noqa: F401
from transformers import AutoTokenizer

from workers.models.base import Spec, configured, damaged, not_there
from workers.models.shared import batches, folder
from zoo.errors import InvalidInput

PROMPT_SETS = 32  # whose features are kept, the most recently used; of the largest sets, 16 MB
PER_PASS = 64  # prompts through the text encoder at a time

Prompt = Annotated[str, msgspec.Meta(min_length=1, max_length=200, pattern=r"\S")]
Prompts = Annotated[tuple[Prompt, ...], msgspec.Meta(min_length=1, max_length=256)]


class PromptOptions(batches.RankOptions, frozen=True, forbid_unknown_fields=True):
    """What a request may ask for.

    Attributes:
        prompts: 1 to 256 texts of 1 to 200 characters, which are the labels of the answer too.
        template: what is said to the model for each prompt, with the prompt in place of `{}`.
        top_k, max_batch, half: see `RankOptions`; of pictures or videos.
    """

    prompts: Prompts | None = None
    template: Annotated[str, msgspec.Meta(max_length=200)] = "{}"
    top_k: batches.TopK | None = 3

    def __post_init__(self) -> None:
        if self.template.count("{}") != 1:
            raise ValueError("template must hold {} exactly once, where the prompt goes")

    @property
    def texts(self) -> tuple[str, ...]:
        """What the model is told: the template with each prompt.

        Raises:
            InvalidInput: there are no prompts, neither in config.toml nor in the request.
        """
        if self.prompts is None:
            raise InvalidInput("options: prompts: config.toml names none for this model, so the request must")
        return tuple(self.template.replace("{}", prompt) for prompt in self.prompts)

    def ranked(self, probabilities: np.ndarray) -> tuple[list[str], np.ndarray]:
        """The `top_k` prompts and their probabilities, from one probability per prompt; the most probable first."""
        assert self.prompts is not None
        return batches.ranked(self.prompts, probabilities, self.top_k)


def as_said(asked: dict[str, Any]) -> dict[str, Any]:
    """A request's options. config.toml's template goes with config.toml's prompts: those of a request are said as they
    are, unless it brings a template of its own.
    """
    return {"template": "{}", **asked} if "prompts" in asked else asked


class Kept:
    """The features of a set of texts, computed once and kept for the `PROMPT_SETS` used last.

    Not `functools.lru_cache`, which a copy of the model (see `workers/copies.py`) could not contain.
    """

    def __init__(self, compute: Callable[[tuple[str, ...]], Any]) -> None:
        self._compute = compute
        self._kept: OrderedDict[tuple[str, ...], Any] = OrderedDict()

    def __call__(self, texts: tuple[str, ...]) -> Any:
        if texts not in self._kept:
            self._kept[texts] = self._compute(texts)
            if len(self._kept) > PROMPT_SETS:
                self._kept.popitem(last=False)
        self._kept.move_to_end(texts)
        return self._kept[texts]


def whole_clip(model: Any, **tokens: Any) -> Any:
    return model.get_text_features(**tokens).pooler_output


class TextEncoder:
    """The text half of a transformers CLIP or X-CLIP.

    Attributes:
        features: (k, d) of k texts, projected but not normalised, on the model's device. Raises InvalidInput for a text
            that is too long.
    """

    def __init__(self, spec: Spec, model: Any, what: str, project: Callable[..., Any] = whole_clip) -> None:
        """Raises ModelUnavailable without a tokenizer in the folder, LoadFailed when it cannot serve the model.

        Args:
            project: makes vectors of the model's `input_ids` and `attention_mask`.
        """
        self._model = model
        self._project = project
        require_tokenizer(spec)
        self._tokenizer: Any = folder.open_processor(spec, AutoTokenizer, f"the tokenizer of {what}")
        self._config = getattr(model.config, "text_config", model.config)  # a text half alone has no other
        check_vocabulary(spec, len(self._tokenizer), self._config.vocab_size)
        if self._tokenizer.pad_token is None:  # prompts of unequal lengths go through the encoder together
            raise damaged(spec, f"the tokenizer in {spec.path} has no padding token; tokenizer_config.json names it")
        self.features = Kept(self._encode)

    def _encode(self, texts: tuple[str, ...]) -> Any:
        context = self._config.max_position_embeddings
        tokens = self._tokenizer(list(texts), padding=True, return_tensors="pt")
        ids, mask = tokens["input_ids"], tokens["attention_mask"]
        check_length(texts, (mask.sum(1) > context).tolist(), context)
        ids, mask = ids.to(self._model.device), mask.to(self._model.device)
        with torch.inference_mode():
            passes = [
                self._project(self._model, input_ids=some, attention_mask=its_mask)
                for some, its_mask in zip(ids.split(PER_PASS), mask.split(PER_PASS), strict=True)
            ]
            return torch.cat(passes)


def require_tokenizer(spec: Spec) -> None:
    """Raises ModelUnavailable if the folder holds no tokenizer: transformers would make one up that knows no words."""
    path = spec.path
    assert path is not None
    if not (path / "tokenizer.json").is_file() and not all((path / f).is_file() for f in ("vocab.json", "merges.txt")):
        raise not_there(spec, f"{path} holds no tokenizer (tokenizer.json, or vocab.json and merges.txt)")


def check_vocabulary(spec: Spec, tokenizer: int, encoder: int) -> None:
    """Raises LoadFailed if the tokenizer has more entries than the text encoder: on a GPU, a token that the encoder
    does not know would end the process.
    """
    if tokenizer > encoder:
        raise damaged(
            spec,
            f"the tokenizer in {spec.path} has {tokenizer} entries, the text encoder {encoder}: not of one model",
        )


def check_length(texts: Sequence[str], too_long: Sequence[bool], context: int) -> None:
    """Raises InvalidInput naming the first prompt whose text is too long."""
    for i, text in enumerate(texts):
        if too_long[i]:
            shown = text if len(text) <= 60 else f"{text[:57]}..."
            raise InvalidInput(f"options: prompts[{i}]: {shown!r} has more than the {context} tokens the model reads")


def configured_features(spec: Spec, options: PromptOptions, features: Callable[[tuple[str, ...]], Any]) -> Any:
    """The features of config.toml's prompts, so that they are ready, and their memory seen, when the load is done.

    Raises:
        LoadFailed: one of them is too long.
    """
    with configured(spec):
        return features(options.texts if options.prompts else ("a photo",))
