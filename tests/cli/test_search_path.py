"""A user's own modules beside config.toml, under names that the zoo or the standard library uses, break nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.support import ROOT, Running, config_text
from zoo import Client

FRAME = np.full((10, 10, 3), 8, np.uint8)
Start = Callable[..., Running]
NAMES = ("queue.py", "logging.py", "json.py", "argparse.py", "socket.py", "msgspec.py", "workers/__init__.py",
         "broker/__init__.py", "workers/nursery.py", "broker/service.py", "tests/__init__.py")  # fmt: skip
MINE = """
class Mine:
    def load(self, spec, device):
        pass
    def predict(self, inputs):
        return [{"mine": True} for _ in inputs]
"""


def fill(folder: Path) -> None:
    for name in NAMES:
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"raise SystemExit('the wrong {name}')\n")
    (folder / "mine.py").write_text(MINE)


def test_the_broker_and_its_workers_import_ours_and_find_the_users_adapter(broker: Start) -> None:
    running = broker([{"name": "mine", "adapter": "mine:Mine", "vram_mb": 1}], start=False)
    fill(running.folder)
    running.start()
    with running.client() as client:
        assert client.infer("mine", FRAME) == {"mine": True}


@pytest.mark.parametrize("safe", [[], ["-P"]])
def test_zoo_serve_does_too(zoo_dir: Path, safe: list[str]) -> None:
    fill(zoo_dir)
    (zoo_dir / "config.toml").write_text(
        config_text(
            [{"name": "mine", "adapter": "mine:Mine", "vram_mb": 1}], device="cpu", endpoint=f"ipc://{zoo_dir}/b"
        )
    )
    start = "import sys; sys.argv[0] = 'zoo'; from zoo.cli.main import main; main()"
    if not safe:  # as the installed script: without the working directory
        start = "import sys; sys.path.pop(0); " + start
    process = subprocess.Popen(
        [sys.executable, *safe, "-c", start, "serve"],
        stderr=subprocess.PIPE,
        cwd=zoo_dir,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        with Client(f"ipc://{zoo_dir}/b", timeout=20.0) as client:
            assert client.infer("mine", FRAME) == {"mine": True}
    finally:
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=20.0)
    assert process.returncode == 0, err


@pytest.mark.parametrize("module", ["zoo.broker", "zoo.curve", "zoo.gateway"])
def test_each_module_that_is_started_by_its_name_does_too(zoo_dir: Path, module: str) -> None:
    fill(zoo_dir)
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"],
        capture_output=True, text=True, cwd=zoo_dir, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_standins_are_made_by_ours(zoo_dir: Path) -> None:
    fill(zoo_dir)
    start = "import sys; sys.path.pop(0); sys.argv[0] = 'zoo'; from zoo.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", start, "standins", "--help"],
        capture_output=True, text=True, cwd=zoo_dir, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
