"""A minute of storm, by the seed in the name of the test, so that a red run can be repeated by hand: `make storm`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.storm.storm import Storm


def test_a_short_storm_leaves_nothing(zoo_dir: Path) -> None:
    Storm(zoo_dir, 1).run(3.0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
def test_a_storm_leaves_nothing(zoo_dir: Path, seed: int) -> None:
    Storm(zoo_dir, seed).run(30.0)
