"""What a container leaves of the machine, read from a file system of the tests' making."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from broker.memory.container import Container
from broker.memory.meters import HostMeter

GB = 1 << 30
MEMINFO = "MemTotal:       16777216 kB\nMemFree:        1 kB\nMemAvailable:    8388608 kB\nUnevictable: 0 kB\n"


class Machine:
    """A root folder: 16 GB of memory, 8 of them available, and what a test adds."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("proc/meminfo", MEMINFO)

    def write(self, file: str, text: str) -> None:
        (self.root / file).parent.mkdir(parents=True, exist_ok=True)
        (self.root / file).write_text(text)

    def group(self, path: str, **files: str) -> None:
        for name, text in files.items():
            self.write(f"sys/fs/cgroup/{path}/{name.replace('__', '.')}", text + "\n")

    def memory(self) -> tuple[float, float]:
        """(used, total) in MB, as the meter of host memory has it."""
        figures = HostMeter(Container(self.root)).read(())
        return figures.used_mb, figures.total_mb


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_without_a_container_the_machine_counts(machine: Machine) -> None:
    assert machine.memory() == (8192, 16384)
    machine.write("proc/self/cgroup", "0::/user.slice\n")
    machine.group("user.slice", memory__max="max", memory__current=str(GB), memory__stat="anon 1\ninactive_file 0")
    assert machine.memory() == (8192, 16384)


def test_a_limit_of_version_2_counts_without_what_the_kernel_can_take_back(machine: Machine) -> None:
    machine.write("proc/self/cgroup", "0::/\n")
    stat = f"anon 5\nfile 7\ninactive_file {GB}\nactive_file 3"
    machine.group("", memory__max=str(4 * GB), memory__current=str(3 * GB), memory__stat=stat)
    assert machine.memory() == (2048, 4096)
    machine.group("", memory__high=str(3 * GB))
    assert machine.memory() == (2048, 3072), "above it the kernel slows the group down"


def test_a_limit_of_version_1_counts(machine: Machine) -> None:
    machine.write("proc/self/cgroup", "9:cpu,cpuacct:/x\n4:memory:/docker/abc\n1:name=systemd:/y\n")
    files = {"memory__usage_in_bytes": str(3 * GB), "memory__stat": f"inactive_file 9\ntotal_inactive_file {GB}"}
    machine.group("memory", memory__limit_in_bytes="9223372036854771712", **files)
    assert machine.memory() == (8192, 16384), "no limit is written as a very large one"
    machine.group("memory", memory__limit_in_bytes=str(5 * GB), **files)  # what a container sees as its root
    assert machine.memory() == (2048, 5120)


def test_the_tightest_of_all_groups_above_counts(machine: Machine) -> None:
    machine.write("proc/self/cgroup", "0::/a/b/c\n")
    machine.group("a", memory__max=str(6 * GB), memory__current=str(5 * GB))
    machine.group("a/b", memory__max=str(4 * GB), memory__current=str(1 * GB))
    machine.group("a/b/c", memory__max="max", memory__current=str(GB))
    assert machine.memory() == (3072, 4096), "4 GB at most, and only 1 GB left of what the outer group has"


def test_where_others_use_the_machine_up_the_containers_limit_is_no_promise(machine: Machine) -> None:
    machine.write("proc/self/cgroup", "0::/\n")
    machine.write("proc/meminfo", MEMINFO.replace("8388608", "1048576"))
    machine.group("", memory__max=str(8 * GB), memory__current=str(GB))
    assert machine.memory() == (7168, 8192)


@pytest.mark.parametrize("text", ["", "lots", "-1", "0", "\udcff", "1e9", "99999999999999999999999"])
def test_nonsense_is_passed_over(machine: Machine, text: str) -> None:
    machine.write("proc/self/cgroup", "0::/\n::\n4:memory\n7:memory:../..\nnonsense\n")
    memory = ("memory.max", "memory.high", "memory.current", "memory.stat", "memory/memory.limit_in_bytes")
    for name in (*memory, "cpu.max"):
        file = machine.root / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.encode(errors="surrogateescape"))
    assert machine.memory() == (8192, 16384)
    assert Container(machine.root).cores() == len(os.sched_getaffinity(0))


@pytest.mark.parametrize("text", ["", "MemTotal: 5 kB\n", "MemTotal: x kB\nMemAvailable: 1 kB\n"])
def test_a_machine_that_does_not_say_is_an_error_and_no_0(machine: Machine, text: str) -> None:
    machine.write("proc/meminfo", text)
    with pytest.raises((ValueError, OSError)):
        machine.memory()


def test_cores_are_those_that_may_be_used(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert Container(machine.root).cores() == 12
    machine.write("proc/self/cgroup", "0::/a/b\n5:cpu,cpuacct:/a\n")
    machine.group("a", cpu__max="600000 100000")
    assert Container(machine.root).cores() == 6
    machine.group("a/b", cpu__max="250000 100000")
    assert Container(machine.root).cores() == 2
    machine.group("cpu/a", cpu__cfs_quota_us="50000", cpu__cfs_period_us="100000")
    assert Container(machine.root).cores() == 1
    machine.group("cpu/a", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    machine.group("a", cpu__max="max 100000")
    assert Container(machine.root).cores() == 2
