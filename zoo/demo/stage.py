"""What the demo's parts share: a broker like a user's, answers in a few words, pictures kept."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Set
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

import zoo
from zoo.config.reading import find_config
from zoo.results import typed

WORK, OUT = Path(".demo"), Path("demo-out")
DAMAGE = 'path = "vehicle-damage-detection/best.pt"'


def say(text: str = "") -> None:
    print(text, flush=True)


def title(text: str) -> None:
    say(f"\n── {text} " + "─" * max(0, 92 - len(text)))


def shipped() -> Path:
    """The configuration that the zoo is shipped with."""
    found = find_config()
    assert found is not None, "no config.toml here"
    return found


def write_config(name: str, budget_gb: float, adapted: Callable[[str], str]) -> Path:
    """The shipped configuration with the demo's own weights, and a budget; `adapted` may change more of its text."""
    text = shipped().read_text()
    for old, new in (
        ("vram_budget_gb = 6.8", f"vram_budget_gb = {budget_gb}"),
        ('footprint = "measured"', 'footprint = "declared"'),  # small stand-ins would all fit
        # Random weights see damage everywhere, and hundreds of masks are more than can be sent.
        (f"{DAMAGE}\n", f"{DAMAGE}\noptions = {{ max_det = 6 }}\n"),
        ('weights_dir = "weights"', f'weights_dir = "{(WORK / "weights").resolve()}"'),
    ):
        expect(old in text, f"{shipped()} has no line {old!r}; run the demo with the shipped one")
        text = text.replace(old, new)
    path = WORK / f"{name}.toml"
    path.write_text(adapted(text))
    return path


@contextlib.contextmanager
def broker(config: Path, name: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A broker like a user's, in a folder of its own; gone, with all its workers, afterwards."""
    gone = tempfile.TemporaryDirectory(prefix="zoo-demo-", ignore_cleanup_errors=True)
    with gone as folder, (WORK / f"{name}.log").open("wb") as log:
        endpoint = f"ipc://{folder}/broker"
        command = [sys.executable, "-m", "zoo.broker", "--config", str(config), "--endpoint", endpoint]
        process = subprocess.Popen(command, stderr=log)
        try:
            yield endpoint, process
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def keep(painted: np.ndarray, name: str) -> None:
    """Writes a picture. Those of stand-ins' answers say so of themselves."""
    OUT.mkdir(exist_ok=True)
    Image.fromarray(painted).save(OUT / name)
    say(f"    picture: {OUT / name}")


def expect(condition: object, otherwise: str) -> None:
    """Ends the demo where the zoo does not do what it should."""
    if not condition:
        raise SystemExit(otherwise)


def listed(answer: Any) -> list[Any]:
    """The answers of a request, one for each box."""
    return answer if isinstance(answer, list) else [answer]


class Stage:
    """Asks a broker, and prints what it is asked and answers.

    Attributes:
        client: for everything else. pids: of every worker that ran.
        real: the models that are served with real weights.
    """

    def __init__(self, endpoint: str, client: zoo.Client, real: Set[str]) -> None:
        self.client, self.real = client, real
        self.pids: set[int] = set()
        self._endpoint = endpoint

    def ask(self, model: str, what: str, frame: Any, **how: Any) -> Any:
        """Gives the answer. `what` says in words what the model looks at."""
        note = "warm" if model in self.loaded() else "loaded for this"
        start = time.perf_counter()
        answer = self.client.infer(model, frame, **how)
        took = (time.perf_counter() - start) * 1000
        self.pids.update(row["pid"] for row in self.client.processes() if row["pid"])
        say(f"{model:30} {what:23} {took:7.0f} ms  {note:16} {brief(answer)}")
        return answer

    def loaded(self) -> set[str]:
        """The names of the models that are loaded."""
        return {row["name"] for row in self.client.get_status()["loaded_models"]}

    def evictions(self) -> list[str]:
        """What `zoo explain` tells of evictions so far."""
        return [line for line in self.client.explain() if "evicted" in line]

    def ps(self) -> None:
        say("$ zoo ps")
        subprocess.run([sys.executable, "-m", "zoo.cli", "--endpoint", self._endpoint, "ps"], check=True)


class Part(NamedTuple):
    """A part of the demo: its scenes, one after another, against a broker with that budget."""

    name: str
    budget_gb: float
    scenes: tuple[Callable[[Stage], None], ...]


def brief(answer: Any) -> str:
    """An answer in a few words; of several, the first. It says whether it is that of a stand-in."""
    answers = listed(answer)
    (first, *more), *others = [typed(one).summary() for one in answers]
    said = first + (f" and {len(more)} more" if more else "") + (f"; and {len(others)} boxes more" if others else "")
    return said + ("   [STAND-IN]" if answers[0].stand_in else "")
