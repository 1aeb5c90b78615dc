"""ViTPose: a person's keypoints and posture, for every box of a frame, from a local transformers folder.

The network is made for a box with its surroundings: the library's affine transform takes a quarter more than the box,
in the network's own proportions. So it looks at the frame (`Input.whole`), not at the crop. A frame without boxes is
taken for one person.

Importing this module imports everything that loading and predicting touch and runs no tensor operation: the nursery
preloads it. Keypoints have the checkpoint's names (`id2label`), in COCO's spelling.

Options: `min_score`, what a keypoint has to score to count for the posture; `max_batch`, most people in one forward
pass. In config.toml alone: `half`, to run in half precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
import numpy as np
import torch
import transformers.models.vitpose_backbone.modeling_vitpose_backbone  # noqa: F401
from transformers.models.vitpose.image_processing_vitpose import (
    VitPoseImageProcessor,
    box_to_center_and_scale,
    get_warp_matrix,
    scipy_warp_affine,
)
from transformers.models.vitpose.modeling_vitpose import VitPoseEstimatorOutput, VitPoseForPoseEstimation

from workers.models.base import AnyResult, Input, Spec, images, require_numbers
from workers.models.shared import batches, folder, keypoints, posture
from zoo.results import Keypoints

WHAT = "a ViTPose model"
COCO_EXPERT = 0  # ViTPose+ has experts for six data sets (COCO, AiC, MPII, AP-10K, APT-36K, WholeBody)

Person = tuple[np.ndarray, tuple[int, int, int, int]]  # a frame, and a box in it (x1, y1, x2, y2)


class PoseOptions(batches.PassOptions, frozen=True, forbid_unknown_fields=True):
    """`min_score`: what a keypoint has to score to count for the posture."""

    min_score: Annotated[float, msgspec.Meta(ge=0, le=1)] = posture.SEEN


class PoseEstimator:
    """One folder with config.json, preprocessor_config.json and model.safetensors."""

    max_frames = 1

    def load(self, spec: Spec, device: str) -> None:
        """Raises ModelUnavailable without the folder, LoadFailed when what is in it cannot be served."""
        self._options = batches.Configured(spec, PoseOptions)
        self.max_batch = self._options.own.max_batch
        config = folder.open_config(spec, "vitpose", WHAT)
        self._vision = folder.Vision(
            spec, device, VitPoseForPoseEstimation, WHAT, processor=VitPoseImageProcessor,
            half=self._options.own.half, config=config,
        )  # fmt: skip
        self._has_experts = config.backbone_config.num_experts > 1
        unnamed = keypoints.unnamed(int(config.num_labels))
        self.labels = [keypoints.spelled(name) for name in folder.labels_of(spec, config, unnamed)]
        # Kernels are chosen while the load is being measured.
        ((_, scores),) = self._forward([(np.zeros((256, 192, 3), np.uint8), (0, 0, 192, 256))])
        require_numbers(spec, scores)

    def predict(self, inputs: list[Input]) -> list[AnyResult]:
        """All people in one forward pass, or in as few as `max_batch` allows."""
        asked = self._options.of(inputs)
        crops = images(inputs)
        people = [
            (item.whole, item.box or (0, 0, crop.shape[1], crop.shape[0]))
            for item, crop in zip(inputs, crops, strict=True)
        ]
        poses = batches.in_passes(asked, people, self._forward)
        out: list[AnyResult] = []
        for (points, scores), (_, (x1, y1, x2, y2)), options in zip(poses, people, asked, strict=True):
            out.append(
                Keypoints(
                    points=(points - np.array([x1, y1], np.float32))[None],
                    scores=scores[None],
                    boxes=np.array([[0, 0, x2 - x1, y2 - y1]], np.float32),
                    names=self.labels,
                    postures=[posture.posture(points, scores, self.labels, options.min_score)],
                )
            )
        return out

    def _forward(self, people: Sequence[Person]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each, (k, 2) points in its frame and (k,) scores, float32."""
        vision = self._vision
        boxes = [[x1, y1, x2 - x1, y2 - y1] for _, (x1, y1, x2, y2) in people]
        pixels = vision.processor(
            [self._cut_out(frame, box) for (frame, _), box in zip(people, boxes, strict=True)],
            boxes=None,
            do_affine_transform=False,
            input_data_format="channels_last",
            return_tensors="pt",
            device=vision.device,
        )["pixel_values"]
        expert = torch.full((len(people),), COCO_EXPERT, device=vision.device) if self._has_experts else None
        with torch.inference_mode():
            heatmaps = vision.network(pixels.to(vision.device, vision.network.dtype), dataset_index=expert).heatmaps
            found = vision.processor.post_process_pose_estimation(
                VitPoseEstimatorOutput(heatmaps=heatmaps.float()), boxes=[[box] for box in boxes]
            )
        return [(pose["keypoints"].numpy(), pose["scores"].numpy()) for (pose,) in found]

    def _cut_out(self, frame: np.ndarray, box: list[int]) -> np.ndarray:
        """What the network sees of a box (x, y, width, height).

        This is the processor's own affine transform, called by its parts: the processor wants a frame as a tensor, and
        of a read-only or a BGR one that would be a copy.
        """
        processor = self._vision.processor
        width, height = processor.size["width"], processor.size["height"]
        center, scale = box_to_center_and_scale(box, width, height, processor.normalize_factor)
        matrix = get_warp_matrix(0, center * 2.0, np.array((width, height)) - 1.0, scale * 200.0)
        cut: np.ndarray = scipy_warp_affine(frame, matrix, (height, width))
        return cut
