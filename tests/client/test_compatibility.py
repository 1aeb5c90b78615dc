"""Wire version 1 holds: the client of an earlier release works with this broker, and this client with that broker.

The earlier release is taken from the history of the repository. A checkout without history skips these tests.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from tests.support import ROOT, Running, toy
from zoo import Client, InvalidInput, ModelNotFound, Timings
from zoo.cli import main

EARLIER = "f0f0692"  # before the skin was hardened
TALK = """
import sys
import numpy as np
import zoo
from zoo import Client, ZooError

assert zoo.__file__.startswith(sys.argv[2]), zoo.__file__
frame = np.full((48, 64, 3), 7, np.uint8)
with Client(sys.argv[1], timeout=20.0, arena_mb=8) as client:
    assert client.infer("toy", frame)["mean"] == 7.0
    large = client.infer("toy", frame, do="large")["map"]
    assert large.shape == (1080, 1920) and (large == 7).all()
    crops = client.infer("toy", frame, boxes=[(0, 0, 8, 8), (1, 2, 5, 9)])
    assert [crop["shape"] for crop in crops] == [[8, 8, 3], [7, 4, 3]]
    with client.frame((4, 4, 3)) as shared:
        shared.array[:] = 9
        both = client.infer_many(shared, ["toy", "toy2"])
        assert {name: answer["mean"] for name, answer in both.items()} == {"toy": 9.0, "toy2": 9.0}
    with client.load("toy") as lease:
        assert lease(frame)["mean"] == 7.0
        try:
            client.unload("toy")
        except ZooError as e:
            assert e.code == "model_in_use", e.code
        else:
            raise AssertionError("a leased model was unloaded")
    try:
        client.infer("broken", frame)
    except ZooError as e:
        assert e.code == "load_failed" and "cheese" in str(e), e
    try:
        client.infer("toy", frame, do="sleep", seconds=5, timeout=0.3)
    except ZooError as e:
        assert e.code == "deadline_exceeded", e.code
    status = client.get_status()
    assert status["leases"] == 0 and {m["name"] for m in status["loaded_models"]} == {"toy", "toy2"}, status
    assert {row["name"] for row in client.processes()} >= {"toy2"}
    assert client.models() and client.explain("toy")
    client.pin("toy"), client.unpin("toy"), client.get_model("toy2"), client.cleanup_idle_models(100.0)
print("talked")
"""


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The earlier release, unpacked."""
    command = ["git", "-C", str(ROOT), "archive", "--format=tar", EARLIER, "zoo", "broker", "workers", "config.toml"]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip("this checkout has no history")
    folder = tmp_path_factory.mktemp("earlier")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    (folder / "tests").mkdir()
    for name in ("__init__.py", "toy.py"):
        (folder / "tests" / name).write_text((ROOT / "tests" / name).read_text())
    return folder


def _talk(endpoint: str, code: Path, folder: Path) -> None:
    command = [sys.executable, "-c", TALK, endpoint, str(code)]
    env = {"PYTHONPATH": str(code), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=folder, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "talked\n"


MODELS = [toy(), toy("toy2"), toy("broken", options={"load": "raise"})]


def _refused_by_an_earlier_worker(client: Client) -> None:
    """It knows colours by name and not the fields beside them, so none of these comes to it as rgb or bgr."""
    yuv, wide = np.zeros((6, 4), np.uint8), np.zeros((4, 4, 3), np.uint16)
    for frame, how in (
        (yuv, {"color": "nv12"}),
        (yuv, {"color": "i420", "size": (3, 3), "stride": 4}),
        (yuv, {"color": "gray"}),
        (wide, {"scale": (0, 9)}),
        (wide, {"color": "bgr", "scale": (0, 9)}),
        (wide[..., 0], {"scale": (0, 9)}),
    ):
        with pytest.raises(InvalidInput, match="color"):
            client.infer("toy", frame, **how)


def test_the_earlier_client_works_with_this_broker(earlier: Path, zoo_dir: Path) -> None:
    running = Running(zoo_dir, MODELS).start()
    try:
        _talk(running.endpoint, earlier, zoo_dir)
    finally:
        running.close()


def test_this_client_works_with_the_earlier_broker(
    earlier: Path, zoo_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    running = Running(zoo_dir, MODELS, root=earlier).start()
    try:
        _talk(running.endpoint, ROOT, zoo_dir)
        _refused_by_an_earlier_worker(running.client())
        client = running.client()
        (row,) = client.models("toy2")  # that broker answers with all models
        assert row["name"] == "toy2"
        with pytest.raises(ModelNotFound):
            client.models("nothing")
        answer = client.infer("toy", np.zeros((4, 4, 3), np.uint8))
        assert (answer.timings, answer.request) == (Timings(), 0)  # that broker says nothing of it
        assert main.main(["--endpoint", running.endpoint, "ls", "--labels", "toy2"]) == 1
        assert "earlier release, which does not tell the labels of toy2" in capsys.readouterr().err
        assert main.main(["--endpoint", running.endpoint, "logs", "toy"]) == 1
        assert "earlier release, which does not tell its log" in capsys.readouterr().err
    finally:
        running.close()
