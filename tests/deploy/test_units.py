"""The units of systemd: what it says of them itself, and what their processes say to it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.manager import INSTALLED, UNITS, Manager, command, settings
from tests.support import ROOT, config_text, toy, wait_until
from zoo.config.reading import load_config
from zoo.config.schema import BrokerConfig
from zoo.system.notify import Notifier

SERVICES = ["zoo.service", "zoo-gateway.service"]
MOST_EXPOSED = 20  # tenths, by `systemd-analyze security`: 0 none, 100 all
CLOSING_S = 15.0  # a broker ends so long after its drain at the latest: `broker/ending.py`


def said_by(*arguments: object) -> str:
    """What a program prints; skips the test where it is missing."""
    words = [str(word) for word in arguments]
    if shutil.which(words[0]) is None:
        pytest.skip(f"{words[0]} is not installed")
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def config(zoo_dir: Path) -> Path:
    """Of a broker and a gateway with the toy model."""
    keys = {"endpoint": f"ipc://{zoo_dir}/b", "device": "cpu", "standby": 0, "drain_seconds": 5.0}
    text = config_text([toy()], **keys) + '[gateway]\nhttp = "127.0.0.1:0"\n'
    (zoo_dir / "config.toml").write_text(text)
    return zoo_dir / "config.toml"


def test_systemd_finds_no_mistake_in_the_units(tmp_path: Path) -> None:
    """An unknown key is a warning of systemd's, and status 0: nothing at all may be said of them."""
    program = tmp_path / "zoo"
    program.touch(0o755)
    for name in SERVICES:
        (tmp_path / name).write_text((UNITS / name).read_text().replace(INSTALLED, str(program)))
    said = said_by("systemd-analyze", "verify", "--man=no", *(tmp_path / name for name in SERVICES))
    assert not [line for line in said.splitlines() if "zoo" in line]


@pytest.mark.parametrize("name", SERVICES)
def test_the_units_leave_little_to_their_processes(name: str) -> None:
    said_by("systemd-analyze", "security", "--offline=yes", f"--threshold={MOST_EXPOSED}", UNITS / name)


def test_the_account_and_the_folders_are_made_as_the_units_need_them(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("accounts are made by root alone")
    for folder in ("etc/sysusers.d", "etc/tmpfiles.d", "run", "var/lib"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(UNITS / "zoo.sysusers.conf", tmp_path / "etc/sysusers.d/zoo.conf")
    shutil.copy(UNITS / "zoo.tmpfiles.conf", tmp_path / "etc/tmpfiles.d/zoo.conf")
    said_by("systemd-sysusers", f"--root={tmp_path}", "zoo.conf")
    account = next(line for line in (tmp_path / "etc/passwd").read_text().splitlines() if line.startswith("zoo:"))
    said_by("systemd-tmpfiles", f"--root={tmp_path}", "--create", "zoo.conf")
    uid, gid, home = int(account.split(":")[2]), int(account.split(":")[3]), account.split(":")[5]
    for folder, mode in (("run/zoo", 0o750), (home.lstrip("/"), 0o750), (f"{home.lstrip('/')}/weights", 0o755)):
        found = (tmp_path / folder).stat()
        assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (uid, gid, mode), folder


def test_the_configuration_of_an_installed_zoo_has_paths_that_the_units_allow(
    tmp_path: Path,
) -> None:
    made = said_by("sed", "-f", ROOT / "deploy" / "installed.sed", ROOT / "config.toml")
    (tmp_path / "config.toml").write_text(made)
    found, shipped = load_config(tmp_path / "config.toml"), load_config(ROOT / "config.toml")
    assert found.models == shipped.models
    assert found.endpoint == "ipc:///run/zoo/broker"
    assert (found.broker.group, found.broker.user) == ("zoo", "zoo")
    assert found.broker.metrics
    assert {found.broker.state_dir, found.broker.weights_dir} == {"/var/lib/zoo/state", "/var/lib/zoo/weights"}
    assert settings("zoo.service")["ReadWritePaths"] == ["/run/zoo"]
    assert settings("zoo.service")["StateDirectory"] == ["zoo"]


def test_the_unit_of_the_broker_waits_as_long_as_a_drain_may_take() -> None:
    found = settings("zoo.service")
    assert float(found["TimeoutStopSec"][0]) > BrokerConfig().drain_seconds + CLOSING_S
    assert found["KillMode"] == ["mixed"]


def test_the_broker_says_that_it_serves_lives_reloads_and_ends(config: Path) -> None:
    with Manager(config.parent, watchdog_s=4.0) as manager:
        process = manager.start(command("zoo.service", config))
        manager.hear("READY=1")
        assert any("1 models" in line for line in manager.said)
        for _ in range(2):
            manager.hear("WATCHDOG=1")
        config.write_text(config.read_text().replace("[[models]]", tables_of_another() + "[[models]]", 1))
        process.send_signal(signal.SIGHUP)
        manager.hear("RELOADING=1")
        assert manager.said[-1].removeprefix("MONOTONIC_USEC=").isdecimal()
        manager.hear("READY=1")
        assert any("2 models" in line for line in manager.said)
        process.terminate()
        manager.hear("STOPPING=1")
        assert process.wait(timeout=30.0) == 0


def tables_of_another() -> str:
    return '[[models]]\nname = "toy2"\nadapter = "tests.toy:Toy"\nvram_mb = 10\n'


STUCK = """
import pathlib, sys, time
from broker.fleet.fleet import Fleet
from zoo import broker

flag, housekeeping = pathlib.Path(sys.argv[1]), Fleet.housekeeping
Fleet.housekeeping = lambda self, now: time.sleep(3600) if flag.exists() else housekeeping(self, now)
broker.main(sys.argv[2:])
"""


@pytest.mark.slow
def test_a_broker_whose_loop_does_not_turn_is_silent(config: Path) -> None:
    """What the watchdog is for: the word comes from the loop, and from no thread beside it."""
    flag = config.parent / "flag"
    with Manager(config.parent, watchdog_s=2.0) as manager:
        manager.start([sys.executable, "-c", STUCK, str(flag), "--config", str(config)])
        manager.hear("READY=1")
        manager.hear("WATCHDOG=1")
        flag.touch()
        wait_until(lambda: not manager.hears("WATCHDOG=1", timeout=2.0))


def test_the_gateway_says_that_it_serves_lives_and_ends(config: Path) -> None:
    """No broker needs to be there: it is found when it comes."""
    with Manager(config.parent, watchdog_s=4.0) as manager:
        process = manager.start(command("zoo-gateway.service", config))
        manager.hear("READY=1")
        for _ in range(2):
            manager.hear("WATCHDOG=1")
        process.terminate()
        manager.hear("STOPPING=1")
        assert process.wait(timeout=30.0) == 0


def test_a_configuration_that_cannot_be_served_ends_with_the_status_that_the_units_do_not_start_again(
    config: Path,
) -> None:
    config.write_text("[broker]\nbudget = 1\n")
    for name in SERVICES:
        assert subprocess.run(command(name, config), cwd=ROOT, capture_output=True, timeout=60).returncode == 2
        assert settings(name)["RestartPreventExitStatus"] == ["2"]


def test_children_do_not_answer_in_their_parents_place() -> None:
    environment = {"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1", "PATH": "/bin"}
    Notifier(environment)
    assert environment == {"PATH": "/bin"}


def test_without_a_manager_or_with_one_that_is_gone_nothing_is_said(tmp_path: Path) -> None:
    for environment in ({}, {"NOTIFY_SOCKET": str(tmp_path / "gone"), "WATCHDOG_USEC": "1000000"}):
        notifier = Notifier(environment)
        assert not notifier.watched
        notifier.ready("serving")
        notifier.alive()
        notifier.stopping()


def test_a_watchdog_for_another_process_is_none_of_ours(zoo_dir: Path) -> None:
    with Manager(zoo_dir):
        address = str(zoo_dir / "notify")
        mine = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": str(os.getpid())}
        assert Notifier(dict(mine)).watched
        assert not Notifier({**mine, "WATCHDOG_PID": "1"}).watched
        assert not Notifier({**mine, "WATCHDOG_USEC": "soon"}).watched
