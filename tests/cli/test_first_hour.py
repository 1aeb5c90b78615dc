"""The first commands of a new user: `zoo init`, `zoo check`, `zoo pull`, and what they say when something is wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import ROOT, Running, config_text, toy
from workers.models.base import Input
from zoo import Client
from zoo.config import reading
from zoo.errors import ConfigError

Start = Callable[..., Running]
Run = Callable[..., tuple[int, str, str]]


def test_init_writes_a_valid_configuration_with_its_folders_and_replaces_nothing(tmp_path: Path, run: Run) -> None:
    folder = tmp_path / "new"
    status, out, err = run("init", folder)
    assert (status, err) == (0, "")
    assert f"wrote {folder}/config.toml" in out
    assert {p.name for p in folder.iterdir()} == {"config.toml", "weights", "state"}
    made = reading.load_config(folder / "config.toml")
    assert (made.resolve(made.broker.weights_dir), made.state) == (folder / "weights", folder / "state")
    (folder / "config.toml").write_text("# mine\n")
    status, out, err = run("init", folder)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert f"{folder}/config.toml is there already" in err
    assert (folder / "config.toml").read_text() == "# mine\n"


def test_what_init_gives_as_examples_is_valid_when_it_is_uncommented(tmp_path: Path) -> None:
    from zoo.cli import commands

    template = commands.TEMPLATE.read_text().splitlines()
    text = "\n".join(line.removeprefix("# ") for line in template if line.startswith(("# [[", "# name", "# adapter")))
    assert [m.name for m in reading.parse_config(text).models] == ["brightness", "clip-vit-l"]
    commented = [line.removeprefix("# ") for line in template]
    first = next(i for i, line in enumerate(commented) if line.lstrip().startswith("class Brightness"))
    made: dict[str, Any] = {}
    exec(textwrap.dedent("\n".join(commented[first : first + 5])), made)
    assert made["Brightness"]().predict([Input(np.full((4, 4, 3), 10, np.uint8), {})]) == [{"mean": 10.0}]


def test_init_and_serve_work_in_an_empty_folder(zoo_dir: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_RUNTIME_DIR": str(zoo_dir / "run"), "HOME": str(zoo_dir)}
    (zoo_dir / "run").mkdir(mode=0o700)
    home = zoo_dir / "empty"
    home.mkdir()
    zoo = [sys.executable, "-P", "-m", "zoo.cli"]
    assert subprocess.run([*zoo, "init"], cwd=home, env=env, check=False, timeout=30).returncode == 0
    process = subprocess.Popen([*zoo, "serve"], cwd=home, env=env, stderr=subprocess.PIPE)
    try:
        with Client(f"ipc://{zoo_dir}/run/zoo/broker", timeout=20.0) as client:
            assert client.get_status()["broker"]["config"] == str(home / "config.toml")
    finally:
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=20.0)
    assert process.returncode == 0, err


def test_check_says_what_ls_would_and_what_cannot_be_imported(tmp_path: Path, run: Run) -> None:
    file = tmp_path / "config.toml"
    (tmp_path / "ends.py").write_text("import os\nos._exit(3)\n")
    (tmp_path / "empty.py").write_text("print('a word on standard output')\n")
    file.write_text(config_text([
        toy(), toy("off", enabled=False, adapter="no.such:Thing"), toy("gone", path="gone.pth"),
        toy("typo", adapter="nosuchmodule:Thing"), toy("ends", adapter="ends:Ends"), toy("none", adapter="empty:None"),
        toy("ours", adapter="workers.mine:Mine"),
    ]))  # fmt: skip
    status, out, err = run("check", "--config", file, "--json")
    problems = {row["name"]: row["problem"] or "" for row in json.loads(out)}
    assert status == 1
    assert problems["toy"] == ""
    assert "missing" in problems["gone"]
    assert "No module named 'nosuchmodule'" in problems["typo"]
    assert "ended the process (status 3)" in problems["ends"]
    assert "there is no None in empty" in problems["none"]
    assert "a package of the zoo's own" in problems["ours"]
    status, out, err = run("check", "--config", file)
    assert "zoo: typo: the adapter nosuchmodule:Thing cannot be imported" in err
    file.write_text(config_text([toy(), toy("unsaid", vram_mb=0)]))
    status, out, _ = run("check", "--config", file)
    assert status == 0
    assert "no vram_mb: counted as 0 MB until it is measured" in out
    file.write_text("[broker]\nendpiont = 3\n")
    status, out, err = run("check", "--config", file)
    assert (status, out) == (2, "")
    assert f"{file}:2: broker.endpiont" in err


@pytest.mark.parametrize(("line", "choices"), [
    ('device = "gpu"', "auto, cuda, cpu"), ('eviction = "lru"', "priority, adaptive"),
    ("footprint = 3", "declared, measured"),
])  # fmt: skip
def test_a_wrong_word_in_the_configuration_is_answered_with_the_choices(line: str, choices: str) -> None:
    with pytest.raises(ConfigError, match=f"expected one of {choices}, got"):
        reading.parse_config(f"[broker]\n{line}\n")


def test_pull_asks_the_running_broker_where_weights_belong(
    broker: Start, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = broker([toy("mine", path="mine.pth", source="somewhere")])
    (running.folder / "weights").mkdir()
    (running.folder / "weights" / "mine.pth").write_bytes(b"here")
    monkeypatch.chdir(tmp_path)
    status, out, _ = run("--endpoint", running.endpoint, "pull", "mine")
    assert status == 0
    assert out.startswith(f"mine: put there by hand, so not verified: {running.folder}/weights/mine.pth\n")
    other = tmp_path / "other.toml"
    other.write_text(config_text([toy("another")]))
    status, out, _ = run("--endpoint", running.endpoint, "pull", "another", "--config", other)
    assert (status, out) == (0, "another: no weights to fetch\n")


def test_pull_puts_nothing_into_an_installed_package(tmp_path: Path, run: Run) -> None:
    file = tmp_path / "site-packages" / "zoo" / "config.toml"
    file.parent.mkdir(parents=True)
    file.write_text(config_text([toy("a", path="a.pth")]))
    status, out, err = run("--endpoint", f"ipc://{tmp_path}/none", "pull", "a", "--config", file)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "zoo init" in err
    assert list(file.parent.iterdir()) == [file]


def test_ls_says_why_a_load_failed_what_is_not_importable_and_what_is_too_large(broker: Start, run: Run) -> None:
    running = broker(
        [toy("broken", options={"load": "raise"}), toy("typo", adapter="nosuchmodule:X"), toy("large", vram_mb=9000),
         toy("deep", adapter="tests.nosuch:X"), toy("good")],
        vram_budget_gb=1.0,
    )  # fmt: skip
    assert run("--endpoint", running.endpoint, "load", "broken")[0] == 1
    status, out, _ = run("--endpoint", running.endpoint, "ls", "--json")
    problems = {row["name"]: row["problem"] for row in json.loads(out)}
    assert status == 0
    assert problems["good"] is None
    assert "the last load failed (" in problems["broken"]
    assert "; the next try is possible " in problems["broken"]
    assert problems["typo"].endswith("cannot be imported: there is no module nosuchmodule")
    assert problems["deep"].endswith("there is no module tests.nosuch")
    assert problems["large"] == "large needs 9000 MB, the whole budget is 1024 MB"
    out = run("--endpoint", running.endpoint, "ls")[1]
    assert all(problem in out for problem in problems.values() if problem and "last load" not in problem)
    assert run("check", "--config", running.config_path, "--json")[0] == 1
    rows = json.loads(run("check", "--config", running.config_path, "--json")[1])
    stopped = {row["name"]: row["problem"] for row in rows}
    assert stopped["large"] == problems["large"]


def test_ls_without_a_broker_finds_an_adapter_beside_the_configuration(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "beside.py").write_text("raise SystemExit('it is imported')\n")
    file = tmp_path / "config.toml"
    file.write_text(config_text([toy(adapter="beside:X"), toy("large", vram_mb=9000)], endpoint=f"ipc://{tmp_path}/b"))
    monkeypatch.setenv("ZOO_CONFIG", str(file))
    rows = json.loads(run("ls", "--timeout", "0.1", "--json")[1])
    assert [row["problem"] for row in rows] == [None, "large needs 9000 MB, the whole budget is 6963.2 MB"]


def test_pull_of_a_model_that_is_not_there_suggests_one(tmp_path: Path, run: Run) -> None:
    file = tmp_path / "config.toml"
    file.write_text(config_text([toy("fashion")]))
    assert "did you mean 'fashion'?" in run("pull", "fashoin", "--config", file)[2]
