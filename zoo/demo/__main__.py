"""`python -m zoo.demo` (or `make demo`): the zoo's main job on real photographs, in under two minutes.

Starts brokers as a user would. In the first part the budget cannot hold all the models that are asked for, and it
shows what they answer, which model is evicted for which and why, and what memory came back. In the second, all 21
models of config.toml load, answer and unload within the shipped 6.8 GB, and one call enriches the people in a
photograph. PP-OCR and BRISQUE run with their real, published weights (they come inside their packages). All others are
STAND-INS: small networks with random weights in the form of the published ones, so their answers mean nothing.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import zoo
from zoo.demo import all_models, eviction
from zoo.demo.stage import OUT, WORK, Part, Stage, broker, say, title, write_config


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def play(part: Part) -> bool:
    """One part against a broker of its own; whether it ended well and left no process."""
    with broker(write_config(part.name, part.budget_gb), part.name) as (endpoint, process):
        with zoo.Client(endpoint, timeout=120) as client:
            stage = Stage(endpoint, client)
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
    title("stand-in checkpoints (random weights, made here)")
    subprocess.run([sys.executable, "-m", "workers.models.standins", str(WORK / "weights")], check=True)
    well = [play(part) for part in (eviction.PART, all_models.PART)]
    title("the end")
    say(f"{time.perf_counter() - started:.0f} s in all; pictures in {OUT}/, the brokers' logs in {WORK}/")
    return 0 if all(well) else 1


if __name__ == "__main__":
    sys.exit(main())
