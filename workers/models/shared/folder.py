"""A transformers folder (config.json, preprocessor_config.json, weights), opened the way every family here does it.

No request ever meets half a model: what is missing, damaged or of another architecture fails the load with a reason.
Weights are read from safetensors; a pickled `pytorch_model.bin` only with `trust_pickle = true`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision.transforms.v2.functional  # noqa: F401  (the fast image processors use it)
import transformers
import transformers.integrations.peft
import transformers.models.auto.auto_factory
import transformers.models.auto.image_processing_auto as image_processing_auto
from transformers import AutoConfig, AutoImageProcessor
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.image_processing_base import ImageProcessingMixin

from workers.models.base import Spec, damaged, not_there, unservable
from workers.models.shared import contents, pictures, replaced
from zoo.errors import LoadFailed

transformers.utils.logging.disable_progress_bar()
get_checkpoint_conversion_mapping("")  # compiles a thousand regular expressions, which every load asks for

# A low-rank adapter that lies beside the weights names a base model of its own, which would be looked for.
NO_ADAPTERS = [
    (place, "is_peft_available", lambda: False)
    for place in (transformers.integrations.peft, transformers.models.auto.auto_factory)
]
LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def open_model(
    spec: Spec, device: str, kind: Any, what: str, *, half: bool = False, tensors: Any = None, **more: Any
) -> Any:
    """The model in the folder `spec.path`, on the device, in evaluation mode.

    Args:
        kind: a transformers class with `from_pretrained`, such as AutoModelForImageClassification.
        what: the same in words, for messages: "an image classifier".
        half: in half precision. Otherwise in the checkpoint's own precision on a GPU, and in single on a CPU.
        tensors: the weights by name, where they have been read already; `config` has to be among `more` then.
        more: for `from_pretrained`.

    Raises:
        ModelUnavailable: no folder, no config.json or no weights in it. LoadFailed: they cannot be read, or are
            those of something else.
    """
    path = _folder(spec)
    held = contents.weights_in(spec, path)
    torch.set_num_threads(spec.threads)  # before the load, whose many small operations are split over all cores else
    dtype: Any = torch.float16 if half else torch.float32 if device == "cpu" else "auto"
    try:
        with replaced.replaced(*NO_ADAPTERS):
            model, report = kind.from_pretrained(
                path if tensors is None else None,
                state_dict=tensors,
                use_safetensors=held.safe,
                dtype=dtype,
                output_loading_info=True,
                **LOCAL,
                **more,
            )
    except Exception as e:
        raise failed(spec, what, e) from e
    # transformers fills what is missing with random numbers and goes on; such a model must not answer.
    if absent := sorted(set(report["missing_keys"]) | {str(k) for k in report.get("mismatched_keys", ())}):
        raise unservable(
            spec,
            f"{path} lacks weights for {', '.join(absent[:3])} ({len(absent)} in all); it is no checkpoint of {what}",
        )
    return model.to(device).eval()


class Vision:
    """A network for pictures, and the processor that brings them into its form, from one folder."""

    def __init__(
        self, spec: Spec, device: str, kind: Any, what: str, *, processor: Any = AutoImageProcessor, **more: Any
    ) -> None:
        """Args, Raises: see `open_model` and `open_processor`."""
        self.network: Any = open_model(spec, device, kind, what, **more)
        self.processor: Any = open_processor(spec, processor, what)
        self.device = device

    def pixels(self, frames: Sequence[np.ndarray]) -> Any:
        """The network's input for `frames` (HxWx3 uint8, any strides)."""
        return pictures.preprocess(self.processor, frames, self.device).to(self.device, self.network.dtype)

    def __call__(self, frames: Sequence[np.ndarray]) -> Any:
        """What the network says of `frames`, in one pass."""
        with torch.inference_mode():
            return self.network(pixel_values=self.pixels(frames))


def open_config(spec: Spec, family: str, what: str) -> Any:
    """The folder's config.json, for an adapter that serves one family of models (`model_type`) alone.

    Given the configuration of another family, transformers would build a model of default size with random weights,
    and only then find that the checkpoint has none of them.

    Raises:
        ModelUnavailable, LoadFailed: as `open_model`; it is another family's.
    """
    config = open_processor(spec, AutoConfig, what)
    if config.model_type != family:
        raise unservable(
            spec,
            f"{spec.path} holds a model of type {config.model_type!r}, not {family!r}; it is no checkpoint of {what}",
        )
    return config


def open_processor(spec: Spec, kind: Any, what: str, **more: Any) -> Any:
    """The folder's processor or tokenizer, by a transformers class such as AutoImageProcessor. Raises as above."""
    path = _folder(spec)
    try:
        with replaced.replaced((image_processing_auto, "ImageProcessingMixin", _Renamed)):
            return kind.from_pretrained(path, **LOCAL, **more)
    except Exception as e:
        raise failed(spec, what, e) from e


class _Renamed:
    """How AutoImageProcessor reads preprocessor_config.json. transformers 4 wrote names of feature extractors there,
    which 5 does not know any more; each has become an image processor.
    """

    @staticmethod
    def get_image_processor_dict(*args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        found, rest = ImageProcessingMixin.get_image_processor_dict(*args, **kwargs)
        if isinstance(name := found.get("image_processor_type"), str):
            found["image_processor_type"] = name.replace("FeatureExtractor", "ImageProcessor")
        return found, rest


def failed(spec: Spec, what: str, error: Exception) -> LoadFailed:
    """What to raise when the library could not read the folder."""
    return damaged(spec, f"{spec.path} cannot be loaded as {what} ({type(error).__name__}: {str(error).strip()[:300]})")


def _folder(spec: Spec) -> Path:
    path = spec.path
    if path is None or not (path / "config.json").is_file():
        raise not_there(spec, f"no model folder at {path}")
    contents.look_at(spec, path)
    contents.weights_in(spec, path)
    return path


def labels_of(spec: Spec, config: Any, unless: Sequence[str] = ()) -> list[str]:
    """The checkpoint's labels in order, from `config.id2label` (whose keys transformers makes integers).

    Args:
        unless: what to call the classes of a checkpoint that names none.

    Raises:
        LoadFailed: there are none and `unless` has not as many, or one is missing.
    """
    names = dict(getattr(config, "id2label", None) or {})
    count = int(config.num_labels)
    missing = [i for i in range(count) if i not in names]
    fillers = [f"LABEL_{i}" for i in range(count)]  # which transformers makes up
    if missing or not names:
        which = missing[0] if missing else 0
        raise unservable(spec, f"{spec.path}: config.json has no label for class {which}")
    found = [str(names[i]) for i in range(count)]
    if found != fillers:
        return found
    if len(unless) != count:
        raise unservable(
            spec,
            f"{spec.path}: config.json names none of its {count} classes (id2label); write them there, or fetch it "
            f"again with: zoo pull {spec.name}",
        )
    return list(unless)
