"""What `zoo doctor` finds, and what it says to do. The machine is this one, but for what a test takes away from it."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from tests.gateway.serving import gateway_of
from tests.support import ROOT, Running, config_text, toy
from zoo.cli import main
from zoo.config.reading import load_config
from zoo.config.schema import ZooConfig
from zoo.doctor import devices, machine, packages, report, setup
from zoo.doctor.finding import Finding
from zoo.weights import inventory

__all__ = ["gateway_of"]
PROBED: dict[str, Any] = {
    "cuda": {"devices": [], "why_none": "NVML cannot be used: Driver Not Loaded", "driver": ""},
    "memory": {"used_mb": 1000.0, "total_mb": 8000.0, "machine_mb": 16000.0, "error": ""},
    "cores": 2,
    "files": {"soft": 1024, "limit": 20000, "clients": 4000},
}


def config(folder: Path, models: list[dict[str, Any]] | None = None, text: str = "", **keys: Any) -> ZooConfig:
    keys = {"endpoint": f"ipc://{folder}/b", "state_dir": str(folder / "state"), **keys}
    (folder / "config.toml").write_text(config_text(models or [toy()], **keys) + text)
    return load_config(folder / "config.toml")


def gpu(**keys: Any) -> dict[str, Any]:
    """What a broker finds where there is one."""
    row = {"name": "cuda:0", "uuid": "GPU-1", "used_mb": 500.0, "total_mb": 8000.0, "untold": "", "error": "", **keys}
    return {**PROBED, "cuda": {"devices": [row], "why_none": "", "driver": "580.1"}}


def said(findings: Any, about: str) -> list[Finding]:
    found = [finding for finding in findings if finding.about == about]
    assert all(finding.remedy or finding.state == "ok" for finding in found), "what to do is missing"
    return found


def states(findings: Any, about: str) -> list[str]:
    return [finding.state for finding in said(findings, about)]


def doctor(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-m", "zoo.cli", "doctor", *argv]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=60, check=False)


# ---------------------------------------------------------------- the command


def test_a_line_for_each_thing_with_what_to_do_and_a_status(zoo_dir: Path) -> None:
    config(zoo_dir)
    done = doctor("--config", str(zoo_dir / "config.toml"))
    assert done.returncode == 0, done.stdout
    lines = [line for line in done.stdout.splitlines() if not line.startswith(" ")]
    assert {line.split()[0] for line in lines} <= {"ok", "warning"}
    for about in ("python", "kernel", "shared memory", "Unix sockets", "packages", "driver", "descriptors", "broker"):
        assert any(line[9:].startswith(about) for line in lines), about
    assert "0 wrong" in done.stderr
    document = json.loads(doctor("--config", str(zoo_dir / "config.toml"), "--json").stdout)
    assert [row["about"] for row in document] == [line[9:23].strip() for line in lines]
    assert {frozenset(row) for row in document} == {frozenset({"about", "state", "message", "remedy"})}


def test_what_is_wrong_is_status_1_and_every_mistake_of_the_file_is_named(zoo_dir: Path) -> None:
    file = zoo_dir / "config.toml"
    file.write_text('[broker]\nendpiont = 3\nvram_budget_gb = -1\n[[models]]\nname = "toy"\n')
    done = doctor("--config", str(file), "--json")
    assert done.returncode == 1
    wrong = [row for row in json.loads(done.stdout) if row["state"] == "wrong"]
    assert len(wrong) >= 2
    assert all(row["about"] == "config.toml" and row["remedy"] for row in wrong)
    assert any(f"{file}:2: broker.endpiont" in row["message"] for row in wrong)


def test_it_tells_of_the_broker_that_runs(
    shared_broker: Running, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(devices, "probe", lambda: PROBED)
    assert main.main(["doctor", "--json", "--config", str(shared_broker.config_path)]) == 0
    rows = {row["about"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["broker"]["state"] == "ok"
    assert f"process {shared_broker.pid} serves {shared_broker.endpoint}" in rows["broker"]["message"]


def test_an_examination_that_fails_is_a_line_and_the_others_go_on(
    zoo_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> Any:
        raise RuntimeError("boom")

    config(zoo_dir)
    monkeypatch.setattr(devices, "probe", lambda: PROBED)
    monkeypatch.setattr(packages, "asked", broken)
    found = list(report.findings(str(zoo_dir / "config.toml"), None, 0.5))
    assert states(found, "packages") == ["wrong"]
    assert states(found, "broker") == ["ok"]


# ---------------------------------------------------------------- driver, devices, limits


def test_a_machine_without_a_gpu_is_fine_until_one_is_there_or_asked_for(tmp_path: Path) -> None:
    plain, cuda = config(tmp_path), config(tmp_path, device="cuda")
    assert states(devices.examine(plain, PROBED, []), "driver") == ["ok"]
    assert states(devices.examine(plain, PROBED, ["PCI 0000:01:00.0"]), "driver") == ["warning"]
    assert states(devices.examine(cuda, PROBED, []), "driver") == ["wrong"]
    listed = config(tmp_path, text='[[devices]]\nname = "cuda:0"\nkind = "cuda"\n')
    assert states(devices.examine(listed, PROBED, []), "driver") == ["wrong"]
    hidden = {**PROBED, "cuda": {**PROBED["cuda"], "why_none": "CUDA_VISIBLE_DEVICES='' hides all 1 that are there"}}
    (found,) = said(devices.examine(plain, hidden, []), "driver")
    assert (found.state, "CUDA_VISIBLE_DEVICES" in found.remedy) == ("warning", True)


def test_a_gpu_is_known_by_its_bus_and_its_nodes(tmp_path: Path) -> None:
    for name, vendor, kind in (("01", "0x10de", "0x030000"), ("02", "0x10de", "0x040300"), ("03", "0x8086", "0x0300")):
        place = tmp_path / "sys/bus/pci/devices" / name
        place.mkdir(parents=True)
        (place / "vendor").write_text(f"{vendor}\n")
        (place / "class").write_text(f"{kind}\n")
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidia0").touch()
    (tmp_path / "dev" / "nvidiactl").touch()
    assert devices.nvidia_hardware(tmp_path) == ["PCI 01", "/dev/nvidia0"]


@pytest.mark.parametrize(
    ("row", "state"),
    [
        ({}, "ok"),
        ({"untold": "how much memory is used (NVML: Not Supported)"}, "warning"),
        ({"error": "lost"}, "wrong"),
    ],
)
def test_each_gpu_has_its_line(tmp_path: Path, row: dict[str, Any], state: str) -> None:
    found = list(devices.examine(config(tmp_path), gpu(**row), []))
    assert states(found, "cuda:0") == [state]
    assert "version 580.1" in said(found, "driver")[0].message


def test_torch_without_cuda_beside_a_gpu_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda _: "2.13.0+cpu")
    assert states(devices.examine(config(tmp_path), gpu(), []), "torch") == ["wrong"]
    assert not said(devices.examine(config(tmp_path), PROBED, []), "torch")
    monkeypatch.setattr("importlib.metadata.version", lambda _: "2.13.0")
    assert not said(devices.examine(config(tmp_path), gpu(), []), "torch")


@pytest.mark.parametrize(("budget_gb", "state"), [(2.0, "ok"), (7.5, "warning"), (9.0, "wrong")])
def test_a_budget_has_to_fit_its_device(tmp_path: Path, budget_gb: float, state: str) -> None:
    for probed in (PROBED, gpu(used_mb=1000.0)):
        found = devices.examine(config(tmp_path, vram_budget_gb=budget_gb), probed, [])
        assert states(found, "budget") == [state]


def test_a_device_that_is_not_there_is_named(tmp_path: Path) -> None:
    tables = '[[devices]]\nname = "cuda:0"\nkind = "cuda"\n[[devices]]\nname = "cuda:3"\nkind = "cuda"\n'
    found = said(devices.examine(config(tmp_path, text=tables), gpu(), []), "budget")
    assert [finding.state for finding in found] == ["ok", "wrong"]
    assert "cuda:3" in found[1].message


def test_limits_of_control_groups_and_of_open_files_are_told(tmp_path: Path) -> None:
    found = list(devices.examine(config(tmp_path), PROBED, []))
    assert (
        "a control group allows this process no more of the machine's 16,000 MB"
        in said(found, "host memory")[0].message
    )
    few = {**PROBED, "files": {"soft": 256, "limit": 256, "clients": 40}}
    (line,) = said(devices.examine(config(tmp_path), few, []), "descriptors")
    assert (line.state, "LimitNOFILE" in line.remedy) == ("warning", True)


def test_the_brokers_own_look_counts_descriptors_under_the_limit_that_there_is() -> None:
    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))

    done = subprocess.run([sys.executable, "-P", "-m", "broker.probe"], capture_output=True, preexec_fn=lower,
                          check=True, timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    files = json.loads(done.stdout)["files"]
    assert files["limit"] == 256
    assert 0 < files["clients"] < devices.FEW_CLIENTS


def test_the_brokers_own_look_tells_what_nvml_does(zoo_dir: Path) -> None:
    (zoo_dir / "pynvml.py").write_text(
        "import sys\nfrom tests.fake_nvml import Nvml\n"
        "state = {'gpus': [{'uuid': 'GPU-7', 'total_mb': 4000, 'others_mb': 300}, {'uuid': 'GPU-8'}],\n"
        "         'errors': {'nvmlDeviceGetMemoryInfo GPU-8': 15}}\n"
        "sys.modules[__name__] = Nvml(lambda: state)\n"
    )
    config(zoo_dir, device="cuda", vram_budget_gb=2.0)
    path = os.pathsep.join([str(zoo_dir), str(ROOT)])
    done = doctor("--config", str(zoo_dir / "config.toml"), "--json", PYTHONPATH=path)
    rows = {row["about"]: row for row in json.loads(done.stdout)}
    assert rows["driver"]["state"] == "ok"
    assert "GPU-7: 300 of 4,000 MB" in rows["cuda:0"]["message"]
    assert (rows["cuda:1"]["state"], "GPU is lost" in rows["cuda:1"]["message"]) == ("wrong", True)
    assert rows["budget"]["message"] == "cuda:0: 2,048 MB of 4,000 MB"
    assert done.returncode == 1


def test_a_driver_that_does_not_answer_is_a_line_too(zoo_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (zoo_dir / "pynvml.py").write_text("import time\ndef nvmlInit(): time.sleep(600)\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(zoo_dir), str(ROOT)]))
    monkeypatch.setattr(devices, "PROBE_S", 1.0)
    found = devices.probe()
    assert isinstance(found, Finding)
    assert (found.about, found.state, "nvidia-smi" in found.remedy) == ("driver", "wrong", True)


# ---------------------------------------------------------------- kernel, shared memory, sockets


def refused(number: int) -> Callable[..., Any]:
    def call(*_: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return call


def test_a_kernel_without_pidfd_or_sealed_memory_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not [finding for finding in machine.examine() if finding.state == "wrong"]
    monkeypatch.setattr(os, "pidfd_open", refused(38))
    monkeypatch.setattr(os, "memfd_create", refused(38))
    found = list(machine.examine())
    assert states(found, "kernel") == ["wrong"]
    assert states(found, "shared memory") == ["wrong"]
    assert "seccomp" in said(found, "shared memory")[0].remedy


def test_shared_memory_that_cannot_be_had_names_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "posix_fallocate", refused(28))
    (found,) = said(machine.examine(), "shared memory")
    assert (found.state, "container limit" in found.remedy) == ("wrong", True)


def test_a_seal_without_effect_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwrite", lambda *_: 1)
    assert states(machine.examine(), "shared memory") == ["wrong"]


def test_sockets_that_pass_no_descriptors_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "send_fds", refused(1))
    assert states(machine.examine(), "Unix sockets") == ["wrong"]


# ---------------------------------------------------------------- packages

LISTS = {"": [Requirement("numpy>=2")], "x": [Requirement("one>=2"), Requirement("two")],
         "all": [Requirement("model-zoo[x]")]}  # fmt: skip


@pytest.mark.parametrize(
    ("there", "state", "words"),
    [
        ({"one": "2.1", "two": "1"}, "ok", "installed: one, two"),
        ({}, "ok", "not installed: pip install"),
        ({"one": "1.9", "two": "1"}, "warning", "one is 1.9, not >=2"),
        ({"one": "2.1"}, "warning", "two is missing"),
    ],
)
def test_an_extra_is_there_or_not_or_in_part(there: dict[str, str], state: str, words: str) -> None:
    for name in ("x", "all"):
        found = packages.extra(name, LISTS, there.get)
        assert (found.state, words in found.message) == (state, True)


def test_a_base_package_that_lacks_is_wrong_and_one_beside_its_pin_a_warning() -> None:
    assert packages.base(LISTS, {"numpy": "2.2"}.get).state == "ok"
    assert packages.base(LISTS, {"numpy": "1.26"}.get).state == "wrong"
    lock = "numpy==2.2\ntorch==2.13.0\nabsent==1\n"
    assert packages.pins(lock, {"numpy": "2.2", "torch": "2.13.0+cpu"}.get).state == "ok"
    found = packages.pins(lock, {"numpy": "2.3"}.get)
    assert (found.state, "numpy 2.3 (tested: 2.2)" in found.message) == ("warning", True)


def test_every_extra_of_this_release_is_looked_at() -> None:
    abouts = {finding.about for finding in packages.examine()}
    assert {"packages", "[workers]", "[models]", "[yolo]", "[gateway]", "pins"} <= abouts
    assert "[dev]" not in abouts


# ---------------------------------------------------------------- configuration, folders, weights


def test_no_configuration_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "find_config", lambda: None)
    monkeypatch.setattr("zoo.config.reading.find_config", lambda: None)
    read, found = setup.read(None)
    assert read is not None
    assert states(found, "config.toml") == ["warning"]


def test_a_state_folder_that_cannot_be_made_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert states(setup.folders(config(tmp_path, state_dir=str(tmp_path / "new" / "state"))), "state_dir") == ["ok"]
    assert states(setup.folders(config(tmp_path, state_dir=str(tmp_path / "file"))), "state_dir") == ["warning"]


def test_weights_missing_damaged_and_by_hand_each_have_their_remedy(tmp_path: Path) -> None:
    folder = tmp_path / "w"
    (folder / "changed").mkdir(parents=True)
    (folder / "changed" / "a.bin").write_bytes(b"x")
    record = {"a.bin": {"source": "hf:a/b", "revision": "main", "commit": None, "size": 9, "sha256": "0" * 64}}
    (folder / "changed" / inventory.RECORD).write_text(json.dumps(record))
    stand_in = folder / "small" / "weights.bin"
    stand_in.parent.mkdir()
    stand_in.write_bytes(b"x")
    inventory.mark_stand_in(stand_in, "small")
    models = [
        toy(), toy("off", enabled=False, path="nothing"), toy("fetch", path="fetch", source="hf:a/b", files=["a.bin"]),
        toy("changed", path="changed", source="hf:a/b", files=["a.bin"]), toy("hand", path="hand"),
        toy("small", path="small/weights.bin"), toy("large", vram_mb=99999),
    ]  # fmt: skip
    found = said(setup.weights(config(tmp_path, models, weights_dir=str(folder))), "weights")
    assert found[0].message.startswith("2 of 6 enabled models can be loaded")
    told = {finding.remedy: finding.state for finding in found[1:]}
    assert told["zoo pull fetch"] == "warning"
    assert told["zoo pull changed"] == "wrong"
    assert told["put them there, or say enabled = false of hand"] == "warning"
    assert told["`zoo check` says more; until then, say enabled = false of large"] == "wrong"
    assert any("stand-ins: 1 " in finding.message for finding in found)


# ---------------------------------------------------------------- endpoint and broker


def test_a_folder_that_others_can_write_or_that_is_none_is_wrong(zoo_dir: Path) -> None:
    assert states(setup.endpoint(config(zoo_dir), None, 0.2), "endpoint") == ["ok"]
    assert states(setup.endpoint(config(zoo_dir), f"ipc://{zoo_dir}/new/b", 0.2), "endpoint") == ["ok"]
    (zoo_dir / "file").touch()
    assert states(setup.endpoint(config(zoo_dir), f"ipc://{zoo_dir}/file/b", 0.2), "endpoint") == ["wrong"]
    (zoo_dir / "open").mkdir()
    (zoo_dir / "open").chmod(0o777)
    (found,) = said(setup.endpoint(config(zoo_dir), f"ipc://{zoo_dir}/open/b", 0.2), "endpoint")
    assert (found.state, "chmod go-w" in found.remedy) == ("wrong", True)


def test_a_path_too_long_for_a_socket_is_a_mistake_of_the_file(zoo_dir: Path) -> None:
    (zoo_dir / "config.toml").write_text(config_text([toy()], endpoint=f"ipc://{zoo_dir}/{'x' * 120}"))
    _, found = setup.read(str(zoo_dir / "config.toml"))
    assert states(found, "config.toml") == ["wrong"]
    assert "bytes, at most" in found[0].message


def test_what_listens_at_the_endpoint_is_told_apart(zoo_dir: Path) -> None:
    (found,) = said(setup.endpoint(config(zoo_dir), None, 0.2), "broker")
    assert (found.state, found.message.startswith("none runs on")) == ("ok", True)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(f"{zoo_dir}/b")
    (found,) = said(setup.endpoint(config(zoo_dir), None, 0.2), "broker")
    assert (found.state, "was killed left its socket" in found.message) == ("ok", True)
    os.unlink(zoo_dir / "b")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(f"{zoo_dir}/b")
        other.listen()
        (found,) = said(setup.endpoint(config(zoo_dir), None, 0.2), "broker")
        assert (found.state, found.message.startswith("something listens on")) == ("wrong", True)


def test_a_broker_with_another_configuration_is_a_warning(shared_broker: Running, zoo_dir: Path) -> None:
    (found,) = said(setup.endpoint(config(zoo_dir), shared_broker.endpoint, 5.0), "broker")
    assert (found.state, str(shared_broker.config_path) in found.message) == ("warning", True)


def test_a_port_for_metrics_that_is_taken_is_wrong(zoo_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        keys = {"metrics": f"127.0.0.1:{port}"}
        assert states(setup.endpoint(config(zoo_dir, **keys), None, 0.2), "metrics") == ["wrong"]
    assert states(setup.endpoint(config(zoo_dir, **keys), None, 0.2), "metrics") == ["ok"]


# ---------------------------------------------------------------- gateway


@contextmanager
def answering(status: int, text: str) -> Iterator[int]:
    """A server that says the same to everything. Gives its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def gateway(folder: Path, port: int) -> Finding:
    (found,) = said(setup.gateway(config(folder, text=f'[gateway]\nhttp = "127.0.0.1:{port}"\n')), "gateway")
    return found


@pytest.mark.parametrize(("status", "state"), [(200, "ok"), (503, "warning"), (404, "warning")])
def test_what_listens_at_the_gateways_port_is_told_apart(tmp_path: Path, status: int, state: str) -> None:
    with answering(status, "the broker does not answer") as port:
        found = gateway(tmp_path, port)
    assert found.state == state
    assert ("not ready: the broker does not answer" in found.message) is (status == 503)
    assert ("no gateway of the zoo" in found.message) is (status == 404)
    assert gateway(tmp_path, port).state == "ok"  # nothing listens there any more
    with socket.create_server(("127.0.0.1", 0)) as mute:
        mute.settimeout(10.0)
        thread = threading.Thread(target=lambda: mute.accept()[0].close())
        thread.start()
        assert gateway(tmp_path, mute.getsockname()[1]).message.startswith("no gateway of the zoo")
        thread.join()


def test_a_gateway_of_ours_is_ready(shared_broker: Running, gateway_of: Callable[..., Any], tmp_path: Path) -> None:
    found = gateway(tmp_path, gateway_of(shared_broker).port)
    assert (found.state, found.message.endswith("and is ready")) == ("ok", True)
