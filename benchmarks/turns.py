"""Two models that do not fit together, each with two callers who ask again as soon as they have an answer:
`python -m benchmarks.turns`. The answers per second, as a ratio to those of the same callers with room for both.

A swap costs half a second here, so a policy that always serves the longest wait would do little but load. Results go
to benchmarks/results/turns.json.
"""

from __future__ import annotations

import argparse
import threading
import time

import numpy as np

import zoo
from benchmarks import common

LOAD_S = 0.5
CALLERS = 2  # of each model
BROKER = """[broker]
device = "cpu"
footprint = "declared"
vram_budget_gb = {}
"""
MODEL = """
[[models]]
name = "{}"
adapter = "benchmarks.adapters:SlowToLoad"
vram_mb = 300
options = {{ seconds = {} }}
"""


def serve(budget_gb: float, seconds: float) -> dict[str, float]:
    frame = np.zeros((8, 8, 3), np.uint8)
    answers: list[int] = []
    waits: list[float] = []

    def call(model: str) -> None:
        count, longest = 0, 0.0
        while (begun := time.perf_counter()) < end:
            client.infer(model, frame)
            count += 1
            longest = max(longest, time.perf_counter() - begun)
        answers.append(count)
        waits.append(longest)

    config = BROKER.format(budget_gb) + "".join(MODEL.format(name, LOAD_S) for name in "ab")
    with (
        common.folder() as where,
        common.broker(config, where) as (endpoint, _),
        zoo.Client(endpoint, timeout=30) as client,
    ):
        client.infer("a", frame)
        end = time.perf_counter() + seconds
        callers = [threading.Thread(target=call, args=(name,)) for name in "ab" for _ in range(CALLERS)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        loads = sum("loaded in" in line for line in client.explain())
    return {"answers_per_s": round(sum(answers) / seconds, 1), "loads": loads, "longest_wait_s": round(max(waits), 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each of the two runs")
    seconds = parser.parse_args().seconds
    both, one = serve(1.0, seconds), serve(0.5, seconds)
    ratio = round(one["answers_per_s"] / both["answers_per_s"], 3)
    rows = [("room for", "answers/s", "loads", "longest wait s")]
    rows += [(n, *(str(f[key]) for key in f)) for n, f in (("both", both), ("one", one))]
    print(common.table(rows))
    print(f"\nratio {ratio}; with swaps of {LOAD_S} s and nothing else lost it would be some 0.8")
    common.save("turns", {"seconds": seconds, "both": both, "one": one, "ratio": ratio})


if __name__ == "__main__":
    main()
