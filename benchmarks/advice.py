"""Does `zoo advise` say what happens? `python -m benchmarks.advice [--quick]`: predictions beside what is measured.

The same requests at the same moments go to a broker once under each of some configurations, and the first run is
recorded. From that recording alone the others are predicted, and each is put beside its measured run. Models only wait
(for their load, for an answer), so that two cores are enough for all of them at once.

Results go to benchmarks/results/advice.json.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from typing import Any, NamedTuple

import numpy as np

import zoo
from benchmarks import common
from zoo import recording
from zoo.advise.advice import Advisor
from zoo.advise.change import Change
from zoo.advise.replay import share
from zoo.cli.recordings import fetched
from zoo.config.schema import MB_PER_GB

SIZES_MB = (30.0, 40.0, 50.0, 60.0, 80.0, 100.0)
WEIGHTS = (8, 5, 3, 2, 1, 1)
LOAD_S_PER_MB = 0.005
BUDGET_MB = 160.0
PER_S = 6.0
FRAME = np.zeros((8, 8, 3), np.uint8)


class Tried(NamedTuple):
    """A configuration: as a change of the first, and as config.toml says it."""

    change: Change
    budget_mb: float = BUDGET_MB
    keys: str = ""
    pinned: str = ""


TRIED = (
    Tried(Change("as recorded")),
    Tried(Change("the same again")),  # what two runs of one configuration differ by
    Tried(Change('eviction = "adaptive"', broker={"eviction": "adaptive"}), keys='eviction = "adaptive"'),
    Tried(Change("budget 110 MB", budget_mb=110.0), 110.0),
    Tried(Change("budget 220 MB", budget_mb=220.0), 220.0),
    Tried(Change("budget 300 MB", budget_mb=300.0), 300.0),
    Tried(Change("m0 pinned", pins=("m0",)), pinned="m0"),
    Tried(Change("idle_seconds = 2", broker={"idle_seconds": 2.0}), keys="idle_seconds = 2"),
)


def config(tried: Tried) -> str:
    models = "".join(
        f'\n[[models]]\nname = "m{i}"\nadapter = "benchmarks.adapters:Waits"\nvram_mb = {mb}\n'
        f"pinned = {str(tried.pinned == f'm{i}').lower()}\noptions = {{ seconds = {mb * LOAD_S_PER_MB} }}\n"
        for i, mb in enumerate(SIZES_MB)
    )
    budget_gb = tried.budget_mb / MB_PER_GB
    return f'[broker]\ndevice = "cpu"\nfootprint = "declared"\nvram_budget_gb = {budget_gb}\n{tried.keys}\n{models}'


def asks(seed: int, seconds: float) -> list[tuple[float, str, float]]:
    """(when, model, seconds of its answer)."""
    draw = random.Random(seed)
    at, found = 0.0, []
    while (at := at + draw.expovariate(PER_S)) < seconds:
        (model,) = draw.choices(range(len(SIZES_MB)), WEIGHTS)
        found.append((at, f"m{model}", draw.uniform(0.005, 0.03)))
    return found


async def drive(endpoint: str, asked: list[tuple[float, str, float]]) -> list[float]:
    """Seconds until each answer; inf for an error."""

    async def one(at: float, model: str, seconds: float) -> float:
        await asyncio.sleep(at)
        begun = time.perf_counter()
        try:
            await client.infer(model, FRAME, seconds=seconds)
        except zoo.ZooError:
            return float("inf")
        return time.perf_counter() - begun

    async with zoo.AsyncClient(endpoint, timeout=30, arena_mb=8) as client:
        return await asyncio.gather(*(one(*ask) for ask in asked))


def measured(tried: Tried, asked: list[tuple[float, str, float]]) -> tuple[dict[str, Any], list[str]]:
    """What was measured, and the recording."""
    with (
        common.folder() as where,
        common.broker(config(tried), where) as (endpoint, _),
        zoo.Client(endpoint, timeout=30) as client,
    ):
        client.record("start")
        took = sorted(asyncio.run(drive(endpoint, asked)))
        lines = list(fetched(client))
    loads = sum(line.startswith('["load"') for line in lines)
    return {"loads": loads, "p50_s": share(took, 0.5), "p95_s": share(took, 0.95)}, lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="15 s of requests instead of 60, nothing is saved")
    arguments = parser.parse_args()
    asked = asks(1, 15.0 if arguments.quick else 60.0)
    first, lines = measured(TRIED[0], asked)
    advisor = Advisor(recording.parse((line.encode() for line in lines), "the recording"))
    rows = [("configuration", "loads: measured", "predicted", "p50 s: measured", "predicted", "p95 s: measured",
             "predicted")]  # fmt: skip
    found: dict[str, Any] = {}
    for tried in TRIED:
        was = first if tried is TRIED[0] else measured(tried, asked)[0]
        summary = advisor.replay(tried.change).figures.summary()
        found[tried.change.label] = {"measured": was, "predicted": {key: summary[key] for key in was}}
        rows.append((tried.change.label, f"{was['loads']}", f"{summary['loads']}", *(
            text for key in ("p50_s", "p95_s") for text in (f"{was[key]:.3f}", f"{summary[key]:.3f}")
        )))  # fmt: skip
    print(common.table(rows))
    print(f"{len(asked)} requests; agreement of the first with its replay: {advisor.agreement()}")
    if not arguments.quick:
        common.save("advice", {"requests": len(asked), "agreement": advisor.agreement(), "configurations": found})


if __name__ == "__main__":
    main()
