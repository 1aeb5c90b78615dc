"""Real requests: a trace of a service that makes pictures, whose base model is asked for with each request.

26,823 requests for 87 models over 24 days. It is `cluster-trace-v2026-GenAI/lora_request_trace.csv` of the public
repository https://github.com/alibaba/clusterdata. The folder there states no licence, so the file is not shipped here:
fetch it, and pass its path to `python -m benchmarks.replay --gentd26 FILE`.

Taken from it are the moments and the models, no more. Sizes, load times and the time that an answer takes are assumed
as for the other traces.
"""

from __future__ import annotations

import csv
import hashlib
import random
from datetime import datetime
from pathlib import Path

from benchmarks.traces import Event, Step, Trace, service_s
from zoo.config.schema import ModelConfig

SHA256 = "263fb88f1095f62d360cf89ded8cfc24fa2c5d111c1b16e7aaa9ccbfc4b37d78"
SOURCE = "https://github.com/alibaba/clusterdata, cluster-trace-v2026-GenAI/lora_request_trace.csv"
FIT = (4, 8, 16)  # models of the mean size that fit the budget
EQUAL_MB = 1000
SMALLEST_MB, LARGEST_MB = 300, 2000
SEED = 1


def read(file: Path) -> list[tuple[float, str]]:
    """Seconds since the first request, and the model, in order.

    Raises:
        ValueError: it is another file than the one that the figures were measured with.
    """
    content = file.read_bytes()
    if (found := hashlib.sha256(content).hexdigest()) != SHA256:
        raise ValueError(f"{file}: its SHA-256 is {found}, not {SHA256}; the trace is {SOURCE}")
    return requests(content.decode())


def requests(text: str) -> list[tuple[float, str]]:
    """See `read`. `text`: the table, with the columns `gmt_create` and `checkpoint_model_version_id`."""
    rows = csv.DictReader(text.splitlines())
    asks = [(datetime.fromisoformat(row["gmt_create"]), row["checkpoint_model_version_id"]) for row in rows]
    asks.sort(key=lambda ask: ask[0])
    return [((at - asks[0][0]).total_seconds(), model) for at, model in asks]


def trace(asks: list[tuple[float, str]], fit: int, *, equal: bool) -> Trace:
    """A budget of `fit` models, of equal sizes or of sizes by lot between the smallest and the largest."""
    draw = random.Random(SEED)
    names = sorted({model for _, model in asks})
    sizes = {n: float(EQUAL_MB) if equal else float(draw.randint(SMALLEST_MB, LARGEST_MB)) for n in names}
    events = [Event(at, (Step(model, service_s(sizes[model], draw)),)) for at, model in asks]
    budget_mb = fit * sum(sizes.values()) / len(sizes)
    models = [ModelConfig(name=n, vram_mb=mb) for n, mb in sizes.items()]
    return Trace(f"GenTD26, {fit} fit{'' if equal else ', by lot'}", models, budget_mb, events)
