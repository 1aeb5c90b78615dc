"""Reading text, number plates above all: PP-OCR through rapidocr on onnxruntime, weights inside the package.

Importing this module creates no session and so starts no thread: the nursery preloads it. Nothing is downloaded:
every session is given its file by name, which is where rapidocr would otherwise reach out.

Options: `min_score`, lines below it are left out; `mode`, "full" to find lines and read them, "line" when the frame
*is* one line, such as a tight plate crop: ten times faster, and wrong where there are two lines, or much around it.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import cv2
import msgspec
import numpy as np
import onnxruntime
import rapidocr
import rapidocr.inference_engine.onnxruntime
import rapidocr.main

from workers.models.base import AnyResult, Input, Spec, images, unservable
from workers.models.shared.batches import Configured
from zoo.errors import ModelUnavailable
from zoo.results import OcrText

STAGES = ("det", "cls", "rec")  # finds lines; turns upside-down ones; reads them
# The finder scales the shorter side up to 736 pixels, whatever the longer one becomes. Of a plate 24 pixels high that
# makes letters of 500 pixels, of which it finds none, and of a crop of 2x40 ten megapixels and twelve seconds. So what
# is smaller than this, or a longer strip, is widened with its own edge first.
LEAST_SIDE = 256
MAX_ASPECT = 4
PACKAGED = Path(rapidocr.__file__).parent / "models"


class OcrOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`min_score`: least confidence of a line, 0 to 1. `mode`: "full" or "line"."""

    min_score: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.5
    mode: Literal["full", "line"] = "full"


class PlateReader:
    """PP-OCR's three networks. `spec.path`, if any, is a folder with one *det*, one *cls* and one *rec* .onnx."""

    max_frames = 1

    def load(self, spec: Spec, device: str) -> None:
        """Raises ModelUnavailable when a network's file is not there, LoadFailed when it cannot be read."""
        folder = PACKAGED if spec.path is None else spec.path
        files = {stage: _network(spec.name, folder, stage) for stage in STAGES}
        self._options = Configured(spec, OcrOptions)
        cuda = device.startswith("cuda") and "CUDAExecutionProvider" in onnxruntime.get_available_providers()
        engine = "EngineConfig.onnxruntime"
        params: dict[str, Any] = {
            "Global.log_level": "error",  # a frame without text is an answer, not a warning
            f"{engine}.intra_op_num_threads": max(1, min(spec.threads, os.cpu_count() or 1)),
            f"{engine}.inter_op_num_threads": 1,
            f"{engine}.use_cuda": cuda,
            **{f"{stage.capitalize()}.model_path": str(file) for stage, file in files.items()},
        }
        if cuda:
            params[f"{engine}.cuda_ep_cfg.device_id"] = int(device.partition(":")[2] or 0)
        logging.getLogger("RapidOCR").setLevel(logging.ERROR)
        try:
            if spec.path is not None:
                _check_alphabet(files["rec"])
            self._ocr: Any = rapidocr.RapidOCR(params=params)
            # Sessions are made at first use: use each once, so that a request never waits for one.
            # The finder gets a square: it scales the *shorter* side up to 736, so a strip would be a huge picture.
            self._ocr(np.full((320, 320, 3), 255, np.uint8), use_det=True, use_cls=False, use_rec=False)
            self._ocr(np.full((48, 320, 3), 255, np.uint8), use_det=False, use_cls=True, use_rec=True)
        except Exception as e:
            why = f"{type(e).__name__}: {str(e)[:300]}"
            raise unservable(spec, f"the networks in {folder} cannot be loaded ({why})") from e

    def predict(self, inputs: list[Input]) -> list[AnyResult]:
        """One frame after the other: rapidocr batches the lines of a frame, not frames."""
        todo = zip(images(inputs), self._options.of(inputs), strict=True)
        return [self._read(frame, options) for frame, options in todo]

    def _read(self, frame: np.ndarray, options: OcrOptions) -> OcrText:
        full = options.mode == "full"
        # rapidocr takes arrays as BGR. It also remembers what it was told in the last call, so all of it is said
        # every time; its own score filter is off, because it works only when lines were detected.
        bgr = np.ascontiguousarray(frame[..., ::-1])
        height, width = bgr.shape[:2]
        if full:
            least = max(LEAST_SIDE, -(-max(height, width) // MAX_ASPECT))
            below, right = max(0, least - height), max(0, least - width)
            bgr = cv2.copyMakeBorder(bgr, 0, below, 0, right, cv2.BORDER_REPLICATE) if below or right else bgr
        found = self._ocr(bgr, use_det=full, use_cls=full, use_rec=True, text_score=0.0)
        lines = [str(text) for text in found.txts or ()]
        scores = np.asarray(found.scores, np.float32) if lines else np.zeros(0, np.float32)
        boxes = None
        if full:
            boxes = np.asarray(found.boxes, np.float32).reshape(-1, 4, 2) if lines else np.zeros((0, 4, 2), np.float32)
        keep = [i for i, text in enumerate(lines) if text.strip() and scores[i] >= options.min_score]
        if boxes is not None:
            keep = [keep[i] for i in reading_order(boxes[keep])]
            boxes = np.clip(boxes[keep], 0, np.array([width - 1, height - 1], np.float32))
        lines, scores = [lines[i] for i in keep], scores[keep]
        return OcrText(
            text=plain("".join(lines)),
            lines=lines,
            scores=scores,
            boxes=boxes,
            score=float(scores.mean()) if lines else 0.0,
        )


def plain(text: str) -> str:
    """Upper case, and only A-Z and 0-9: how plates are compared."""
    return re.sub("[^A-Z0-9]", "", text.upper())


def reading_order(boxes: np.ndarray) -> list[int]:
    """Indices of (n, 4, 2) corner boxes, row by row from the top, each row from the left.

    A box belongs to the row above it when its centre is less than half that row's height below the row's own:
    two words of one plate are seldom at exactly the same height.
    """
    centres, heights = boxes.mean(axis=1), np.ptp(boxes[..., 1], axis=1)
    rows: list[list[int]] = []
    for i in np.argsort(centres[:, 1], kind="stable").tolist():
        first = rows[-1][0] if rows else None
        if first is not None and centres[i, 1] - centres[first, 1] < heights[first] / 2:
            rows[-1].append(i)
        else:
            rows.append([i])
    return [i for row in rows for i in sorted(row, key=lambda i: float(centres[i, 0]))]


def _network(model: str, folder: Path, stage: str) -> Path:
    files = sorted(file for file in folder.glob(f"*{stage}*.onnx") if file.is_file())
    if len(files) != 1:
        raise ModelUnavailable(
            f"{model}: {folder} holds {len(files)} files named *{stage}*.onnx where one is needed; "
            "leave `path` out to use the weights inside the rapidocr package"
        )
    return files[0]


def _check_alphabet(rec: Path) -> None:
    """rapidocr fetches the list of characters from the network when the file does not carry it."""
    meta = onnxruntime.InferenceSession(str(rec), providers=["CPUExecutionProvider"]).get_modelmeta()
    if "character" not in meta.custom_metadata_map:
        raise ValueError(f"{rec.name} does not carry its list of characters (metadata key 'character')")
