"""An ONNX file opened by onnxruntime.

The file is a protobuf: numbers, and names of operators that onnxruntime has. Nothing in it is run that is not one of
those: no library of custom operators is ever registered, so a graph that wants one is refused. Weights that lie beside
the file (external data) are looked for in its own folder and below; onnxruntime refuses absolute paths, and paths and
links that lead out of it.

Importing this module makes no session, and so starts no thread: the nursery preloads it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime

from workers.models.base import Spec, damaged, not_there, unservable
from zoo.errors import InvalidInput

CUDA = "CUDAExecutionProvider"
FATAL = 4  # of onnxruntime's levels: what goes wrong is raised, and need not be printed as well
TYPES = {  # numpy's, of those that it has
    "tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16", "tensor(bool)": "bool",
    "tensor(int8)": "int8", "tensor(int16)": "int16", "tensor(int32)": "int32", "tensor(int64)": "int64",
    "tensor(uint8)": "uint8", "tensor(uint16)": "uint16", "tensor(uint32)": "uint32", "tensor(uint64)": "uint64",
    "tensor(complex64)": "complex64", "tensor(complex128)": "complex128",
}  # fmt: skip


class Port(NamedTuple):
    """An input or output of a graph.

    Attributes:
        kind: onnxruntime's word for its type: "tensor(float)".
        shape: a number where the graph fixes it, else a name or None.
    """

    name: str
    kind: str
    shape: tuple[int | str | None, ...]

    @property
    def dtype(self) -> np.dtype[Any] | None:
        """None for what is no tensor of numbers."""
        return np.dtype(TYPES[self.kind]) if self.kind in TYPES else None

    def __str__(self) -> str:
        sides = (str(n) if isinstance(n, int) or (n and n.isidentifier()) else "?" for n in self.shape)
        return f"{self.name} {TYPES.get(self.kind, self.kind)} ({', '.join(sides)})"


class Graph:
    """One ONNX file on its device.

    Attributes:
        inputs, outputs: by name, in the graph's order.
        metadata: what its exporter has written into the file, by key.
        path: of the file.
    """

    def __init__(self, spec: Spec, device: str) -> None:
        """Raises ModelUnavailable without the file; LoadFailed when it is damaged, wants operators or files that it
        cannot have, or when onnxruntime cannot use the device.
        """
        self.path = _file(spec)
        self._spec = spec
        providers = _providers(spec, device)
        try:
            # Without its fallback, which would go on without the GPU.
            self._session: Any = onnxruntime.InferenceSession(
                str(self.path), _settings(spec), providers=providers, enable_fallback=0
            )
            self.inputs = {port.name: port for port in map(_port, self._session.get_inputs())}
            self.outputs = {port.name: port for port in map(_port, self._session.get_outputs())}
            self.metadata: Mapping[str, str] = self._session.get_modelmeta().custom_metadata_map
        except Exception as e:
            raise _refused(spec, self.path, e) from e
        if device.startswith("cuda") and CUDA not in self._session.get_providers():
            raise unservable(
                spec, f"onnxruntime could not start its CUDA provider on {device}; it names its reasons above"
            )

    def probe(self, feeds: dict[str, np.ndarray], names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """As `run`, at the end of a load. Raises LoadFailed."""
        try:
            return self.run(feeds, names)
        except Exception as e:
            why = f"{type(e).__name__}: {short(e)}"
            raise unservable(self._spec, f"{self.path} cannot be run, even on an empty input ({why})") from e

    def run(self, feeds: dict[str, np.ndarray], names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """The outputs of these names, or all.

        Raises:
            InvalidInput: the graph does not take these inputs. Whatever else onnxruntime raises.
        """
        wanted = list(self.outputs) if names is None else list(names)
        try:
            found = self._session.run(wanted, feeds)
        except onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument as e:
            raise InvalidInput(f"frame: the graph does not take it: {short(e)}") from e
        return dict(zip(wanted, found, strict=True))

    def described(self) -> str:
        """Its inputs and outputs in words."""
        said = ["; ".join(map(str, ports.values())) or "none" for ports in (self.inputs, self.outputs)]
        return f"its inputs are {said[0]}; its outputs are {said[1]}"


def short(error: Exception) -> str:
    """The first line of what onnxruntime says, without its own source files."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0].rpartition("onnxruntime_src/")[2].strip()[:300]


def _file(spec: Spec) -> Path:
    """The file itself, or the only one in a folder, where weights may lie beside it."""
    path = spec.path
    if path is not None and path.is_dir():
        found = sorted(path.glob("*.onnx"))
        if len(found) > 1:
            raise unservable(spec, f"{path} holds {len(found)} .onnx files; name one of them as `path`")
        path = found[0] if found else path / "*.onnx"
    if path is None or not path.is_file():
        raise not_there(spec, f"no graph at {path}")
    return path


def _settings(spec: Spec) -> Any:
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = FATAL
    settings.intra_op_num_threads = max(1, min(spec.threads, os.cpu_count() or 1))
    settings.inter_op_num_threads = 1
    # Threads that wait for work by spinning would take the cores of the other workers.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    settings.add_session_config_entry("session.load_model_format", "ONNX")
    return settings


def _providers(spec: Spec, device: str) -> list[Any]:
    if not device.startswith("cuda"):
        return ["CPUExecutionProvider"]
    if CUDA not in onnxruntime.get_available_providers():
        raise unservable(
            spec,
            f"onnxruntime {onnxruntime.__version__} has no CUDA provider here: install onnxruntime-gpu in its place, "
            'or serve this model on a device of kind "cpu" (`device` in its table, docs/models.md)',
        )
    onnxruntime.preload_dlls()  # CUDA's own libraries, which else are found only where torch is imported
    settings = {
        "device_id": int(device.partition(":")[2] or 0),
        "arena_extend_strategy": "kSameAsRequested",  # doubling would hold up to twice what is ever used
        "cudnn_conv_algo_search": "HEURISTIC",  # an exhaustive search for every new shape takes seconds, and memory
    }
    return [(CUDA, settings), "CPUExecutionProvider"]


def _port(found: Any) -> Port:
    return Port(found.name, found.type, tuple(found.shape))


def _refused(spec: Spec, path: Path, error: Exception) -> Exception:
    why = f"({type(error).__name__}: {short(error)})"
    said = str(error)
    if "protobuf" in said.lower():
        return damaged(spec, f"{path} is not an ONNX graph, or is damaged {why}")
    if "not a registered function/op" in said or "No Op registered" in said:
        return unservable(spec, f"{path} wants an operator that onnxruntime does not have; none are added to it {why}")
    if "xternal" in said:  # External data, external_data, External initializer
        return unservable(
            spec, f"{path} has weights in other files, which have to lie, whole, in its own folder or below {why}"
        )
    return unservable(spec, f"onnxruntime {onnxruntime.__version__} cannot serve {path} {why}")
