"""Without ultralytics: what can be served then is, from packages none of which is under the AGPL."""

from __future__ import annotations

import json
import os
import pkgutil
import subprocess
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import workers.models
from tests import extras
from tests.support import ROOT, Running
from zoo import Client, LoadFailed, load_config
from zoo.config import adapters

CONFIGURED = load_config(ROOT / "config.toml").models
YOLO = {"workers.models.yolo", "workers.models.yolo_world"}
SERVED = [model for model in CONFIGURED if model.adapter.partition(":")[0] not in YOLO]
NOT_SERVED = [model for model in CONFIGURED if model not in SERVED]
REMEDY = {"workers.models.yolo": "'model-zoo[yolo]'", "workers.models.yolo_world": "'model-zoo[workers]'"}
IMPORTS = """
import importlib, json, sys
bad = {}
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ImportError as e:
        bad[name] = str(e)
print(json.dumps(bad))
"""
BY_METADATA = {"cuda-toolkit", "flatbuffers", "nvidia-ml-py", "tokenizers"}  # they carry no licence file


def test_workers_is_all_and_models_is_all_but_ultralytics() -> None:
    pytest.importorskip("ultralytics")
    everything, free = extras.closure("workers"), extras.closure("models")
    assert "ultralytics" in everything
    assert not [name for name in free if "ultralytics" in name]
    assert everything.keys() == free.keys() | extras.closure("yolo").keys()


def test_no_package_that_comes_without_ultralytics_has_the_agpl_in_a_licence_file() -> None:
    pytest.importorskip("ultralytics")
    free = extras.closure("models")
    assert len(free) > 50
    assert {name: found for name, one in free.items() if (found := extras.under_agpl(one))} == {}
    assert {name for name, one in free.items() if not extras.licence_files(one)} <= BY_METADATA
    for name in ("ultralytics", "ultralytics-thop"):  # it would be seen
        assert extras.under_agpl(distribution(name))


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> str:
    """One that no installation has."""
    monkeypatch.setitem(adapters.LIBRARIES, "workers.models.yolo", (("no_such_library",), "yolo"))
    return "no_such_library"


def test_zoo_ls_tells_which_extra_is_missing(module: str) -> None:
    assert adapters.lacks_library("workers.models.yolo:Detector") == (
        f"there is no module {module}; what it needs comes with: pip install 'model-zoo[yolo]'"
    )
    assert adapters.lacks_library("brightness:Brightness") is None


# ---------------------------------------------------------------- an environment without it


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("ultralytics")
    return extras.environment(tmp_path_factory.mktemp("free") / "venv", extras.closure("models").values())


def run(python: Path, *arguments: object, **how: Any) -> subprocess.CompletedProcess[str]:
    env = {"PATH": os.environ["PATH"], "HOME": str(python.parent)}
    return subprocess.run([str(python), *map(str, arguments)], capture_output=True, text=True, check=False, env=env,
                          timeout=300, cwd=python.parent, **how)  # fmt: skip


@pytest.fixture(scope="module")
def weights(python: Path) -> Path:
    """Stand-ins, made there; in the place of the others, a file."""
    folder = python.parent / "weights"
    names = [model.name for model in SERVED if model.path]
    done = run(python, "-m", "workers.models.standins", folder, *names)
    assert done.returncode == 0, done.stderr
    for model in NOT_SERVED:
        file = folder / (model.path or "")
        file.parent.mkdir(parents=True)
        file.write_bytes(b"weights")
    return folder


@pytest.fixture(scope="module")
def running(python: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    text = (ROOT / "config.toml").read_text()
    broker = Running(tmp_path_factory.mktemp("b"), text[text.index("[[models]]") :], weights_dir=weights,
                   vram_budget_gb=2.75, dispatch_timeout=60, root=python.parent, python=str(python))  # fmt: skip
    yield broker.start()
    broker.close()


@pytest.fixture(scope="module")
def client(running: Running) -> Iterator[Client]:
    with Client(running.endpoint, timeout=90) as client:
        yield client


@pytest.mark.slow
@pytest.mark.models
def test_there_is_no_ultralytics_there_and_all_other_adapters_import(python: Path) -> None:
    assert "No module named 'ultralytics'" in run(python, "-c", "import ultralytics").stderr
    names = [f"workers.models.{one.name}" for one in pkgutil.iter_modules(workers.models.__path__) if not one.ispkg]
    done = run(python, "-c", IMPORTS, *names)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == dict.fromkeys(sorted(YOLO), "No module named 'ultralytics'")


@pytest.mark.slow
@pytest.mark.models
@pytest.mark.parametrize("name", [model.name for model in SERVED])
def test_it_is_served_there(name: str, client: Client) -> None:
    frame = np.random.default_rng(0).integers(0, 255, (240, 320, 3), np.uint8)
    answer = client.infer(name, [frame] * 2 if name == "xclip-base" else frame)
    assert answer.to_dict()
    (row,) = (row for row in client.models() if row["name"] == name)
    assert (row["problem"], row["available"]) == (None, True)
    client.unload(name)


@pytest.mark.slow
@pytest.mark.models
@pytest.mark.parametrize("model", NOT_SERVED, ids=lambda model: model.name)
def test_it_says_there_what_to_install(model: Any, client: Client) -> None:
    remedy = f"pip install {REMEDY[model.adapter.partition(':')[0]]}"
    with pytest.raises(LoadFailed, match="No module named 'ultralytics'") as told:
        client.infer(model.name, np.zeros((64, 64, 3), np.uint8))
    assert remedy in str(told.value)
    (row,) = (row for row in client.models() if row["name"] == model.name)
    assert remedy in row["problem"]


@pytest.mark.slow
@pytest.mark.models
def test_zoo_check_says_it_there(python: Path, running: Running) -> None:
    done = run(python, "-m", "zoo.cli", "check", "--config", running.config_path, "--json")
    told = {row["name"]: row["problem"] for row in json.loads(done.stdout)}
    assert done.returncode == 1, done.stderr
    assert {name for name, problem in told.items() if problem} == {model.name for model in NOT_SERVED}
    for model in NOT_SERVED:
        assert REMEDY[model.adapter.partition(":")[0]] in told[model.name]
