"""From what the broker says of a model to an adapter that answers: weights fetched, loaded, or taken from a copy.

A load that failed says whether it may be tried again. A module that is not there, a pickle without trust, damaged
weights may not (`retryable`); the broker tries again after its back-off all the same, for the cause may be
mended by then.

An adapter's module is imported as its file is now. Python takes a cached compilation for the source's own when the
source has the same size and was changed in the same second. So none is written from a source that is so young that it
may still change without being seen to have.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from workers import copies, inputs, memory
from workers.batch import MAX_CAUSE, cause, sendable
from workers.models.base import Adapter
from zoo.config import adapters
from zoo.errors import LoadFailed, ModelUnavailable, OutOfMemory, ZooError
from zoo.weights import inventory, source
from zoo.wire import protocol
from zoo.wire.launch import Launch

YOUNG_S = 2.5  # a second, and what clocks of file systems may be late


class LoadedModel(NamedTuple):
    """`labels`: of its classes, packed; None where it says nothing. `copied`: it came from a copy. `stand_in`: it runs
    on random weights. `seconds`: that the load took.
    """

    adapter: Adapter
    max_batch: int
    labels: bytes | None
    copied: bool
    stand_in: bool
    seconds: float


def load(launch: Launch, take_copy: Callable[[], int | None]) -> LoadedModel:
    """Raises whatever the adapter raises; of ours: LoadFailed, ModelUnavailable.

    Args:
        take_copy: gives the descriptor of the copy that the broker has announced, if it comes.
    """
    started = time.perf_counter()
    path = Path(os.fsdecode(launch.path)) if launch.path is not None else None
    if launch.pull is not None and path is not None and inventory.is_missing(path):
        _pull(launch.model, launch.pull, path)
    model = _read_copy(launch, take_copy) if launch.copied else None
    copied = model is not None
    # The files of a copy were looked at when it was made.
    stand_in = path is not None and inventory.is_stand_in(path, quick=copied)
    if model is None:
        model = _import_adapter(launch.adapter)()
        _load_weights(launch, model, path)
    max_batch = getattr(model, "max_batch", 1)
    if not isinstance(max_batch, int) or max_batch < 1:
        raise LoadFailed(f"{launch.adapter}: max_batch is {max_batch!r}, not a number of requests", retryable=False)
    labels = _packed_labels(launch.model, model)
    return LoadedModel(model, max_batch, labels, copied, stand_in, time.perf_counter() - started)


def _packed_labels(name: str, model: Adapter) -> bytes | None:
    """None also for what an adapter keeps under this name that is no list of texts, or one by number."""
    said = getattr(model, "labels", None)
    if isinstance(said, dict):
        try:
            said = [said[number] for number in sorted(said, key=int)]
        except (TypeError, ValueError):
            return None
    if not said or not isinstance(said, list | tuple) or not all(isinstance(label, str) for label in said):
        return None
    packed = protocol.pack_labels([sendable(label) for label in said])
    if len(said) <= protocol.MAX_LABELS and len(packed) <= protocol.MAX_LABELS_BYTES:
        return packed
    print(f"worker: {name}: its {len(said):,} labels are too much to be told", file=sys.stderr, flush=True)
    return None


def failure(error: BaseException, device: str) -> protocol.LoadError:
    """What the broker is told of a load that raised. To be asked while the error is being handled."""
    code = error.code if isinstance(error, LoadFailed | ModelUnavailable) else LoadFailed.code
    retryable = error.retryable if isinstance(error, ZooError) else LoadFailed.retryable
    short = memory.shortage(error, device)
    if short is not None:
        code = OutOfMemory.code
    elif not isinstance(error, ZooError):
        traceback.print_exc()
    return protocol.LoadError(code, cause(error)[:MAX_CAUSE], short, retryable)


def _load_weights(launch: Launch, model: Adapter, path: Path | None) -> None:
    """What one of the zoo's adapters meets in a checkpoint is the checkpoint's, and stays as it is."""
    try:
        model.load(inputs.spec(launch), launch.device)
    except (ZooError, OSError, MemoryError):
        raise
    except Exception as e:
        ours = path is not None and launch.adapter.startswith(adapters.OURS)
        if not ours or memory.shortage(e, launch.device) is not None or type(e).__name__ == "AcceleratorError":
            raise
        raise LoadFailed(f"{launch.model}: {path} cannot be served: {cause(e)}", retryable=False) from e


def _read_copy(launch: Launch, take_copy: Callable[[], int | None]) -> Adapter | None:
    """The model out of the copy that came with the launch; None, and a word about it, when that cannot be done."""
    try:
        fd = take_copy()
        if fd is None:
            raise TimeoutError("it did not come")
        _import_adapter(launch.adapter)  # as its file is now, before the copy asks for it
        model: Adapter = copies.read(fd, launch.threads)
    except Exception as e:
        print(f"worker: {launch.model}: its copy is of no use: {cause(e)}", file=sys.stderr, flush=True)
        return None
    return model


def _import_adapter(adapter: str) -> Any:
    module, _, name = adapter.partition(":")
    try:
        found = _import_module(module)
    except (OSError, MemoryError):
        raise
    except Exception as e:  # a library that is not there, a mistake in the adapter: no retry mends it
        why = str(e) if isinstance(e, ImportError) else cause(e)
        if isinstance(e, ModuleNotFoundError) and adapter.startswith(adapters.OURS):
            why = f"{why}; {adapters.remedy(adapter)}"
        raise LoadFailed(f"adapter {adapter!r} cannot be imported: {why}", retryable=False) from e
    if not hasattr(found, name):
        raise LoadFailed(f"adapter {adapter!r}: the module {module!r} has no {name!r}", retryable=False)
    return getattr(found, name)


def _import_module(name: str) -> ModuleType:
    """As `importlib.import_module`. Raises whatever the module raises."""
    if name in sys.modules:
        return sys.modules[name]
    importlib.invalidate_caches()  # the nursery's, of folders as they were when it began
    before = sys.dont_write_bytecode
    sys.dont_write_bytecode = before or _is_young(name)
    try:
        return importlib.import_module(name)
    finally:
        sys.dont_write_bytecode = before


def _is_young(name: str) -> bool:
    """The module's file, or one beside it that it may import."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.origin or not os.path.isfile(spec.origin):
        return False
    since = time.time() - YOUNG_S
    with os.scandir(os.path.dirname(spec.origin)) as entries:
        return any(entry.name.endswith(".py") and entry.stat().st_mtime > since for entry in entries)


def _pull(model: str, published: source.Published, target: Path) -> None:
    """Fetches missing weights, which config.toml has asked for (`auto_pull`)."""
    from zoo.weights.pull import pull  # the network's modules: only for those who use it
    from zoo.weights.transfer import Watch

    def note(text: str) -> None:
        print(f"worker: {model}: {text}", file=sys.stderr, flush=True)

    note(f"fetching its weights from {published.source}")
    try:
        report = pull(model, published, target, watch=Watch(note=note))
    except ModelUnavailable as e:
        if e.retryable:  # after the scheduler's back-off, from where it stopped
            raise LoadFailed(str(e)) from e
        raise
    note(f"fetched {report.size:,} bytes")
