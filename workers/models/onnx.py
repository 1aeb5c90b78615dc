"""ONNX graphs on onnxruntime: `OnnxDetector` for exports of the YOLO family, `OnnxGraph` for any other.

A detector's labels come from the export's metadata (`names`), or from the option `labels`. How its numbers are laid out
is recognised from what the graph answers to a blank picture, or said by the option `layout`; what cannot be recognised
is refused rather than guessed at (`graphs/heads.py`).

Any other graph takes arrays by name and answers arrays by name; or pictures, where the option `image` says how one
becomes its input. Its answers are plain dicts.

Neither needs torch or ultralytics. Importing this module makes no session and starts no thread: the nursery preloads
it. Options: `OnnxDetectorOptions`, `OnnxGraphOptions`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import cv2
import msgspec
import numpy as np

from workers.models.base import AnyResult, Input, Spec, chunks, configured, images, require_numbers, unservable
from workers.models.graphs import export, heads, image, letterbox
from workers.models.graphs.session import Graph, Port
from workers.models.shared import batches
from zoo.errors import InferenceFailed, InvalidInput
from zoo.labels import Classes
from zoo.results import Detections

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Text = Annotated[str, msgspec.Meta(min_length=1)]


class OnnxDetectorOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """In config.toml's table or with a request.

    Attributes:
        conf: least score of a box. iou: boxes of one class that overlap more are one. Both 0 to 1.
        imgsz: pixels that the frame's longer side is scaled to, or (height, width); for a graph that takes any size.
        max_det: most boxes per frame, the best ones.
        classes: only these, by label or by number; None for all.
        max_batch: frames in one pass, of a graph that takes several.
        layout: one of `heads.LAYOUTS`; None to recognise it. labels: what to call the classes, in order, or a file with
            one a line. Both in config.toml alone.
    """

    conf: Share = 0.25
    iou: Share = 0.7
    imgsz: image.Size | None = None
    max_det: Annotated[int, msgspec.Meta(ge=1, le=3000)] = 300
    classes: tuple[int | str, ...] | None = None
    max_batch: batches.BatchSize = 8
    layout: Literal["v8", "v5", "end2end"] | None = None
    labels: tuple[Text, ...] | Text | None = None


class OnnxDetector:
    """An export with one picture as input, answering `Detections`.

    Attributes:
        labels: by class number.
    """

    max_frames = 1

    def load(self, spec: Spec, device: str) -> None:
        """Raises ModelUnavailable without the file, LoadFailed when it is damaged, or no detector that is known."""
        cv2.setNumThreads(spec.threads)
        self._options = batches.Configured(spec, OnnxDetectorOptions, "layout", "labels")
        own = self._options.own
        self._graph = Graph(spec, device)
        export.require_detector(spec, self._graph)
        self._port, rectangle = export.picture_input(spec, self._graph)
        self.labels = export.labels_of(spec, self._graph, own.labels)
        self._classes = Classes(self.labels)
        self.max_batch = 1 if self._port.shape[0] == 1 else own.max_batch
        with configured(spec):
            self._classes.numbers(own.classes)
            height, width = rectangle.sides(own.imgsz)
        self._rectangle = rectangle._replace(most=self.max_batch * height * width)
        self._output, self._layout = self._probe(spec, self.max_batch if device.startswith("cuda") else 1)

    def predict(self, inputs: list[Input]) -> list[AnyResult]:
        """One pass for the inputs that agree in their options and in the rectangle that they are scaled into."""
        frames = images(inputs)
        return batches.by_options(self._options.of(inputs), frames, self._find)

    def _find(self, options: OnnxDetectorOptions, frames: list[np.ndarray]) -> list[AnyResult]:
        numbers = self._classes.numbers(options.classes)
        wanted = heads.Thresholds(options.conf, options.iou, options.max_det, numbers)
        sides = self._rectangle.sides(options.imgsz)
        stride = None if self._rectangle.fixed else self._rectangle.stride
        places = [letterbox.fit(frame, sides, stride) for frame in frames]
        alike: dict[tuple[int, int], list[int]] = {}
        for i, place in enumerate(places):
            alike.setdefault(place.sides, []).append(i)
        most = min(self.max_batch, options.max_batch, (self._rectangle.most or 0) // (sides[0] * sides[1]))
        found: dict[int, AnyResult] = {}
        for members in alike.values():
            for some in chunks(members, most):
                feeds = self._feeds([places[i].picture(frames[i]) for i in some])
                outputs = self._graph.run(feeds, [self._output])
                for i, output in zip(some, outputs[self._output], strict=True):
                    found[i] = self._result(heads.rows_of(output, self._layout, wanted), places[i])
        return [found[i] for i in range(len(frames))]

    def _feeds(self, pictures: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        assert self._port.dtype is not None
        return {self._port.name: letterbox.tensor(pictures, self._port.dtype)}

    def _result(self, rows: np.ndarray, place: letterbox.Letterbox) -> Detections:
        numbers = rows[:, 5].astype(np.int32)
        if len(rows) and not 0 <= numbers.min() <= numbers.max() < len(self.labels):
            raise InferenceFailed(f"the graph answers a class {numbers.max()}; it has {len(self.labels)} labels")
        return Detections(
            boxes=place.back(rows[:, :4]),
            scores=np.ascontiguousarray(rows[:, 4]),
            class_ids=numbers,
            labels=[self.labels[i] for i in numbers],
        )

    def _probe(self, spec: Spec, count: int) -> tuple[str, str]:
        """The name of the output that holds the boxes, and its layout, by what the graph answers to `count` blank
        pictures: on a GPU as many as there may be at once, so that their memory is seen during the load.
        """
        own = self._options.own
        sides = self._rectangle.sides(own.imgsz)
        said = self._graph.probe(self._feeds([np.zeros((*sides, 3), np.uint8)] * count))
        answers = {name: found for name, found in said.items() if isinstance(found, np.ndarray)}  # no sequences
        flat = {name: found for name, found in answers.items() if found.ndim == 3 and found.dtype.kind == "f"}
        if len(flat) == 1:
            ((name, output),) = flat.items()
            require_numbers(spec, output)
            layout = own.layout or heads.recognised(output, sides, len(self.labels))
            if layout is not None and len(output) == count and heads.fits(layout, output.shape, len(self.labels)):
                return name, layout
        shapes = ", ".join(f"{name} {found.shape}" for name, found in answers.items())
        verdict = f"that is not {own.layout!r}" if own.layout else f"which of {', '.join(heads.LAYOUTS)} is not certain"
        raise unservable(
            spec,
            f"{self._graph.path} answers {count} pictures of {sides[1]}x{sides[0]} with {shapes}, and has "
            f"{len(self.labels)} labels: {verdict}. If it is one of them, say which by the option `layout`, and its "
            f"labels by `labels`; {export.GENERIC}",
        )


class OnnxGraphOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """In config.toml's table or with a request.

    Attributes:
        inputs: names of the arrays that are sent, in their order; None: in the graph's.
        outputs: names of what to answer; None for all.
        max_batch: pictures in one pass, of a graph that takes several.
        image: what is sent are pictures, and how they become an input; in config.toml alone.
    """

    inputs: tuple[Text, ...] | None = None
    outputs: tuple[Text, ...] | None = None
    max_batch: batches.BatchSize = 8
    image: image.ImageOptions | None = None


class OnnxGraph:
    """Any graph of tensors. Answers a dict of arrays by the names of the outputs."""

    max_batch = 1

    def load(self, spec: Spec, device: str) -> None:
        """Raises ModelUnavailable without the file, LoadFailed when it is damaged, or cannot be served."""
        self._options = batches.Configured(spec, OnnxGraphOptions, "image")
        own = self._options.own
        self._graph = Graph(spec, device)
        with configured(spec):
            outputs = self._outputs(own)
            self._inputs(own)
        odd = [p for p in (*self._graph.inputs.values(), *map(self._graph.outputs.get, outputs)) if p and not p.dtype]
        if odd:
            raise unservable(spec, f"{self._graph.path} has {odd[0]}, which is no array of numbers")
        self._picture: image.Preparation | None = None
        if own.image is not None:
            self.max_frames = 1
            self._picture = self._preparation(spec, own.image)
            self.max_batch = own.max_batch if self._is_batched() else 1
            blank = [np.zeros((32, 32, 3), np.uint8)] * (self.max_batch if device.startswith("cuda") else 1)
            self._graph.probe({self._picture.port.name: self._picture(blank)}, outputs)
        elif all(isinstance(n, int) for port in self._graph.inputs.values() for n in port.shape):
            shapes: dict[str, Any] = {name: port.shape for name, port in self._graph.inputs.items()}
            feeds = {name: np.zeros(shape, self._graph.inputs[name].dtype) for name, shape in shapes.items()}
            self._graph.probe(feeds, outputs)

    def predict(self, inputs: list[Input]) -> list[AnyResult]:
        """Pictures together, where the graph takes several and they want the same outputs; arrays one by one."""
        asked = self._options.of(inputs)
        if self._picture is None:
            return [self._answered(item, options) for item, options in zip(inputs, asked, strict=True)]
        frames = images(inputs)
        return batches.by_options(asked, frames, self._seen_together)

    def _seen_together(self, options: OnnxGraphOptions, frames: list[np.ndarray]) -> list[AnyResult]:
        self._inputs(options)
        outputs = self._outputs(options)
        most = min(self.max_batch, options.max_batch)
        return [found for some in chunks(frames, most) for found in self._seen(some, outputs)]

    def _seen(self, frames: Sequence[np.ndarray], outputs: list[str]) -> list[AnyResult]:
        assert self._picture is not None
        found = self._graph.run({self._picture.port.name: self._picture(frames)}, outputs)
        if len(frames) == 1:
            return [found]
        return [{name: value[i : i + 1] for name, value in found.items()} for i in range(len(frames))]

    def _answered(self, item: Input, options: OnnxGraphOptions) -> AnyResult:
        if item.box is not None:
            raise InvalidInput("boxes: this model takes arrays, not pictures")
        names = self._inputs(options)
        if len(item.frames) != len(names):
            raise InvalidInput(
                f"frame: this model takes {len(names)} arrays ({', '.join(names)}), got {len(item.frames)}"
            )
        feeds = dict(zip(names, item.frames, strict=True))
        for name, array in feeds.items():
            _check(self._graph.inputs[name], array)
        return self._graph.run(feeds, self._outputs(options))

    def _inputs(self, options: OnnxGraphOptions) -> list[str]:
        """The names of the arrays in the order in which they come. Raises InvalidInput."""
        known = list(self._graph.inputs)
        if options.inputs is not None and sorted(options.inputs) != sorted(known):
            raise InvalidInput(f"options: inputs: the graph takes {', '.join(known)}, each once")
        return known if options.inputs is None else list(options.inputs)

    def _outputs(self, options: OnnxGraphOptions) -> list[str]:
        known = list(self._graph.outputs)
        wanted = known if options.outputs is None else list(dict.fromkeys(options.outputs))
        if not wanted or not set(wanted) <= set(known):
            raise InvalidInput(f"options: outputs: the graph answers {', '.join(known)}")
        return wanted

    def _preparation(self, spec: Spec, options: image.ImageOptions) -> image.Preparation:
        ports = self._graph.inputs
        name = options.input if options.input is not None else next(iter(ports), "")
        if len(ports) != 1 or name not in ports:
            raise unservable(
                spec, f"options.image: the graph needs one picture as its only input: {self._graph.described()}"
            )
        return image.Preparation(spec, ports[name], options)

    def _is_batched(self) -> bool:
        """Whether the graph takes several pictures, and each of its outputs has a row for each of them."""
        assert self._picture is not None
        batch = self._picture.port.shape[0]
        return isinstance(batch, str) and all(port.shape[:1] == (batch,) for port in self._graph.outputs.values())


def _check(port: Port, array: np.ndarray) -> None:
    """Raises InvalidInput if an input cannot be this array."""
    fits = len(array.shape) == len(port.shape) and all(
        not isinstance(n, int) or n == size for n, size in zip(port.shape, array.shape, strict=True)
    )
    if not fits or array.dtype != port.dtype:
        raise InvalidInput(f"frame: the input is {port}; got {array.dtype} {array.shape}")
