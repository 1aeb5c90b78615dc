"""What the demo's parts share: a broker like a user's, answers in a few words, pictures kept."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import zoo
from zoo.config.schema import find_config

WORK, OUT = Path(".demo"), Path("demo-out")


def say(text: str = "") -> None:
    print(text, flush=True)


def title(text: str) -> None:
    say(f"\n── {text} " + "─" * max(0, 92 - len(text)))


def write_config(name: str, budget_gb: float) -> Path:
    """The shipped configuration with the demo's own weights, and a budget."""
    shipped = find_config()
    if shipped is None:
        raise SystemExit("no config.toml here")
    text = shipped.read_text()
    for old, new in (
        ("vram_budget_gb = 6.8", f"vram_budget_gb = {budget_gb}"),
        ('footprint = "measured"', 'footprint = "declared"'),  # small stand-ins would all fit
        ('weights_dir = "weights"', f'weights_dir = "{(WORK / "weights").resolve()}"'),
    ):
        if old not in text:
            raise SystemExit(f"{shipped} has no line {old!r}; run the demo with the shipped one")
        text = text.replace(old, new)
    path = WORK / f"{name}.toml"
    path.write_text(text)
    return path


@contextlib.contextmanager
def broker(config: Path, name: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A broker like a user's, in a folder of its own; gone, with all its workers, afterwards."""
    folder = tempfile.mkdtemp(prefix="zoo-demo-")
    endpoint = f"ipc://{folder}/broker"
    with (WORK / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "zoo.broker", "--config", str(config), "--endpoint", endpoint], stderr=log
        )
        try:
            yield endpoint, process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
            shutil.rmtree(folder, ignore_errors=True)


def zoo_ps(endpoint: str) -> None:
    say("$ zoo ps")
    subprocess.run([sys.executable, "-m", "zoo.cli", "--endpoint", endpoint, "ps"], check=True)


def keep(painted: np.ndarray, name: str) -> None:
    """Writes a picture. Those of stand-ins' answers say so of themselves."""
    OUT.mkdir(exist_ok=True)
    Image.fromarray(painted).save(OUT / name)
    say(f"    picture: {OUT / name}")


class Asking:
    """Asks, prints the answer with its time, and gives it back."""

    def __init__(self, client: zoo.Client) -> None:
        self._client = client

    def __call__(self, model: str, what: str, frame: Any, **how: Any) -> Any:
        loaded = model in {row["name"] for row in self._client.get_status()["loaded_models"]}
        start = time.perf_counter()
        result = self._client.infer(model, frame, **how)
        took = (time.perf_counter() - start) * 1000
        note = "warm" if loaded else "loaded for this"
        first = result[0] if isinstance(result, list) else result
        stand_in = "   [STAND-IN]" if first.stand_in else ""
        say(f"{model:30} {what:23} {took:7.0f} ms  {note:16} {summary(result)}{stand_in}")
        return result


def summary(result: Any) -> str:
    """A result in a few words."""
    if isinstance(result, list):
        return ", ".join(summary(one) for one in result)
    if isinstance(result, zoo.OcrText):
        return f'reads "{result.text}" ({result.score:.2f})'
    if isinstance(result, zoo.Quality):
        return f"{result.score:.1f} of 100 ({result.verdict}; lower is better)"
    if isinstance(result, zoo.Detections):
        best = f", best {result.labels[0]} {result.scores[0]:.2f}" if result.labels else ""
        return f"{len(result.labels)} boxes{best}"
    if isinstance(result, zoo.Classification | zoo.Action):
        return f"{result.labels[0]} {result.scores[0]:.2f}"
    if isinstance(result, zoo.Keypoints):
        seen = ", ".join(result.postures) or f"{result.points.shape[1]} points each"
        return f"{len(result.points)} with keypoints ({seen})"
    if isinstance(result, zoo.Embedding):
        return f"{result.vector.size} numbers"
    if isinstance(result, zoo.DepthMap):
        return f"depth {result.depth.min():.2f} to {result.depth.max():.2f}"
    if isinstance(result, zoo.Segmentation):
        return f"{len(result.coverage)} kinds of clothes"
    return str(result)
