"""What the nursery has not imported, each worker would import again, at every load. All models, in one new process."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.models.served import MODELS, NAMES
from tests.support import ROOT

pytest.importorskip("workers.models.classify")
from workers.models import standins

pytestmark = [pytest.mark.models, pytest.mark.slow]

# Modules of a few lines that transformers visits on its way to CLIP's tokenizer.
EMPTY = {"transformers.models.aimv2", "transformers.models.clip.tokenization_clip_fast"}
CODE = """
import json, sys, threading
from importlib import import_module
from pathlib import Path
import numpy as np
from workers.models.base import Input, Spec
models = json.loads(sys.argv[1])
kinds = [getattr(import_module(adapter.partition(":")[0]), adapter.partition(":")[2]) for adapter, *_ in models]
assert threading.active_count() == 1
before = set(sys.modules)
for kind, (_, path, options) in zip(kinds, models):
    model = kind()
    model.load(Spec(name="it", path=path and Path(path), options=options, trust_pickle=True), "cpu")
    model.predict([Input(np.random.randint(0, 255, (80, 60, 3), np.uint8), {})])
print(*(set(sys.modules) - before))
"""


def test_a_load_imports_nothing_more(standin, tmp_path):
    configured = [model for model in MODELS if model.name in NAMES]
    carried = ("paddleocr", "brisque-quality")
    models = [(m.adapter, None if m.name in carried else str(standin(m.name)), m.options) for m in configured]
    (fashion,) = (m for m in configured if m.name == "fashion-clip")  # may come in two forms
    other = standins.place(standins.clip.open_clip, tmp_path / "marqo", fashion.name)
    models.append((fashion.adapter, str(other), fashion.options))
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", CODE, json.dumps(models)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) <= EMPTY
