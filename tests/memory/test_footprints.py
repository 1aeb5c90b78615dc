"""What was measured survives the broker, belongs to one version of the weights, and a bad file costs only itself."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from broker.memory.footprints import FILE, Known, KnownModels, kept_in, version
from broker.scheduler.state import Peak
from zoo.config.schema import BrokerConfig, ModelConfig, ZooConfig

PEAKS = {"cuda:0": Peak(812.0, True, (500.0, 812.0)), "cpu": Peak(20.0)}
SAVED = KnownModels(models={"a": Known("v1", PEAKS)})


def test_what_is_written_is_there_for_the_next(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    assert kept_in(folder).read() is None
    kept_in(folder).write(SAVED)
    assert kept_in(folder).read() == SAVED
    assert os.listdir(folder) == [FILE]


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"\xff\xfe", b"[1]", b'{"format": 1, "models": {"a": 3}}', b"[" * 100_000,
     b'{"format": 1, "models": {"a": {"weights": "v", "peaks": {"cpu": {"mb": -1}}}}}',
     b'{"format": 1, "models": {"a": {"weights": "v", "peaks": {"cpu": {"mb": 1e300}}}}}',
     b'{"format": 2, "models": ["of a later release"]}'],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_set_aside_with_a_warning(
    tmp_path: Path, text: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FILE).write_bytes(text)
    with caplog.at_level(logging.WARNING):
        assert kept_in(tmp_path).read() is None
    assert "set aside" in caplog.text or "is now" in caplog.text
    assert (tmp_path / f"{FILE}.aside").read_bytes() == text
    kept_in(tmp_path).write(SAVED)
    assert kept_in(tmp_path).read() == SAVED


def test_a_folder_that_cannot_be_used_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        file = kept_in(tmp_path / "file" / "folder")
        assert file.read() is None
        caplog.clear()
        file.write(SAVED)
        file.write(SAVED)
    assert caplog.text.count("cannot be kept") == 1


def test_the_version_follows_weights_adapter_and_options(tmp_path: Path) -> None:
    config = ZooConfig(broker=BrokerConfig(weights_dir=str(tmp_path)))

    def now(**keys: object) -> str:
        return version(config, ModelConfig(**{"name": "m", "adapter": "a:B", "path": "m", **keys}))  # type: ignore[arg-type]

    missing = now()
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "weights").write_bytes(b"123")
    first = now()
    assert first == now(vram_mb=300.0, priority=0)
    os.utime(tmp_path / "m" / "weights", ns=(1, 1))
    touched = now()
    (tmp_path / "m" / "weights").write_bytes(b"1234")
    assert len({missing, first, touched, now(), now(options={"half": True}), now(adapter="a:C"), now(path="")}) == 7


def test_what_an_earlier_release_wrote_is_taken_over(tmp_path: Path) -> None:
    """And it reads what this one writes: it knows no lives, and passes them over."""
    old = b'{"format": 1, "models": {"a": {"weights": "v", "peaks": {"cpu": {"mb": 300.0, "worked": true}}}}}'
    (tmp_path / FILE).write_bytes(old)
    assert kept_in(tmp_path).read() == KnownModels(models={"a": Known("v", {"cpu": Peak(300.0, True)})})
