"""What pages promise beyond their examples: the lines of `zoo explain`, and Frigate as the pages set it up."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.cli.test_examples import PAGES, examples, frigate_tables
from tests.gateway.frigate import FrigateClient
from tests.support import ROOT, Running, config_text, tables, toy, wait_until

SEEN = 3  # objects that the model of tests finds


def test_lines_of_explain_are_those_that_the_page_names(broker: Callable[..., Running]) -> None:
    models = [toy(name, vram_mb=60) for name in ("a", "b", "c")]
    running = broker(models, vram_budget_gb=0.1)
    with running.client() as client:
        client.get_model("a")
        client.get_model("b")  # does not fit beside it
        client.unload("b")
        client.load("b", keep_alive=0).release()
        client.get_model("c")
        wait_until(lambda: client.cleanup_idle_models(0.01))
        text = config_text(models, endpoint=running.endpoint, footprint="declared", idle_seconds=0.05)
        running.config_path.write_text(text + "")
        client.reload()
        client.get_model("a")
        wait_until(lambda: any(": idle for" in line for line in client.explain("a")))
        client.pin("c")
        client.get_model("c")
        client.unpin("c")
        running.config_path.write_text(
            config_text(models, endpoint=running.endpoint, footprint="declared", vram_budget_gb=0.01)
        )
        client.reload()
        told = [line for model in "abc" for line in client.explain(model)]
    page = (ROOT / "docs/how-to/evicted.md").read_text()
    named = re.findall(r"^\| `(evicted, .*?)` \|", page, re.M)
    assert len(named) == 6
    for line in named:
        pattern = re.escape(line).replace("…", ".+").replace("NAME", r"\w+")
        assert any(re.search(pattern, one) for one in told), (line, told)


FRIGATES = [page for page in PAGES if any("zmq" in e.text for e in examples("yaml") if e.page == page)]


@pytest.mark.slow
@pytest.mark.parametrize("page", FRIGATES)
def test_frigate_sees_by_what_a_page_tells_it(
    page: str, broker: Callable[..., Running], gateway_of: Callable[..., object], tmp_path: Path
) -> None:
    """Both configurations as they stand on the page, but for the folder of the socket and the model's weights."""
    (text,) = [e.text for e in examples("toml") if e.page == page and frigate_tables(e.text)]
    (table,) = frigate_tables(text)
    models = [toy(name, adapter="tests.gateway.adapter:Every") for name in table["models"].values()]
    running = broker(models)
    endpoint = table["endpoint"].replace("/run/zoo", str(running.folder))
    gateway_of(running, tables("models", models) + text.replace(table["endpoint"], endpoint))
    client = FrigateClient(endpoint, *table["models"])
    try:
        assert client.is_ready()
        picture = np.zeros((1, 320, 320, 3), np.uint8)
        picture[0, 0, 0, 0] = SEEN
        assert client.look(picture).any()
        assert client.zeros == 0
    finally:
        client.close()
