"""Models that come back by their copies answer as they did before, to the last digits but one.

Those depend on where in memory a tensor begins, which for weights read from a file is anywhere.
"""

from __future__ import annotations

import json
import os
import re

import numpy as np
import pytest

from tests.support import Running, wait_until
from zoo import Client, results

pytest.importorskip("workers.models.classify")

pytestmark = pytest.mark.models

KINDS = [
    "yolo11-face", "vehicle-damage-detection", "yolo-world-s", "fashion-clip", "vitpose-small", "segformer-b2-clothes",
    "xclip-base", "pet-classifier", "osnet-x0-25", "coco-detector",
]  # fmt: skip
UNCOPYABLE = ["paddleocr", "brisque-quality", "onnx-detector", "onnx-classifier"]
FEW = {"yolo11-face", "fashion-clip", "brisque-quality"}
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")


def said(client: Client, name: str, frame: np.ndarray) -> tuple[str, list[float]]:
    """The answer as text with its numbers left out, and its numbers."""
    options = {"max_det": 2} if name == "vehicle-damage-detection" else {}
    text = json.dumps(results.typed(client.infer(name, frame, **options)).to_dict())
    return NUMBER.sub("#", text), [float(number) for number in NUMBER.findall(text)]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FEW else pytest.mark.slow) for name in [*KINDS, *UNCOPYABLE]]
)
def test_a_model_answers_the_same_when_it_comes_back(name: str, whole_zoo: Running, bus: np.ndarray) -> None:
    with Client(whole_zoo.endpoint, timeout=60, arena_mb=8) as client:
        small = np.ascontiguousarray(bus[::3, ::3])
        words, numbers = said(client, name, small)
        if name in UNCOPYABLE:
            wait_until(lambda: f"{name}: no copy" in whole_zoo.log(), what="it says so, once")
        else:
            wait_until(lambda: name in client.get_status()["host_cache"]["models"], what="its copy is kept")
        client.unload(name)
        seen = len(whole_zoo.log())
        again, after = said(client, name, small)
        assert again == words
        assert np.allclose(after, numbers, rtol=1e-4, atol=1e-5)
        assert (f"{name}: made of its copy" in whole_zoo.log()[seen:]) == (name not in UNCOPYABLE)


def test_tensors_that_share_memory_do_so_in_a_copy_and_parameters_are_parameters() -> None:
    import torch

    from workers import copies

    whole = torch.arange(64, dtype=torch.float16)
    layer = torch.nn.Linear(4, 4)
    made = copies.Copy({"whole": whole, "part": whole[8:16], "layer": layer, "none": torch.zeros(0)}, 1 << 20)
    while not made.write():
        pass
    found = copies.read(os.dup(made.fd), 1)
    made.close()
    assert torch.equal(found["whole"], whole)
    found["whole"][:] = 5
    assert found["part"].tolist() == [5.0] * 8
    assert whole[0] == 0
    assert isinstance(found["layer"].weight, torch.nn.Parameter)
    assert torch.equal(found["layer"](torch.ones(4)), layer(torch.ones(4)))
    assert found["none"].numel() == 0
