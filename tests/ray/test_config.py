"""The `[cluster]` table of config.toml."""

from __future__ import annotations

import pytest

from zoo.config.reading import parse_config
from zoo.errors import ConfigError

TEXT = """
[[models]]
name = "big"
adapter = "tests.toy:Toy"
[[models]]
name = "small"
adapter = "tests.toy:Toy"
[cluster]
copies = 3
models = { big = { gpu = "a100" } }
[[cluster.nodes]]
labels = { gpu = "t4" }
vram_budget_gb = 15.0
models = ["small"]
[[cluster.nodes]]
labels = { gpu = "a100", zone = "east" }
endpoint = "ipc:///run/zoo/broker"
"""


def test_what_holds_for_a_node_goes_by_its_labels() -> None:
    cluster = parse_config(TEXT).cluster
    assert cluster.copies == 3
    assert cluster.node({"gpu": "t4", "more": "x"}).vram_budget_gb == 15.0
    assert cluster.node({"gpu": "a100", "zone": "east"}).endpoint == "ipc:///run/zoo/broker"
    assert cluster.node({"gpu": "a100"}).vram_budget_gb is None
    assert not cluster.serves("big", {"gpu": "t4"})
    assert cluster.serves("big", {"gpu": "a100"})
    assert not cluster.serves("big", {})
    assert cluster.serves("small", {})


@pytest.mark.parametrize(
    ("was", "now", "said"),
    [
        ('models = ["small"]', 'models = ["smal"]', "12: cluster.nodes.models: there is no model 'smal'"),
        ("big = {", "bigg = {", "cluster.models: there is no model 'bigg'"),
        ("copies = 3", "copies = 0", "cluster.copies"),
        ("vram_budget_gb = 15.0", "vram_budget_gb = -1", "cluster.nodes.vram_budget_gb"),
        ("ipc:///run/zoo/broker", "http://x", "cluster.nodes.endpoint"),
        ("vram_budget_gb = 15.0", "budget = 1", "unknown key"),
    ],
)
def test_mistakes_name_the_line_and_key(was: str, now: str, said: str) -> None:
    with pytest.raises(ConfigError) as e:
        parse_config(TEXT.replace(was, now))
    assert said.removeprefix("12: ") in str(e.value)
