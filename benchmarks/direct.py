"""Each library as a careful user of it calls it, without the zoo: one model in a process of its own.

`python -m benchmarks.direct ADAPTER PATH OPTIONS` (the adapter as config.toml names it, the options as JSON) loads the
checkpoint. Then, for each line of JSON on its standard input, [boxes or null, n], it makes n calls about these boxes of
the scene, or all of it, and prints their seconds of wall time and of CPU. It ends with its input.

Each library is used well: pictures come in the order of colours that it wants, crops of a frame are one batch where
that is faster, features of prompts are computed once, post-processing goes as far as the zoo's, to arrays and labels.
Each process imports what its one model needs and nothing else, so that memory can be compared as well.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import workers.models  # noqa: F401  (tells the libraries that there is no network)
from benchmarks import scene

THREADS = 1
Crops = list[np.ndarray]


class Yolo:
    colours = "bgr"

    def __init__(self, path: str, options: dict[str, Any]) -> None:
        from ultralytics import YOLO

        self.model = YOLO(path)
        self.options = {"verbose": False, "device": "cpu", "retina_masks": True, **options}

    def __call__(self, crops: Crops) -> Any:
        # One by one: a batch of crops of different shapes is padded to squares, and takes longer.
        return [self._answer(self.model.predict(crop, **self.options)[0]) for crop in crops]

    def _answer(self, found: Any) -> Any:
        rows = found.boxes.data.numpy()
        masks = None if found.masks is None else found.masks.data.numpy().astype(bool)
        points = None if found.keypoints is None else found.keypoints.data.numpy()
        return rows, [found.names[int(i)] for i in rows[:, 5]], masks, points


class YoloWorld(Yolo):
    def __init__(self, path: str, options: dict[str, Any]) -> None:
        import torch
        from transformers import AutoTokenizer, CLIPTextModelWithProjection

        prompts = options.pop("prompts")
        super().__init__(path, options)
        folder = Path(path).parent / "text_encoder"
        tokens = AutoTokenizer.from_pretrained(folder)(prompts, padding=True, return_tensors="pt")
        with torch.inference_mode():
            found = CLIPTextModelWithProjection.from_pretrained(folder)(**tokens).text_embeds
        self.model.model.txt_feats = torch.nn.functional.normalize(found, dim=-1)[None]
        self.model.model.model[-1].nc = len(prompts)
        self.model.model.names = dict(enumerate(prompts))


class Transformers:
    """What its families share."""

    colours = "rgb"

    def __init__(self, path: str, kind: str) -> None:
        import torch
        import transformers

        self.torch = torch
        self.processor = transformers.AutoImageProcessor.from_pretrained(path)
        self.model = getattr(transformers, kind).from_pretrained(path).eval()

    def pixels(self, crops: Crops) -> Any:
        return self.processor(crops, return_tensors="pt")["pixel_values"]


class Classifier(Transformers):
    def __init__(self, path: str, options: dict[str, Any]) -> None:
        super().__init__(path, "AutoModelForImageClassification")

    def __call__(self, crops: Crops) -> Any:
        with self.torch.inference_mode():
            rows = self.model(pixel_values=self.pixels(crops)).logits.softmax(-1).numpy()
        return [ranked(row, self.model.config.id2label) for row in rows]


class ClipVision(Transformers):
    def __init__(self, path: str, options: dict[str, Any]) -> None:
        super().__init__(path, "CLIPVisionModelWithProjection")

    def __call__(self, crops: Crops) -> Any:
        with self.torch.inference_mode():
            found = self.model(pixel_values=self.pixels(crops)).image_embeds
            return self.torch.nn.functional.normalize(found, dim=-1).numpy()


class Clip(Transformers):
    def __init__(self, path: str, options: dict[str, Any]) -> None:
        super().__init__(path, "CLIPModel")
        from transformers import AutoTokenizer

        self.prompts = options["prompts"]
        texts = [options["template"].format(prompt) for prompt in self.prompts]
        with self.torch.inference_mode():
            tokens = AutoTokenizer.from_pretrained(path)(texts, padding=True, return_tensors="pt")
            found = self.model.get_text_features(**tokens).pooler_output
            self.texts = self.torch.nn.functional.normalize(found, dim=-1)

    def __call__(self, crops: Crops) -> Any:
        with self.torch.inference_mode():
            found = self.model.get_image_features(pixel_values=self.pixels(crops)).pooler_output
            cosines = self.torch.nn.functional.normalize(found, dim=-1) @ self.texts.T
            rows = (self.model.logit_scale.exp() * cosines).softmax(-1).numpy()
        return [ranked(row, self.prompts, 3) for row in rows]


class XClip(Transformers):
    """One video. The library's model reads the prompts anew with each."""

    def __init__(self, path: str, options: dict[str, Any]) -> None:
        super().__init__(path, "XCLIPModel")
        from transformers import AutoTokenizer

        self.prompts = options["prompts"]
        self.tokens = AutoTokenizer.from_pretrained(path)(self.prompts, padding=True, return_tensors="pt")

    def __call__(self, crops: Crops) -> Any:
        with self.torch.inference_mode():
            pixels = self.pixels(crops).flatten(0, -4)[None]
            row = self.model(pixel_values=pixels, **self.tokens).logits_per_video[0].softmax(-1).numpy()
        return ranked(row, self.prompts, 3)


class VitPose(Transformers):
    """Boxes are of the frame."""

    def __init__(self, path: str, options: dict[str, Any]) -> None:
        super().__init__(path, "VitPoseForPoseEstimation")

    def __call__(self, frame: np.ndarray, boxes: list[scene.Box]) -> Any:
        coco = [[[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in boxes]]
        with self.torch.inference_mode():
            pixels = self.processor(frame, boxes=coco, return_tensors="pt")["pixel_values"]
            expert = self.torch.zeros(len(boxes), dtype=self.torch.long)
            found = self.model(pixel_values=pixels, dataset_index=expert)
            (people,) = self.processor.post_process_pose_estimation(found, boxes=coco)
        return [(person["keypoints"].numpy(), person["scores"].numpy()) for person in people]


class Depth(Transformers):
    """Of the whole frame; boxes are parts of its map."""

    def __init__(self, path: str, options: dict[str, Any]) -> None:
        super().__init__(path, "AutoModelForDepthEstimation")

    def __call__(self, frame: np.ndarray, boxes: list[scene.Box]) -> Any:
        with self.torch.inference_mode():
            found = self.model(pixel_values=self.pixels([frame]))
            (item,) = self.processor.post_process_depth_estimation(found, target_sizes=[frame.shape[:2]])
        depth = item["predicted_depth"].numpy()
        return [depth[y1:y2, x1:x2] for x1, y1, x2, y2 in boxes]


class Segformer(Transformers):
    def __init__(self, path: str, options: dict[str, Any]) -> None:
        super().__init__(path, "SegformerForSemanticSegmentation")

    def __call__(self, crops: Crops) -> Any:
        sizes = [crop.shape[:2] for crop in crops]
        with self.torch.inference_mode():
            found = self.model(pixel_values=self.pixels(crops))
            masks = self.processor.post_process_semantic_segmentation(found, target_sizes=sizes)
        return [(mask.numpy(), np.bincount(mask.numpy().reshape(-1), minlength=18) / mask.numel()) for mask in masks]


class Detr(Transformers):
    def __init__(self, path: str, options: dict[str, Any]) -> None:
        super().__init__(path, "AutoModelForObjectDetection")
        self.conf = options["conf"]

    def __call__(self, crops: Crops) -> Any:
        sizes = [crop.shape[:2] for crop in crops]
        with self.torch.inference_mode():
            found = self.model(pixel_values=self.pixels(crops))
        boxes = self.processor.post_process_object_detection(found, threshold=self.conf, target_sizes=sizes)
        return [{key: value.numpy() for key, value in one.items()} for one in boxes]


class Torchvision:
    """A network on pixels that torchvision's transforms make of Pillow's pictures."""

    colours = "rgb"
    size = (224, 224)

    def __init__(self, network: Any, state: dict[str, Any]) -> None:
        import torch
        from PIL import Image
        from torchvision import transforms

        self.torch, self.image = torch, Image
        self.network = network.eval()
        self.network.load_state_dict(state)
        normalize = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        self.prepare = transforms.Compose([transforms.Resize(self.size), transforms.ToTensor(), normalize])

    def outputs(self, crops: Crops) -> Any:
        return self.network(self.torch.stack([self.prepare(self.image.fromarray(crop)) for crop in crops]))


class ResNet50(Torchvision):
    def __init__(self, path: str, options: dict[str, Any]) -> None:
        import torch
        from torchvision.models import resnet50

        self.labels = (Path(path) / "classes.txt").read_text().splitlines()
        state = torch.load(Path(path) / "pytorch_model.bin", weights_only=True)
        super().__init__(resnet50(num_classes=len(self.labels)), state)

    def __call__(self, crops: Crops) -> Any:
        with self.torch.inference_mode():
            rows = self.outputs(crops).softmax(-1).numpy()
        return [ranked(row, self.labels) for row in rows]


class OSNet(Torchvision):
    """There is no library that still imports; the network is the adapter's."""

    size = (256, 128)

    def __init__(self, path: str, options: dict[str, Any]) -> None:
        import torch

        from workers.models.shared.osnet_network import osnet_x0_25

        state = torch.load(path, weights_only=True)
        super().__init__(osnet_x0_25(), {k: v for k, v in state.items() if not k.startswith("classifier.")})

    def __call__(self, crops: Crops) -> Any:
        with self.torch.inference_mode():
            return self.torch.nn.functional.normalize(self.outputs(crops), dim=-1).numpy()


class Plates:
    colours = "bgr"

    def __init__(self, path: str, options: dict[str, Any]) -> None:
        import rapidocr

        threads = {f"EngineConfig.onnxruntime.{kind}_op_num_threads": THREADS for kind in ("intra", "inter")}
        self.ocr = rapidocr.RapidOCR(params={"Global.log_level": "error", **threads})
        self.ocr(np.full((320, 320, 3), 255, np.uint8))  # all three networks are loaded, as in a worker

    def __call__(self, crops: Crops) -> Any:
        return [self.ocr(crop, use_det=False, use_cls=False, use_rec=True).txts for crop in crops]


class Brisque:
    colours = "rgb"

    def __init__(self, path: str, options: dict[str, Any]) -> None:
        import cv2
        from brisque import BRISQUE

        class Package(BRISQUE):  # type: ignore[misc]
            """With nothing changed but what stops it on numpy 2.4."""

            def scale_features(self, features: Any) -> Any:
                return super().scale_features([np.asarray(value).item() for value in features])

        cv2.setNumThreads(THREADS)
        self.package = Package(url=False)

    def __call__(self, crops: Crops) -> Any:
        return [self.package.score(crop) for crop in crops]


DIRECT: dict[str, Any] = {
    "workers.models.detr:ObjectDetector": Detr,
    "workers.models.yolo:Detector": Yolo,
    "workers.models.yolo_world:OpenVocabularyDetector": YoloWorld,
    "workers.models.classify:ImageClassifier": Classifier,
    "workers.models.clip:ClipEmbedder": ClipVision,
    "workers.models.clip:PromptClassifier": Clip,
    "workers.models.xclip:ActionRecognizer": XClip,
    "workers.models.vitpose:PoseEstimator": VitPose,
    "workers.models.depth:DepthEstimator": Depth,
    "workers.models.segformer:Segmenter": Segformer,
    "workers.models.vehicle:VehicleClassifier": ResNet50,
    "workers.models.osnet:PersonEmbedder": OSNet,
    "workers.models.ocr:PlateReader": Plates,
    "workers.models.quality:Brisque": Brisque,
}


def ranked(row: np.ndarray, labels: Any, count: int | None = None) -> list[tuple[str, float]]:
    return [(labels[int(i)], float(row[i])) for i in np.argsort(-row)[:count]]


class Calls:
    """A model on the scene."""

    def __init__(self, kind: Any, path: str, options: dict[str, Any]) -> None:
        frame = scene.frame() if kind.colours == "rgb" else np.ascontiguousarray(scene.frame()[..., ::-1])
        self.frames = scene.video(frame) if kind is XClip else [frame]
        self.model = kind(path, options)

    def __call__(self, boxes: list[scene.Box] | None) -> Any:
        frame = self.frames[0]
        if isinstance(self.model, VitPose | Depth):
            return self.model(frame, boxes or [(0, 0, frame.shape[1], frame.shape[0])])
        if boxes is None:
            return self.model(self.frames)
        return self.model([frame[y1:y2, x1:x2] for x1, y1, x2, y2 in boxes])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("adapter", choices=list(DIRECT))
    parser.add_argument("path")
    parser.add_argument("options", help="as JSON")
    args = parser.parse_args()
    adapter, path, options = args.adapter, args.path, args.options
    calls = Calls(DIRECT[adapter], path, json.loads(options))
    for line in sys.stdin:
        boxes, n = json.loads(line)
        if "torch" in sys.modules:  # ultralytics sets a number of its own when it first predicts
            sys.modules["torch"].set_num_threads(THREADS)
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(n):
            calls(boxes)
        print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu]), flush=True)


if __name__ == "__main__":
    main()
