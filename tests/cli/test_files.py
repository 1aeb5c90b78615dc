"""Weights folders, state and configuration may hold anything: nothing of it keeps a reader waiting or fills memory."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zoo
from broker.memory.footprints import FILE, Known, KnownModels, kept_in, version
from broker.scheduler.state import Peak
from tests.support import Running, toy
from zoo.config.reading import load_config
from zoo.config.schema import BrokerConfig, ModelConfig, ZooConfig
from zoo.system import files
from zoo.weights import catalogue, inventory

FRAME = np.zeros((8, 8, 3), np.uint8)
ODD = os.fsdecode(b"caf\xe9.txt")  # Latin-1: not UTF-8


def in_time(call: Callable[[], Any]) -> Any:
    """What `call` gives, or raises. A test that would wait for ever fails instead."""
    out: list[Any] = []

    def run() -> None:
        try:
            out.append(call())
        except BaseException as e:
            out.append(e)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(20.0)
    assert out, "it still waits"
    if isinstance(out[0], BaseException):
        raise out[0]
    return out[0]


@pytest.fixture(params=["fifo", "device", "folder", "link to a device"])
def odd(request: pytest.FixtureRequest) -> Callable[[Path], None]:
    """Puts something at a path that is no regular file."""

    def make(path: Path) -> None:
        if request.param == "fifo":
            os.mkfifo(path)
        elif request.param == "folder":
            path.mkdir()
        else:
            path.symlink_to("/dev/zero")

    return make


def test_only_regular_files_are_read(tmp_path: Path, odd: Callable[[Path], None]) -> None:
    odd(tmp_path / "it")
    with pytest.raises(OSError, match="no regular file"):
        in_time(lambda: files.read_regular(tmp_path / "it", 100))


def test_a_file_is_read_up_to_its_limit_and_a_link_to_one_as_well(tmp_path: Path) -> None:
    (tmp_path / "it").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("it")
    assert files.read_regular(tmp_path / "link", 5) == b"12345"
    with pytest.raises(OSError, match="more than the 4 bytes"):
        files.read_regular(tmp_path / "link", 4)


def test_a_file_is_replaced_as_a_whole_whatever_lies_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "it").write_bytes(b"old")
    os.mkfifo(tmp_path / f"it.{os.getpid()}")
    in_time(lambda: files.write_whole(tmp_path / "it", b"new"))
    assert (tmp_path / "it").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["it"]


def test_what_is_kept_about_weights_counts_as_none_when_it_is_no_file(
    tmp_path: Path, odd: Callable[[Path], None]
) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x")
    odd(tmp_path / inventory.RECORD)
    odd(tmp_path / inventory.MARKER)
    assert in_time(lambda: inventory.pulled(tmp_path)) == {}
    assert in_time(lambda: inventory.is_stand_in(tmp_path)) is False
    assert in_time(lambda: inventory.state(tmp_path)) == "here"


def test_a_record_too_large_or_of_files_elsewhere_counts_as_none(tmp_path: Path) -> None:
    was = '{{"{}": {{"source": "", "revision": "", "commit": null, "size": 1, "sha256": ""}}}}'
    (tmp_path / inventory.RECORD).write_text(was.format("../x"))
    assert inventory.pulled(tmp_path) == {}
    (tmp_path / inventory.RECORD).write_text(was.format("x"))
    assert list(inventory.pulled(tmp_path)) == ["x"]
    (tmp_path / inventory.RECORD).write_bytes(b" " * (inventory.MAX_RECORD + 1))
    assert inventory.pulled(tmp_path) == {}


def test_a_configuration_that_is_no_file_is_a_mistake_in_it(tmp_path: Path, odd: Callable[[Path], None]) -> None:
    odd(tmp_path / "config.toml")
    with pytest.raises(zoo.ConfigError, match="cannot be read: is no regular file"):
        in_time(lambda: load_config(tmp_path / "config.toml"))


def test_measurements_that_are_no_file_are_learnt_anew(tmp_path: Path, odd: Callable[[Path], None]) -> None:
    odd(tmp_path / FILE)
    file = kept_in(tmp_path)
    assert in_time(file.read) is None
    in_time(lambda: file.write(KnownModels(models={"a": Known("v", {"cpu": Peak(1.0)})})))


def config_of(tmp_path: Path, model: ModelConfig) -> ZooConfig:
    return ZooConfig(broker=BrokerConfig(weights_dir=str(tmp_path)), models=[model])


def test_names_that_are_not_utf8_have_a_version_and_words(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    model = ModelConfig(name="m", vram_mb=1, adapter="tests.toy:Toy", path=os.fsdecode(b"caf\xe9"))
    config = config_of(tmp_path, model)
    problem = catalogue.problem(config, model)
    assert problem is not None
    assert "missing at" in problem
    problem.encode()
    empty = version(config, model)
    (folder / ODD).write_bytes(b"x")
    assert version(config, model) != empty
    assert catalogue.problem(config, model) is None
    (folder / inventory.RECORD).symlink_to("/dev/zero")
    assert catalogue.row(config, model)["weights"] == "here"


def test_a_walk_through_weights_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "self").symlink_to(".")
    for i in range(50):
        (tmp_path / "weights" / f"{i}.safetensors").touch()
    assert len(list(files.tree(tmp_path / "weights", 1000))) == 51
    cut = list(files.tree(tmp_path / "weights", 20))
    assert len(cut) <= 20
    assert cut[-1].stat is None
    with pytest.raises(OSError, match="more than 20 names"):
        files.names(tmp_path / "weights", 20)
    deep = tmp_path / "weights"
    for _ in range(300):
        deep = deep / "d"
    deep.mkdir(parents=True)
    assert len(list(files.tree(tmp_path / "weights", 1000))) == 51


def test_a_folder_of_too_many_names_is_said_to_be_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_ENTRIES", 20)
    monkeypatch.setattr(files.names, "__defaults__", (20,))
    folder = tmp_path / "weights"
    folder.mkdir()
    for i in range(50):
        (folder / f"{i}.bin").touch()
    model = ModelConfig(name="m", vram_mb=1, adapter="workers.models.classify:ImageClassifier", path="weights")
    row = catalogue.row(config_of(tmp_path, model), model)
    assert row["weights"] == "unreadable"
    assert "more than 20 names" in row["problem"]


def test_an_adapter_of_ones_own_is_part_of_the_version_and_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "mine"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    (package / "bright.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    model = ModelConfig(name="m", vram_mb=1, adapter="mine.bright:Bright")
    config = config_of(tmp_path, model)
    before = version(config, model)
    assert version(config, model) == before
    (package / "bright.py").write_text("raise SystemExit('imported again')")
    assert version(config, model) != before
    assert version(config, ModelConfig(name="m", vram_mb=1, adapter="mine.nothing:Bright"))


def test_a_broker_lives_with_all_of_it(broker: Callable[..., Running], tmp_path: Path) -> None:
    """Names that are not UTF-8, FIFOs and links to devices among weights and state: it starts, answers and reloads."""
    place = tmp_path / os.fsdecode(b"caf\xe9")
    for name in ("odd", "fifo", "device"):
        (place / name).mkdir(parents=True)
        (place / name / "model.safetensors").write_bytes(b"x")
    (place / "odd" / ODD).write_bytes(b"x")
    for name in (inventory.RECORD, inventory.MARKER, "other.bin"):
        os.mkfifo(place / "fifo" / name)
        (place / "device" / name).symlink_to("/dev/zero")
    link = tmp_path / "weights"
    link.symlink_to(place)
    state = tmp_path / "state"
    state.mkdir()
    os.mkfifo(state / FILE)
    running = broker(
        [toy(name, path=name, vram_mb=50) for name in ("odd", "fifo", "device")],
        weights_dir=str(link), state_dir=str(state), footprint="measured",
    )  # fmt: skip
    client = running.client()
    for name in ("odd", "fifo", "device"):
        assert client.infer(name, FRAME)["mean"] == 0
        client.unload(name)
    assert {row["name"]: row["weights"] for row in client.models()} == dict.fromkeys(("odd", "fifo", "device"), "here")
    assert client.reload() == []


def test_a_folder_whose_own_name_is_not_utf8_can_be_served_from(broker: Callable[..., Running], tmp_path: Path) -> None:
    running = broker([toy("here", path="here"), toy("gone", path="gone")], start=False)
    place = running.folder / os.fsdecode(b"caf\xe9")
    (place / "weights" / "here").mkdir(parents=True)
    (place / "weights" / "here" / "model.safetensors").write_bytes(b"x")
    (place / "config.toml").write_text(running.config_path.read_text())
    running.config_path = place / "config.toml"
    client = running.start().client()
    assert client.infer("here", FRAME)["mean"] == 0
    with pytest.raises(zoo.ModelUnavailable, match="missing at"):
        client.infer("gone", FRAME)


def test_an_edited_adapter_is_a_change_for_reload(broker: Callable[..., Running]) -> None:
    running = broker([{"name": "mine", "adapter": "my_own:Mine", "vram_mb": 10}], start=False)
    source = running.folder / "my_own.py"
    text = (
        "class Mine:\n def load(self, *_): pass\n def predict(self, inputs): return [{'is': 'first'}] * len(inputs)\n"
    )
    source.write_text(text)
    client = running.start().client()
    assert client.infer("mine", FRAME) == {"is": "first"}
    assert client.reload() == []
    source.write_text(text.replace("'first'", "'edited'"))
    assert client.reload() == ["mine: its adapter's file has changed"]
    assert client.reload() == []
