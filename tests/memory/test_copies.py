"""Copies of loaded models: made and read in one process, kept by the broker, and used by real workers."""

from __future__ import annotations

import fcntl
import importlib
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.memory.host_cache import Copies
from tests.support import Running, toy, wait_until
from workers import copies
from zoo.wire import arena

FRAME = np.full((8, 8, 3), 7, np.uint8)
MB = 1 << 20

Start = Callable[..., Running]


class Adapter:
    """What adapters are made of, as far as it takes something to copy it."""

    def __init__(self) -> None:
        self.weights = np.arange(3 * MB, dtype=np.uint8)
        self.same = self.weights
        self.odd = np.arange(100)[::3]
        self.none = np.zeros(0, np.float32)
        self.lock = threading.Lock()
        factor = 3
        self.times: Callable[[int], int] = lambda n, more=1: n * factor + more


def copied(model: object) -> int:
    made = copies.Copy(model, 1 << 30)
    while not made.write():
        pass
    fd = os.dup(made.fd)
    made.close()
    return fd


def test_a_copy_is_equal_and_its_writer_gets_pages_of_its_own() -> None:
    model = Adapter()
    fd = copied(model)
    one, two = (copies.read(os.dup(fd), 1) for _ in range(2))
    os.close(fd)
    for found in (one, two):
        assert np.array_equal(found.weights, model.weights)
        assert np.array_equal(found.odd, model.odd)
        assert (found.none.size, found.none.dtype) == (0, np.float32)
        assert found.same is found.weights
        assert found.times(5) == 16
        assert found.lock.acquire(blocking=False)
    one.weights[:] = 0
    assert np.array_equal(two.weights, model.weights)


def test_a_copy_is_sealed_and_has_all_of_its_pages() -> None:
    fd = copied(Adapter())
    assert arena.check_sealed(fd, 1 << 30) == os.fstat(fd).st_size
    with pytest.raises(PermissionError):
        os.pwrite(fd, b"x", 0)
    os.close(fd)


def test_a_copy_is_of_no_use_when_the_code_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "edited_adapter.py"
    file.write_text("class Edited:\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    fd = copied(importlib.import_module("edited_adapter").Edited())
    assert type(copies.read(os.dup(fd), 1)).__name__ == "Edited"
    os.utime(file, (1, 1))
    with pytest.raises(ValueError, match="the code of Edited has changed"):
        copies.read(fd, 1)


def test_what_cannot_be_pickled_or_is_too_large_has_no_copy_and_says_why() -> None:
    with pytest.raises(copies.Uncopyable, match="cannot pickle"):
        copies.Copy({"stream": sys.stdout.buffer}, 1 << 30)
    with pytest.raises(copies.Uncopyable, match="it would have 3 MB, at most 1 MB are wanted"):
        copies.Copy(Adapter(), MB)


def sealed(size: int, seals: int = arena.SEALS | fcntl.F_SEAL_WRITE) -> int:
    fd = os.memfd_create("t", os.MFD_ALLOW_SEALING)
    os.write(fd, bytes(size))
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def test_those_not_used_for_longest_go_when_there_is_no_room_for_all() -> None:
    kept = Copies(3 * MB)
    for name in ("a", "b", "c"):
        assert kept.keep(name, "cpu", "v1", sealed(MB)) == MB
    assert kept.get("a", "cpu", "v1") is not None
    kept.keep("d", "cpu", "v1", sealed(2 * MB))
    assert kept.models() == {"d": 2.0, "a": 1.0}
    assert kept.used_bytes == 3 * MB
    kept.resize(2 * MB)
    assert kept.models() == {"d": 2.0}
    kept.resize(0)
    assert kept.models() == {}


def test_a_copy_is_of_one_version_on_one_device() -> None:
    kept = Copies(3 * MB)
    kept.keep("a", "cpu", "v1", sealed(MB))
    assert kept.get("a", "cuda:0", "v1") is None
    assert kept.get("b", "cpu", "v1") is None
    assert kept.get("a", "cpu", "v2") is None
    assert kept.used_bytes == 0, "of weights that are there no more"
    assert kept.give_up("a", "cpu", "v2")
    assert not kept.give_up("a", "cpu", "v2"), "said once"
    assert kept.wanted_bytes("a", "cpu", "v2") == 0
    assert kept.wanted_bytes("a", "cpu", "v3") == 3 * MB
    kept.forget("a")
    assert kept.wanted_bytes("a", "cpu", "v2") == 3 * MB


@pytest.mark.parametrize("seals", [arena.SEALS, fcntl.F_SEAL_WRITE])
def test_what_is_not_sealed_is_not_kept(seals: int) -> None:
    kept = Copies(3 * MB)
    fd = sealed(MB, seals)
    with pytest.raises(arena.ArenaRefused, match="lacks the seal"):
        kept.keep("a", "cpu", "v1", fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    assert kept.used_bytes == 0


# ---------------------------------------------------------------- with processes


def kept_of(client: Any) -> dict[str, float]:
    found: dict[str, float] = client.get_status()["host_cache"]["models"]
    return found


def test_a_model_that_comes_back_is_made_of_its_copy(broker: Start, zoo_dir: Path) -> None:
    flag = zoo_dir / "loaded"
    once = {"load": "flag", "flag": str(flag), "then": "raise", "ballast_mb": 5}  # it can be loaded just once
    running = broker([toy(options=once)], host_cache_mb=20)
    client = running.client()
    before = client.infer("toy", FRAME)
    wait_until(lambda: kept_of(client), what="a copy is kept")
    assert 5 <= kept_of(client)["toy"] < 6
    flag.touch()
    for _ in range(2):
        client.unload("toy")
        after = client.infer("toy", FRAME)
        assert after.pop("pid") != before["pid"]
        assert after == {k: v for k, v in before.items() if k != "pid"}
    text = running.config_path.read_text()
    running.config_path.write_text(text.replace("host_cache_mb = 20", "host_cache_mb = 3"))
    client.reload()
    assert client.get_status()["host_cache"] == {"limit_mb": 3.0, "used_mb": 0, "models": {}}


def test_weights_that_change_have_no_copy(broker: Start, zoo_dir: Path) -> None:
    weights = zoo_dir / "weights.bin"
    weights.write_bytes(b"old")
    flag = zoo_dir / "loaded"
    options = {"load": "flag", "flag": str(flag), "then": "refuse"}
    running = broker([toy(options=options, path=str(weights))], host_cache_mb=20)
    client = running.client()
    client.infer("toy", FRAME)
    wait_until(lambda: kept_of(client), what="a copy is kept")
    client.unload("toy")
    flag.touch()
    client.infer("toy", FRAME)
    client.unload("toy")
    weights.write_bytes(b"newer")
    with pytest.raises(Exception, match="not today"):
        client.infer("toy", FRAME)


def test_a_model_that_cannot_be_copied_is_loaded_as_ever_and_that_is_said_once(broker: Start) -> None:
    running = broker([toy(options={"uncopyable": True})], host_cache_mb=20)
    client = running.client()
    for _ in range(2):
        client.infer("toy", FRAME)
        wait_until(lambda: "no copy of it can be kept" in running.log())
        client.unload("toy")
    wait_until(lambda: running.log().count("no copy of it can be kept") == 1)


def test_a_copy_of_no_use_is_dropped_and_the_model_loaded_from_its_weights(broker: Start) -> None:
    running = broker([toy(options={"unreadable": True})], host_cache_mb=20)
    client = running.client()
    first = client.infer("toy", FRAME)["pid"]
    wait_until(lambda: kept_of(client), what="a copy is kept")
    client.unload("toy")
    assert client.infer("toy", FRAME)["pid"] != first
    wait_until(lambda: "toy: its copy is of no use: ValueError: only once" in running.log())
    wait_until(lambda: "the copy of it that was kept is of no use and dropped" in running.log())
