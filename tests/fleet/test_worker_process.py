"""What a worker's process is given and kept from: variables, privileges, limits, descriptors, a folder, fresh files."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import zoo
from broker.fleet import environment, nvidia
from tests.fleet.test_nursery import children, nursery
from tests.support import ROOT, Running, toy, wait_until
from zoo.config.schema import BrokerConfig
from zoo.system.smaps import unique_mb

FRAME = np.zeros((8, 8, 3), np.uint8)

Start = Callable[..., Running]


def variables(pid: int) -> dict[str, str]:
    raw = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return dict(line.split("=", 1) for line in raw if line)


def test_workers_get_a_list_of_variables_and_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "PATH": "/bin", "HOME": "/h", "LC_ALL": "C", "LD_LIBRARY_PATH": "/l", "CUDA_VISIBLE_DEVICES": "1",
        "HF_ENDPOINT": "https://h", "OMP_NUM_THREADS": "2", "XDG_CACHE_HOME": "/c",
    }  # fmt: skip
    kept = {
        "AWS_SECRET_ACCESS_KEY": "s", "HUGGING_FACE_HUB_TOKEN": "t", "PYTHON_KEYRING_PASSWORD": "p",
        "DATABASE_URL": "d", "CUDA_API_KEY": "k", "SSH_AUTH_SOCK": "/s",
    }  # fmt: skip
    network = {"HF_TOKEN": "t", "https_proxy": "http://user:secret@proxy"}
    monkeypatch.setattr(os, "environ", {**given, **kept, **network, "MY_SIZE": "1", "MY_TOKEN": "2", "OTHER": "3"})
    assert environment.of_workers(BrokerConfig()) == given
    assert environment.of_workers(BrokerConfig(auto_pull=True)) == given | network
    named = environment.of_workers(BrokerConfig(environment=["MY_*", "OTHER"]))
    assert named == given | {"MY_SIZE": "1", "MY_TOKEN": "2", "OTHER": "3"}


def test_a_worker_has_nothing_of_the_brokers_environment_but_the_list(
    broker: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = broker([toy()], start=False)
    running._environment = {"HF_TOKEN": "hf_secret", "CUDA_VISIBLE_DEVICES": "", "AWS_SESSION_TOKEN": "s"}
    client = running.start().client()
    pid = client.infer("toy", FRAME)["pid"]
    assert variables(running.pid)["HF_TOKEN"] == "hf_secret"
    for process in (pid, nursery(running)):
        found = variables(process)
        assert {"PATH", "CUDA_VISIBLE_DEVICES"} <= found.keys()
        assert not {"HF_TOKEN", "AWS_SESSION_TOKEN"} & found.keys()


def test_a_worker_has_no_privileges_leaves_no_core_and_is_the_first_to_go_when_memory_runs_out(broker: Start) -> None:
    running = broker([toy()])
    pid = running.client().infer("toy", FRAME)["pid"]
    for process in (pid, nursery(running)):
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
        assert status["NoNewPrivs"] == "1"
        for kind in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
            assert int(status[kind], 16) == 0, kind
        assert os.geteuid() != 0 or int(status["CapBnd"], 16) == 0
        limits = Path(f"/proc/{process}/limits").read_text().splitlines()
        assert next(line for line in limits if line.startswith("Max core")).split()[4:6] == ["0", "0"]
        assert int(Path(f"/proc/{process}/coredump_filter").read_text(), 16) == 0
    scores = [int(Path(f"/proc/{p}/oom_score_adj").read_text()) for p in (running.pid, nursery(running), pid)]
    assert scores[0] == scores[1]
    assert scores[2] == min(1000, scores[0] + 500)


def test_a_worker_has_no_descriptor_of_the_nursery_or_of_others(broker: Start) -> None:
    running = broker([toy("one"), toy("two")])
    client = running.client()
    pids = [client.infer(name, FRAME)["pid"] for name in ("one", "two")]
    links = [{fd: os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")} for pid in pids]
    assert [link["0"] for link in links] == [os.devnull] * 2
    assert [link["1"] == link["2"] for link in links] == [True] * 2
    ours = [{where for where in link.values() if where.startswith(("pipe:", "socket:"))} for link in links]
    assert not ours[0] & ours[1]
    of_nursery = {os.readlink(entry) for entry in Path(f"/proc/{nursery(running)}/fd").iterdir()}
    assert not of_nursery & (ours[0] | ours[1])


@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", "<&-", ">&-", "2>&-"])
def test_a_broker_started_with_closed_streams_serves_and_what_is_printed_disturbs_nothing(
    broker: Start, closed: str
) -> None:
    running = broker([toy()], start=False)
    command = f"exec {sys.executable} -m zoo.broker --config {running.config_path} {closed}"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "ZOO_TEST_MARK": running._mark}
    running.process = subprocess.Popen(["sh", "-c", command], env=env, cwd=running.folder, stderr=subprocess.DEVNULL)
    client = running.client()
    assert client.infer("toy", FRAME, do="print", text="x" * 100, lines=2000)["mean"] == 0
    assert client.infer("toy", FRAME)["mean"] == 0
    for fd in (0, 1, 2):
        assert os.readlink(f"/proc/{running.pid}/fd/{fd}").startswith(
            ("/dev/null", "pipe:", "/proc", "/tmp", "socket:")
        )
    if closed.startswith("<&- >"):
        assert {os.readlink(f"/proc/{running.pid}/fd/{fd}") for fd in (0, 1, 2)} == {os.devnull}


def test_neither_a_long_nor_a_read_only_nor_a_missing_temporary_folder_matters(broker: Start) -> None:
    running = broker([toy()], start=False)
    for where in (running.folder / ("long" * 40), Path("/proc/no/such/folder"), Path("/sys")):
        if where.is_relative_to(running.folder):
            where.mkdir()
        running._environment = {"TMPDIR": str(where)}
        before = set(Path("/tmp").glob("pymp-*"))
        client = running.start().client()
        assert client.infer("toy", FRAME)["mean"] == 0
        assert set(Path("/tmp").glob("pymp-*")) <= before
        assert not running.folder.joinpath("long" * 40).exists() or not list((running.folder / ("long" * 40)).iterdir())
        client.close()
        running.stop()


def test_a_working_directory_that_is_removed_matters_to_no_start(broker: Start) -> None:
    running = broker([toy("one"), toy("two")], start=False)
    gone = running.folder / "gone"
    gone.mkdir()
    running.cwd = gone
    client = running.start().client()
    assert client.infer("one", FRAME)["mean"] == 0
    gone.rmdir()
    os.kill(nursery(running), signal.SIGKILL)
    pid = client.infer("two", FRAME)["pid"]
    assert os.readlink(f"/proc/{pid}/cwd") == str(running.folder), "that of the configuration"


def test_workers_start_also_when_the_folder_of_the_configuration_is_gone(broker: Start) -> None:
    running = broker([toy("one"), toy("two")], start=False)
    folder = running.folder / "configured"
    folder.mkdir()
    running.config_path = Path(shutil.move(running.config_path, folder / "config.toml"))
    client = running.start().client()
    assert client.infer("one", FRAME)["mean"] == 0
    shutil.rmtree(folder)
    old = nursery(running)
    os.kill(old, signal.SIGKILL)
    nursery(running, other_than=old)
    pid = client.infer("two", FRAME)["pid"]
    assert os.readlink(f"/proc/{pid}/cwd") == "/"


ADAPTER = """
class Mine:
    def load(self, spec, device):
        pass

    def predict(self, inputs):
        return [{{"value": {value}}} for _ in inputs]
"""


def test_an_adapter_that_is_edited_is_what_the_next_process_imports(broker: Start) -> None:
    """Also within the same second, and with the same size, which is all that Python compares."""
    running = broker([{"name": "mine", "adapter": "mine:Mine", "vram_mb": 1}], standby=1, start=False)
    file = running.folder / "mine.py"
    file.write_text(ADAPTER.format(value=1))
    client = running.start().client()
    for value in range(1, 7):
        file.write_text(ADAPTER.format(value=value))
        assert client.infer("mine", FRAME) == {"value": value}
        client.unload("mine")


def test_an_adapter_of_the_users_own_is_not_run_in_the_nursery(broker: Start) -> None:
    running = broker([{"name": "mine", "adapter": "mine:Mine", "vram_mb": 1}], start=False)
    text = 'import os\nopen("imported", "a").write(f"{os.getpid()}\\n")\n' + ADAPTER.format(value=1)
    (running.folder / "mine.py").write_text(text)
    client = running.start().client()
    for _ in range(2):
        assert client.infer("mine", FRAME) == {"value": 1}
        client.unload("mine")
    pids = (running.folder / "imported").read_text().split()
    assert len(pids) == 2
    assert str(nursery(running)) not in pids


def printed(running: Running) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in running.log().splitlines()]
    return [line for line in lines if line["logger"] == "zoo.worker"]


def test_what_a_worker_prints_is_logged_with_its_model_to_its_last_word(broker: Start) -> None:
    running = broker([toy("one"), toy("two")], arguments=["--log-format", "json"])
    client = running.client()
    client.infer("one", FRAME, do="print", text="hello\x1b[31m \ud800"[:-2] + "é", lines=1)
    client.infer("two", FRAME, do="print", text="there", lines=2)
    with pytest.raises(zoo.WorkerCrashed):
        client.infer("two", FRAME, do="print-and-die", text="goodbye")
    wait_until(lambda: any(line["message"] == "goodbye" for line in printed(running)))
    said = [(line["event"], line["model"], line["message"]) for line in printed(running)]
    assert ("printed", "one", "hello\x1b[31mé") in said
    assert said.count(("printed", "two", "there")) == 2
    assert len({line["worker"] for line in printed(running) if line["model"] == "one"}) == 1


def test_a_worker_that_floods_is_not_held_up_and_costs_the_log_little(broker: Start) -> None:
    running = broker([toy("loud"), toy("other")], arguments=["--log-format", "json"])
    client = running.client()
    assert client.infer("loud", FRAME, do="print", text="x" * 200, lines=100_000)["mean"] == 0
    assert client.infer("other", FRAME)["mean"] == 0
    wait_until(lambda: any("more lines were printed and not logged" in str(m["message"]) for m in printed(running)))
    assert len(printed(running)) < 2000
    client.infer("loud", FRAME, do="print", text="y" * 100_000, lines=1)
    wait_until(lambda: any(str(line["message"]).startswith("yyy") for line in printed(running)))
    assert max(len(str(line["message"])) for line in printed(running)) < 3000


def test_a_worker_that_hangs_says_where(broker: Start) -> None:
    running = broker([toy(dispatch_timeout=0.3)])
    client = running.client()
    with pytest.raises(zoo.WorkerHung):
        client.infer("toy", FRAME, do="hang-gil")
    wait_until(lambda: "in _one" in running.log(), what="the stacks of its threads are logged")


def test_device_files_that_workers_may_not_make_are_made_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, program = tmp_path / "nvidia-uvm", tmp_path / "nvidia-modprobe"
    monkeypatch.setattr(nvidia, "UNIFIED", made)
    monkeypatch.setattr(nvidia, "PROGRAM", "nvidia-modprobe-of-the-tests")
    nvidia.make_device_files()  # there is no such program: that is all
    monkeypatch.setattr(nvidia, "PROGRAM", str(program))
    program.write_text(f'#!/bin/sh\necho "$@" >> {made}\nexit 1\n')
    program.chmod(0o755)
    nvidia.make_device_files()
    nvidia.make_device_files()
    assert made.read_text() == "-u -c 0\n", "once"


SHORT_OF_DESCRIPTORS = """
import os, resource, select, sys, time
from pathlib import Path
from broker.fleet import pool
from broker.fleet.environment import of_workers
from broker.guard import Guard
from broker.loop import Loop
from zoo.config.schema import BrokerConfig
from zoo.wire.launch import Seat

def until(kind):
    while True:
        loop.turn(time.monotonic() + 1.0)
        made.watch(time.monotonic())
        for news in made.news():
            if isinstance(news, pool.Exited):
                news.child.close()
            if isinstance(news, kind):
                return news

def fds():
    return len(os.listdir("/proc/self/fd"))

def short(free):
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + free, hard))

_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
pool.PAUSE_FIRST_S = 0.1
before = fds()
loop = Loop(Guard(lambda: None))
made = pool.Pool(loop, [], of_workers(BrokerConfig()), Path("/"))
seat = lambda n: Seat(b"%d" % n, "/nowhere", 1 << 20)
made.start(seat(1))
print(until(pool.Exited).child.reap())
settled = fds()
for free in (0, 1, 2, 3):
    short(free)
    made.start(seat(2))
    print(until(pool.Failed).why)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    assert fds() == settled, (free, fds(), settled)
os.kill(made._nursery.pid, 9)
short(0)
for _ in range(30):
    made.watch(time.monotonic())
    made.news()
    loop.turn(time.monotonic() + 0.01)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
made.start(seat(3))
while isinstance(news := until((pool.Exited, pool.Failed)), pool.Failed):  # until there is a nursery again
    time.sleep(0.05)
    made.start(seat(3))
print(news.child.reap())
assert fds() == settled, (fds(), settled)
made.close()
loop.close()
assert fds() == before, (fds(), before)
"""


def test_a_pool_without_descriptors_fails_a_start_and_loses_none() -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SHORT_OF_DESCRIPTORS]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    failed = "no process could be started: Too many open files"
    assert done.stdout.splitlines() == ["exit status 1", *[failed] * 4, "exit status 1"]


def test_what_a_worker_shared_with_a_nursery_that_died_is_not_measured_as_its_models(broker: Start) -> None:
    models = [toy(vram_mb=400)]
    running = broker(models, preload=["heavy"], footprint="measured", state_dir="state", start=False)
    (running.folder / "heavy.py").write_text("data = b'1' * (200 << 20)\n")
    client = running.start().client()
    pid = client.infer("toy", FRAME)["pid"]
    (row,) = client.processes()
    charged = row["vram_mb"]
    assert charged < 150
    old = nursery(running)
    os.kill(old, signal.SIGKILL)
    nursery(running, other_than=old)
    assert (unique_mb(pid) or 0) > 200, "the pages are its own now"
    client.infer("toy", FRAME, do="grow", mb=1)
    client.infer("toy", FRAME)
    (row,) = client.processes()
    assert (row["pid"], row["vram_mb"]) == (pid, charged)
    client.unload("toy")
    client.infer("toy", FRAME, do="grow", mb=30)
    (row,) = client.processes()
    assert 30 < row["vram_mb"] < 200, "one of the new nursery's is measured again"


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="makes a namespace of process ids")
def test_a_broker_that_is_process_1_leaves_no_zombies(broker: Start) -> None:
    running = broker([toy("one"), toy("two")], start=False)
    command = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, "-m", "zoo.broker"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "ZOO_TEST_MARK": running._mark}
    with (running.folder / "log").open("ab") as log:
        outer = subprocess.Popen(
            [*command, "--config", str(running.config_path)], env=env, cwd=running.folder, stdout=log, stderr=log
        )
    try:
        client = running.client()
        assert client.infer("one", FRAME)["pid"] < 100, "in a namespace of its own"
        client.infer("two", FRAME, do="fork-away", flag=str(running.folder / "flag"))
        (pid,) = children(outer.pid)
        (old,) = (child for child in children(pid) if comm(child) == "zoo-nursery")
        os.kill(old, signal.SIGKILL)
        wait_until(lambda: any(comm(child) == "zoo-nursery" for child in children(pid) if child != old))
        for name in ("one", "two"):
            client.unload(name)
        wait_until(lambda: len(children(pid)) == 1, what="all that was adopted is buried")
        client.close()
        os.kill(pid, signal.SIGTERM)
        assert outer.wait(10) == 0
    finally:
        outer.kill()
        outer.wait()


def comm(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""
