"""No adapter reaches for the network, and each serves the very file that it is given, whatever that is called."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

yolo = pytest.importorskip("workers.models.yolo")
import torch  # noqa: E402
import ultralytics.nn.tasks  # noqa: E402
import ultralytics.utils.downloads  # noqa: E402

from tests.models import graphs, served  # noqa: E402
from tests.support import ROOT  # noqa: E402
from workers.models import standins  # noqa: E402
from workers.models.base import Input, Spec  # noqa: E402
from zoo.errors import LoadFailed  # noqa: E402

pytestmark = pytest.mark.models

NAMES = [
    "yolov5s.pt", "yolov3.pt", "a'b #?.pt", " blanks .pt", "%2e%2e%2fyolo11n.pt", "rtsp:x.pt", "https:github.com.pt",
    os.fsdecode(b"caf\xe9.pt"), "yolo11n.pt", "weights.checkpoint",
]  # fmt: skip


@pytest.mark.slow
def test_no_model_of_the_catalogue_reaches_for_the_network(
    standin: Callable[[str], Path], weights_dir: Path, tmp_path: Path
) -> None:
    for name in (*standins.STANDINS, *graphs.STANDINS):
        standin(name)
    assert {*served.NAMES} - {*standins.STANDINS, *graphs.STANDINS} == {"paddleocr", "brisque-quality"}
    env = {
        "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "YOLO_CONFIG_DIR": str(tmp_path),
        "YOLO_OFFLINE": "false", "YOLO_AUTOINSTALL": "true",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("trapped.py")), str(weights_dir), *served.NAMES],
        env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads(done.stdout.splitlines()[-1]) == [], "\n".join(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was tried."""
    tried: list[str] = []

    def trap(*args: object, **_: object) -> None:
        tried.append(repr(args))
        raise OSError("the network is a trap")

    for place, name in (
        (socket, "getaddrinfo"), (socket.socket, "connect"), (ultralytics.utils.downloads, "safe_download"),
        (ultralytics.utils.downloads, "get_github_assets"),
    ):  # fmt: skip
        monkeypatch.setattr(place, name, trap)
    return tried


def load(path: Path, name: str = "it") -> yolo.Detector:
    made = yolo.Detector()
    made.load(Spec(name, path, options={"conf": 0.01}, trust_pickle=True), "cpu")
    return made


@pytest.mark.parametrize("name", NAMES)
def test_the_very_file_is_served_whatever_its_name(
    name: str, standin: Callable[[str], Path], tmp_path: Path, bus: np.ndarray, no_network: list[str]
) -> None:
    path = shutil.copy(standin("threat-detection-yolov8n"), tmp_path / name)
    for other in ("yolov5su.pt", "yolov3u.pt", "ab #?.pt", "blanks .pt", "ab ", "yolo11n.pt"):
        if not (tmp_path / other).exists():
            (tmp_path / other).write_bytes(b"another file, which is not to be read")
    (answer,) = load(Path(path)).predict([Input(bus, {})])
    (expected,) = load(standin("threat-detection-yolov8n")).predict([Input(bus, {})])
    np.testing.assert_array_equal(answer.boxes, expected.boxes)
    assert len(answer.boxes)
    assert no_network == []


def test_a_relative_path_is_a_path(
    standin: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: list[str]
) -> None:
    """A damaged file under a published name is not fetched again."""
    monkeypatch.chdir(tmp_path)
    Path("yolo11n.pt").write_bytes(b"damaged")
    with pytest.raises(LoadFailed, match=r"it: yolo11n\.pt is not an ultralytics checkpoint") as told:
        load(Path("yolo11n.pt"))
    assert not told.value.retryable
    assert Path("yolo11n.pt").read_bytes() == b"damaged"
    assert no_network == []


class Wants:
    """Pickled by the name of a module that is not there when it is read."""


def test_a_module_that_a_checkpoint_names_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: list[str]
) -> None:
    import types

    module = types.ModuleType("no_such_package")
    module.Wants = Wants
    monkeypatch.setitem(sys.modules, "no_such_package", module)
    monkeypatch.setattr(Wants, "__module__", "no_such_package")
    torch.save({"model": Wants()}, tmp_path / "x.pt")
    monkeypatch.delitem(sys.modules, "no_such_package")
    ran: list[object] = []
    monkeypatch.setattr(subprocess, "check_output", lambda *a, **_: ran.append(a))
    monkeypatch.setattr(subprocess, "run", lambda *a, **_: ran.append(a))
    with pytest.raises(LoadFailed, match="'no_such_package', which is not here; nothing is fetched or installed"):
        load(tmp_path / "x.pt")
    assert ran == []
    assert no_network == []


def test_what_breaks_after_the_checkpoint_was_read_names_it(standin: Callable[[str], Path], tmp_path: Path) -> None:
    """A pickle may hold any object: the load fails for good, with its place."""
    whole = torch.load(standin("threat-detection-yolov8n"), weights_only=False)

    def spoil(change: Callable[[torch.nn.Module], None]) -> Path:
        changed = torch.load(standin("threat-detection-yolov8n"), weights_only=False)
        for key in ("ema", "model"):
            if changed.get(key) is not None:
                change(changed[key])
        torch.save(changed, tmp_path / "spoilt.pt")
        return tmp_path / "spoilt.pt"

    assert whole is not None
    for change in (
        lambda model: delattr(model, "model"),
        lambda model: setattr(model, "names", 3),
        lambda model: setattr(model, "names", {"zero": "a"}),
        lambda model: setattr(model.model[0], "conv", None),
        lambda model: setattr(model, "stride", "wide"),
    ):
        with pytest.raises(LoadFailed, match="spoilt") as told:
            load(spoil(change))
        assert not told.value.retryable
