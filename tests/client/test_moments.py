"""When a model was last used: Unix time on the wire, ISO 8601 in UTC from the clients and the command line."""

from __future__ import annotations

import asyncio
import json
import re
import time

import numpy as np
import pytest

from tests.support import Running
from zoo import AsyncClient
from zoo.cli import main
from zoo.wire import moments

FRAME = np.zeros((4, 4, 3), np.uint8)
ISO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


def test_seconds_become_text_in_utc_and_never_is_none() -> None:
    assert moments.to_text(1705314600.123) == "2024-01-15T10:30:00Z"
    assert moments.to_seconds("2024-01-15T10:30:00Z") == 1705314600.0
    assert (moments.to_text(0.0), moments.to_seconds(None)) == (None, 0.0)


def test_what_a_later_broker_may_say_is_left_alone() -> None:
    assert moments.to_text("2024-01-15T10:30:00Z") == "2024-01-15T10:30:00Z"
    assert moments.to_text(1e300) == 1e300
    assert moments.readable_status({"leases": 0}) == {"leases": 0, "loaded_models": []}
    assert moments.readable([{"name": "a"}]) == [{"name": "a"}]


def test_both_clients_and_the_command_line_give_iso_8601(
    shared_broker: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    before = int(time.time())
    client = shared_broker.client()
    client.infer("toy", FRAME)

    async def look() -> tuple[dict[str, object], list[dict[str, object]]]:
        async with AsyncClient(shared_broker.endpoint, arena_mb=8) as zoo:
            return await zoo.get_status(), await zoo.processes()

    assert main.main(["status", "--json", "--endpoint", shared_broker.endpoint]) == 0
    printed = json.loads(capsys.readouterr().out)
    status, processes = asyncio.run(look())
    for answer in (client.get_status(), status, printed):
        (row,) = [row for row in answer["loaded_models"] if row["name"] == "toy"]
        assert ISO.fullmatch(row["last_used"])
        assert before <= moments.to_seconds(row["last_used"]) <= time.time()
    assert all(ISO.fullmatch(str(row["last_used"])) for row in (*processes, *client.processes()))
    assert main.main(["status", "--endpoint", shared_broker.endpoint]) == 0
    assert " s ago" in capsys.readouterr().out
