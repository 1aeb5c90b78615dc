"""`zoo infer` and `zoo enrich` with raw pixels, as cameras and decoders write them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support import Running, tables, toy

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def here(shared_broker: Running, monkeypatch: pytest.MonkeyPatch) -> Running:
    monkeypatch.setenv("ZOO_ENDPOINT", shared_broker.endpoint)
    return shared_broker


@pytest.mark.parametrize(
    ("how", "size"),
    [
        (["--color", "nv12"], 48 * 64 * 3 // 2),
        (["--color", "i420"], 48 * 64 * 3 // 2),
        (["--color", "gray"], 48 * 64),
        (["--color", "gray", "--scale", "10,500"], 48 * 64 * 2),
        (["--color", "nv12", "--stride", "80"], 48 * 80 * 3 // 2),
        (["--color", "bgr"], 48 * 64 * 3),
        ([], 48 * 64 * 3),
        (["--scale", "10,500"], 48 * 64 * 6),
    ],
)
def test_a_file_of_raw_pixels_is_described_by_options(
    run: Run, here: Running, tmp_path: Path, how: list[str], size: int
) -> None:
    (tmp_path / "raw").write_bytes(bytes(size))
    status, out, err = run("infer", "toy", tmp_path / "raw", "--size", "64x48", *how, "--json")
    assert (status, err) == (0, "")
    assert json.loads(out)["shape"] == [48, 64, 3]


def test_what_does_not_fit_is_told(run: Run, here: Running, tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(bytes(101))
    for how, words in (
        (["--color", "nv12"], "say --size WIDTHxHEIGHT"),
        (["--size", "64x48"], "has 101 bytes; 64x48 pixels of three colours have 9,216"),
        (["--size", "64x48", "--color", "gray", "--scale", "1,9"], "an odd number"),
        (["--size", "64"], "expected WIDTHxHEIGHT"),
        (["--size", "64x48", "--color", "nv12", "-o", tmp_path / "out.png"], "-o: drawn is on encoded images"),
        (["--size", "64x48", "--scale", "1"], "expected LO,HI"),
    ):
        status, out, err = run("infer", "toy", tmp_path / "raw", *how)
        assert (status, out, words in err) == (2, "", True), err
    status, _, err = run("infer", "toy", tmp_path / "raw", "--size", "64x48", "--color", "nv12")
    assert (status, "zoo: invalid input: " in err) == (1, True)


def test_raw_rgb_and_bgr_are_drawn_on_and_enriched(run: Run, broker: Callable[..., Running], tmp_path: Path) -> None:
    models = [toy(name, adapter="tests.finder:Finder") for name in ("find", "where")]
    running = broker(tables("models", models) + '[[enrich.rules]]\nfor = ["bright"]\nmodels = ["where"]\n')
    frame = np.full((240, 320, 3), 40, np.uint8)
    frame[60:200, 80:280, 0] = 255  # red
    out = tmp_path / "out.png"
    finder = ("--detector", "find", "--detector-option", "do=find")
    for color, pixels in (("rgb", frame), ("bgr", frame[..., ::-1])):
        (tmp_path / "raw").write_bytes(pixels.tobytes())
        raw = ("--endpoint", running.endpoint, "--size", "320x240", "--color", color, "-o", out)
        for command in (
            ("infer", "find", tmp_path / "raw", "--option", "do=find"),
            ("enrich", tmp_path / "raw", *finder),
        ):
            status, said, err = run(*command, *raw)
            assert status == 0, err
            assert "bright" in said
            assert tuple(np.array(Image.open(out))[190, 200].tolist()) == (255, 40, 40)
