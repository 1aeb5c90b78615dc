"""What the nursery has not imported, each worker would import again, at every load."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

predictor = pytest.importorskip("workers.models.predictor")
import torch  # noqa: E402
from torchvision.models import resnet50  # noqa: E402

pytestmark = pytest.mark.models

ROOT = Path(__file__).parents[2]
# Two modules of a few lines that transformers visits on its way to CLIP's tokenizer.
EMPTY = {"transformers.models.aimv2", "transformers.models.clip.tokenization_clip_fast"}
CODE = """
import sys, threading
from importlib import import_module
from pathlib import Path
import numpy as np
from workers.models.base import Input, Spec
models = [(*adapter.split(":"), path) for adapter, path in zip(sys.argv[1::2], sys.argv[2::2])]
for module, _, _ in models:
    import_module(module)
assert threading.active_count() == 1
before = set(sys.modules)
for module, name, path in models:
    model = getattr(import_module(module), name)()
    model.load(Spec(name="it", path=Path(path), trust_pickle=True), "cpu")
    model.predict([Input(np.zeros((40, 30, 3), np.uint8), {})])
print(*(set(sys.modules) - before))
"""


def test_a_load_imports_nothing_more(standin, tmp_path):
    vehicles = tmp_path / "vehicles"
    vehicles.mkdir()
    torch.save(resnet50(num_classes=2).state_dict(), vehicles / "pytorch_model.bin")
    (vehicles / "classes.txt").write_text("car\nbus\n")
    served = {
        "vehicle:VehicleClassifier": [vehicles],
        "osnet:PersonEmbedder": [standin("osnet-x0-25")],
        "yolo_world:OpenVocabularyDetector": [standin("yolo-world-s")],
        "yolo:Detector": [tmp_path / f"{kind}.pt" for kind in ("yolo11n", "yolo11n-pose", "yolo11n-seg")],
    }
    for path in served["yolo:Detector"]:
        predictor.ultralytics.YOLO(f"{path.stem}.yaml").save(path)
    pairs = [part for name, paths in served.items() for path in paths for part in (f"workers.models.{name}", str(path))]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", CODE, *pairs], capture_output=True, text=True, env=env, check=True)
    assert set(done.stdout.split()) <= EMPTY
