"""What a reader of the README gets: the example adapter works, and the base install does without torch."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import pytest

import zoo
from tests.support import free_port, wait_until

ROOT = Path(__file__).parent.parent.parent
FRAME = np.full((10, 10, 3), 8, np.uint8)
BASE = (
    "zmq",
    "msgspec",
    "numpy",
    "PIL",
    "pynvml",
    "prometheus_client",
    "packaging",
    "shtab",
)  # pyproject's dependencies, as imported


def fenced(language: str, containing: str) -> str:
    """The README's code block of that language that contains the text."""
    blocks = re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return next(block for block in blocks if containing in block)


def test_the_readmes_own_model_works_as_written(broker):
    running = broker(fenced("toml", "brightness"), start=False)
    (Path(running.config_path).parent / "brightness.py").write_text(fenced("python", "class Brightness"))
    running.start()
    with running.client() as client:
        assert client.infer("brightness", FRAME) == {"mean": 4.0}
        assert len(fenced("python", "class Brightness").splitlines()) <= 10


@pytest.fixture
def without_torch(tmp_path) -> list[str]:
    """A Python that sees the project and its base dependencies, and no other package."""
    site = tmp_path / "site"
    site.mkdir()
    for name in BASE:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        origin = Path(spec.origin)
        found = origin.parent if origin.name == "__init__.py" else origin
        (site / found.name).symlink_to(found)
    for name in ("zoo", "broker", "workers", "tests"):
        (site / name).symlink_to(ROOT / name)
    return [sys.executable, "-S", "-c", f"import sys; sys.path.insert(0, {str(site)!r}); " + RUN_AS_MODULE]


RUN_AS_MODULE = """
import runpy
try:
    import torch
except ImportError:
    pass
else:
    raise SystemExit("torch is here")
sys.argv = sys.argv[1:]
import os
os.environ["PYTHONPATH"] = sys.path[0]
runpy.run_module("zoo.broker", run_name="__main__", alter_sys=True)
"""


def test_the_broker_runs_in_an_environment_without_torch(without_torch, zoo_dir):
    config = zoo_dir / "config.toml"
    config.write_text(
        '[[models]]\nname = "toy"\nadapter = "tests.toy:Toy"\nvram_mb = 1\n'
        '[[models]]\nname = "face"\nadapter = "workers.models.yolo:Detector"\nvram_mb = 1\n'
    )
    endpoint = f"ipc://{zoo_dir}/b"
    process = subprocess.Popen(
        [*without_torch, "zoo.broker", "--config", str(config), "--endpoint", endpoint],
        stderr=subprocess.PIPE, text=True, cwd=zoo_dir, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    try:
        with zoo.Client(endpoint, timeout=20) as client:
            assert client.infer("toy", FRAME)["mean"] == 8
            with pytest.raises(zoo.LoadFailed, match=r"No module named .*pip install 'model-zoo\[yolo\]'"):
                client.infer("face", FRAME)
            assert client.infer("toy", FRAME)["mean"] == 8
    finally:
        process.terminate()
        _, log = process.communicate(timeout=20)
    assert process.returncode == 0, log


def test_prometheus_shows_the_names_that_dashboards_hold_on_to(broker):
    port = free_port()
    models = [{"name": n, "adapter": "tests.toy:Toy", "vram_mb": 300, "priority": "LOW"} for n in "ab"]
    running = broker(models, metrics=f"127.0.0.1:{port}", vram_budget_gb=0.5, device="cpu")

    def metrics() -> dict[str, float]:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
            lines = [line.rpartition(" ") for line in page.read().decode().splitlines() if line[:1] != "#"]
        return {name: float(value) for name, _, value in lines}

    with running.client() as client:
        client.infer("a", FRAME)
        client.infer("b", FRAME)
        wait_until(lambda: metrics()["enrichment_vram_usage_bytes"] == 300 << 20)
        seen = metrics()
        assert seen["enrichment_vram_budget_bytes"] == 512 << 20
        assert seen["enrichment_vram_utilization_percent"] == pytest.approx(100 * 300 / 512)
        assert seen["enrichment_models_loaded"] == 1
        assert seen['enrichment_model_evictions_total{model_name="a",priority="LOW"}'] == 1
        bounds = [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0]
        for bound in bounds:
            assert f'enrichment_model_load_time_seconds_bucket{{le="{bound}",model_name="a"}}' in seen
        assert seen['enrichment_model_load_time_seconds_count{model_name="b"}'] == 1
        assert seen['zoo_requests_total{model_name="a"}'] == 1


AGPL_3 = "0d96a4ff68ad6d4b6f1f30f713b18d5184912ba8dd389f86aa7710db079abcb0"  # its text as published on gnu.org


def test_the_licence_that_the_package_names_is_there_word_for_word():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (project["license"], project["license-files"]) == ("AGPL-3.0-or-later", ["LICENSE"])
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == AGPL_3


@pytest.mark.slow
def test_the_wheel_holds_every_module_the_licence_and_the_configuration(tmp_path):
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, ROOT],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    if "hatchling" in built.stderr and built.returncode:
        pytest.skip(f"no build backend can be fetched: {built.stderr[-200:]}")
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        ours = [p.relative_to(ROOT) for room in ("zoo", "broker", "workers") for p in (ROOT / room).rglob("*.py")]
        page = [p.relative_to(ROOT) for p in (ROOT / "zoo/gateway/page/static").iterdir()]
        assert {*map(str, ours), *map(str, page), "zoo/cli/init.toml"} <= {*archive.namelist()}
        (licence,) = [name for name in archive.namelist() if name.endswith("licenses/LICENSE")]
        assert archive.read(licence) == (ROOT / "LICENSE").read_bytes()
        assert archive.read("zoo/config.toml") == (ROOT / "config.toml").read_bytes()
        assert (
            "License-Expression: AGPL-3.0-or-later"
            in archive.read(licence.replace("licenses/LICENSE", "METADATA")).decode()
        )
