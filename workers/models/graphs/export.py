"""What the export of a YOLO says of itself: its input, its task, its labels, which an option may overrule."""

from __future__ import annotations

import ast
from typing import Any, NamedTuple

from workers.models.base import Spec, damaged, not_there, unservable
from workers.models.graphs.image import Size, order_of, sides_of
from workers.models.graphs.session import Graph, Port
from zoo.errors import InvalidInput
from zoo.system import files
from zoo.weights.labels import lines

LONGEST = 1 << 20  # characters of an entry of the metadata: the names of 10,000 classes have a third of it
SIDE = 640  # that ultralytics takes for a graph of any size
STRIDE = 32
GENERIC = 'other graphs are served as named tensors by adapter = "workers.models.onnx:OnnxGraph"'


class Rectangle(NamedTuple):
    """What pictures a graph takes.

    Attributes:
        fixed: (height, width) where it takes no other; else None, and any in whole strides.
        stride: of its coarsest grid.
        most: pixels at once that its memory is meant for; None: not known yet.
    """

    fixed: tuple[int, int] | None
    stride: int
    most: int | None = None

    def sides(self, size: Size | None) -> tuple[int, int]:
        """(height, width) for what is asked for. Raises InvalidInput."""
        if self.fixed is not None:
            if size is not None and sides_of(size) != self.fixed:
                raise InvalidInput(
                    f"options: imgsz: this graph takes {self.fixed[1]}x{self.fixed[0]} pixels and no other size"
                )
            return self.fixed
        asked = sides_of(SIDE if size is None else size)
        height, width = (-(-side // self.stride) * self.stride for side in asked)
        if self.most is not None and height * width > self.most:
            raise InvalidInput(
                f"options: imgsz: {width}x{height} is more at once than the {self.most} pixels that config.toml gives "
                "this model (max_batch frames of its imgsz)"
            )
        return height, width


def picture_input(spec: Spec, graph: Graph) -> tuple[Port, Rectangle]:
    """The only input, a picture of three channels as floats. Raises LoadFailed for anything else."""
    ports = list(graph.inputs.values())
    port = ports[0] if len(ports) == 1 else None
    if port is None or port.kind not in ("tensor(float)", "tensor(float16)") or order_of(port) != "nchw":
        raise unservable(
            spec, f"{graph.path} is not a detector with one picture as input: {graph.described()}; {GENERIC}"
        )
    batch, _, *sides = port.shape
    if (isinstance(batch, int) and batch != 1) or len({isinstance(side, int) for side in sides}) != 1:
        raise unservable(
            spec, f"{graph.path} has the input {port}; export it for a batch of 1, or with dynamic = true, for any size"
        )
    stride = _literal(spec, graph, "stride", STRIDE)
    if not isinstance(stride, int) or not 1 <= stride <= 1024:
        raise damaged(spec, f"{graph.path} has the stride {stride!r} in its metadata")
    fixed = tuple(side for side in sides if isinstance(side, int))
    return port, Rectangle((fixed[0], fixed[1]) if fixed else None, stride)


def require_detector(spec: Spec, graph: Graph) -> None:
    """Raises LoadFailed if the metadata says that it was exported for another task."""
    task = graph.metadata.get("task", "detect")
    if task != "detect":
        raise unservable(spec, f"{graph.path} was exported for {task[:40]!r}; this adapter serves detectors; {GENERIC}")


def labels_of(spec: Spec, graph: Graph, option: tuple[str, ...] | str | None) -> list[str]:
    """By class number.

    Args:
        option: the labels themselves, or the file that has one a line, absolute or as seen from the graph's; None for
            those of the metadata.

    Raises:
        ModelUnavailable: that file is not there. LoadFailed: there are no labels, or they are not read.
    """
    if isinstance(option, str):
        file = graph.path.parent / option
        if not file.exists():
            raise not_there(spec, f"no labels at {file}")
        try:
            found = lines(files.read_regular(file, files.MAX_TEXT))
        except (OSError, UnicodeDecodeError) as e:
            raise unservable(spec, f"the labels, {file}, cannot be read ({e})") from e
    elif option is not None:
        found = list(option)
    else:
        found = _names(spec, graph)
    if not found:
        raise unservable(
            spec,
            f"{graph.path} names no classes (metadata `names`); give them in order by the option `labels`, as a list, "
            "or as a file with one a line",
        )
    return found


def _names(spec: Spec, graph: Graph) -> list[str]:
    names = _literal(spec, graph, "names", [])
    if isinstance(names, dict) and sorted(names, key=str) == sorted(range(len(names)), key=str):
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise damaged(spec, f"{graph.path} has metadata `names` that do not name the classes from 0 on")
    return names


def _literal(spec: Spec, graph: Graph, key: str, otherwise: Any) -> Any:
    """An entry of the metadata, which is Python's way of writing a value. It is read, and never run."""
    text = graph.metadata.get(key)
    if text is None:
        return otherwise
    try:
        if len(text) > LONGEST:
            raise ValueError("too long")
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as e:
        raise damaged(spec, f"{graph.path} has metadata `{key}` that cannot be read ({type(e).__name__})") from e
