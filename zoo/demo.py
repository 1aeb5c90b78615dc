"""`python -m zoo.demo` (or `make demo`): the zoo's main job on real photographs, in under two minutes.

Starts a broker as a user would, with a budget that cannot hold all the models it is then asked for, and shows what
they answer, who is evicted for whom and why, and what memory came back. PP-OCR and BRISQUE run with their real,
published weights (they come inside their packages). The detectors and classifiers are STAND-INS: the real
architectures with small random weights, so their answers mean nothing. `zoo/config.toml` names the published ones.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
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
from PIL import Image, ImageDraw, ImageFilter, ImageFont

import zoo
from zoo.config import find_config

WORK, OUT = Path(".demo"), Path("demo-out")
STAND_INS = ["yolo11-face", "threat-detection-yolov8n", "pet-classifier", "vit-age-classifier"]
BUDGET_GB = 0.5
PLATE = "ZOO 4217"


def say(text: str = "") -> None:
    print(text, flush=True)


def title(text: str) -> None:
    say(f"\n── {text} " + "─" * max(0, 92 - len(text)))


def photograph(name: str) -> np.ndarray:
    """One of the photographs that ultralytics carries. HxWx3 uint8 RGB."""
    found = importlib.util.find_spec("ultralytics")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("the demo needs the model libraries: pip install 'model-zoo[workers]'")
    with Image.open(Path(found.submodule_search_locations[0]) / "assets" / name) as image:
        return np.array(image.convert("RGB"))


def street_scene() -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """A drawn street with a car and its plate, and where the plate is."""
    image = Image.new("RGB", (1280, 720), (170, 200, 225))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 400, 1280, 720), fill=(88, 88, 92))
    for x, width, height, shade in ((0, 260, 300, 150), (270, 200, 360, 120), (900, 380, 330, 140)):
        draw.rectangle((x, 410 - height, x + width, 410), fill=(shade, shade - 15, shade - 30))
        for wx in range(x + 20, x + width - 30, 50):
            for wy in range(430 - height, 380, 60):
                draw.rectangle((wx, wy, wx + 26, wy + 34), fill=(shade + 10, shade - 2, shade - 14))
    draw.rounded_rectangle((430, 330, 870, 610), 46, fill=(150, 24, 28))
    draw.rounded_rectangle((490, 250, 810, 400), 40, fill=(120, 16, 20))
    draw.rounded_rectangle((515, 270, 785, 380), 24, fill=(190, 215, 230))
    for x in (455, 765):
        draw.ellipse((x, 430, x + 80, 490), fill=(250, 240, 200))
        draw.rounded_rectangle((x, 580, x + 80, 660), 20, fill=(20, 20, 20))
    box = (530, 505, 770, 565)
    draw.rounded_rectangle(box, 10, fill=(250, 250, 250), outline=(20, 20, 20), width=3)
    font = ImageFont.load_default(size=44)
    draw.text(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), PLATE, font=font, fill=(15, 15, 20), anchor="mm")
    return np.array(image), box


def degraded(frame: np.ndarray) -> dict[str, np.ndarray]:
    """The frame as it is, blurred, and with sensor noise."""
    blurred = np.array(Image.fromarray(frame).filter(ImageFilter.GaussianBlur(1.5)))
    noise = np.random.default_rng(0).normal(0, 60, frame.shape)
    return {"sharp": frame, "blurred": blurred, "noisy": np.clip(frame + noise, 0, 255).astype(np.uint8)}


def write_config() -> Path:
    """The shipped configuration with a small budget and the demo's own weights."""
    shipped = find_config()
    if shipped is None:
        raise SystemExit("no config.toml here")
    text = shipped.read_text()
    for old, new in (
        ("vram_budget_gb = 6.8", f"vram_budget_gb = {BUDGET_GB}"),
        ('footprint = "measured"', 'footprint = "declared"'),  # small stand-ins would all fit
        ('weights_dir = "weights"', f'weights_dir = "{(WORK / "weights").resolve()}"'),
    ):
        if old not in text:
            raise SystemExit(f"{shipped} has no line {old!r}; run the demo with the shipped one")
        text = text.replace(old, new)
    path = WORK / "config.toml"
    path.write_text(text)
    return path


@contextlib.contextmanager
def broker(config: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A broker like a user's, in a folder of its own; gone, with all its workers, afterwards."""
    folder = tempfile.mkdtemp(prefix="zoo-demo-")
    endpoint = f"ipc://{folder}/broker"
    with (WORK / "broker.log").open("wb") as log:
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


def keep(frame: np.ndarray, result: Any, name: str, *, stand_in: bool) -> None:
    OUT.mkdir(exist_ok=True)
    picture = Image.fromarray(result.draw(frame))
    if stand_in:
        draw = ImageDraw.Draw(picture)
        draw.rectangle((0, picture.height - 34, picture.width, picture.height), fill=(0, 0, 0))
        text = "STAND-IN: random weights, these boxes mean nothing"
        draw.text((10, picture.height - 29), text, font=ImageFont.load_default(size=20), fill=(255, 210, 60))
    picture.save(OUT / name)
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
        stand_in = "   [STAND-IN weights]" if model in STAND_INS else ""
        say(f"{model:26} {what:22} {took:7.0f} ms  {note:16} {summary(result)}{stand_in}")
        return result


def summary(result: Any) -> str:
    """A result in a few words."""
    if isinstance(result, list):
        return "; ".join(summary(one) for one in result)
    if isinstance(result, zoo.OcrText):
        return f'reads "{result.text}" ({result.score:.2f})'
    if isinstance(result, zoo.Quality):
        return f"{result.score:.1f} of 100 ({result.verdict}; lower is better)"
    if isinstance(result, zoo.Detections):
        best = f", best {result.labels[0]} {result.scores[0]:.2f}" if result.labels else ""
        return f"{len(result.labels)} boxes{best}"
    if isinstance(result, zoo.Classification):
        return f"{result.label} {result.score:.2f}"
    return str(result)


def tour(endpoint: str) -> list[int]:
    """The demo itself. Gives the process ids of every worker it saw."""
    bus, zidane = photograph("bus.jpg"), photograph("zidane.jpg")
    street, plate = street_scene()
    seen: set[int] = set()
    with zoo.Client(endpoint, timeout=120) as client:
        ask = Asking(client)

        def look() -> None:
            seen.update(row["pid"] for row in client.processes() if row["pid"])
            zoo_ps(endpoint)

        title("real weights: PP-OCR reads a plate, BRISQUE judges pictures")
        text = ask("paddleocr", "street, whole frame", street)
        keep(street, text, "street-ocr.png", stand_in=False)
        (cropped,) = ask("paddleocr", "street, boxes=[plate]", street, boxes=[plate], mode="line")
        wanted = PLATE.replace(" ", "")
        if wanted not in text.text or cropped.text != wanted:
            raise SystemExit(f"the plate says {wanted}, PP-OCR read {text.text!r} and {cropped.text!r}")
        scores = {}
        for kind, frame in degraded(bus).items():
            scores[kind] = ask("brisque-quality", f"bus.jpg, {kind}", frame).score
        if not scores["sharp"] < scores["blurred"] or not scores["blurred"] < scores["noisy"]:
            raise SystemExit(f"BRISQUE should rank sharp above blurred above noisy, got {scores}")

        title("stand-ins: real architectures, random weights, meaningless answers")
        keep(zidane, ask("yolo11-face", "zidane.jpg", zidane, conf=0.0001, max_det=5), "zidane-face.png", stand_in=True)
        encoded = io.BytesIO()
        Image.fromarray(bus).save(encoded, "JPEG")
        ask("pet-classifier", "bus.jpg as JPEG bytes", encoded.getvalue())
        look()

        budget = client.get_status()["vram_budget_mb"]
        title(f"no room: {budget:g} MB are the budget; threat-detection-yolov8n wants 300 more, and is CRITICAL")
        before = client.get_status()["vram_used_mb"]
        real = {row["name"]: row["used_mb"] for row in client.processes()}
        threats = ask("threat-detection-yolov8n", "bus.jpg", bus, conf=0.0001, max_det=5)
        keep(bus, threats, "bus-threat.png", stand_in=True)
        status = client.get_status()
        left = {row["name"] for row in status["loaded_models"]}
        say(f"charged before {before:g} MB, now {status['vram_used_mb']:g} MB of {budget:g} MB")
        for name in real.keys() - left:
            say(f"evicted: {name}; its process is gone, and with it {real[name] or 0:.0f} MB of really used memory")
        say("$ zoo explain threat-detection-yolov8n; zoo explain, evictions")
        for line in client.explain("threat-detection-yolov8n"):
            say(f"    {line}")
        evictions = [line for line in client.explain() if "evicted" in line]
        for line in evictions:
            say(f"    {line}")
        if not evictions or status["vram_used_mb"] > budget:
            raise SystemExit("there should have been an eviction, within the budget")
        look()

        title("a lease: the model stays while it is held, whatever else is wanted")
        with client.load("vit-age-classifier") as ages:
            say(f"vit-age-classifier is leased; it says {summary(ages(zidane))} (a stand-in's guess)")
            try:
                ask("pet-classifier", "bus.jpg", bus, timeout=1.0)
            except zoo.DeadlineExceeded as e:
                say(f"refused, with its reason: {e}")
            say("unload the CRITICAL one, which nobody holds, and there is room:")
            client.unload("threat-detection-yolov8n")
            ask("pet-classifier", "bus.jpg", bus)
            kept = "vit-age-classifier" in {row["name"] for row in client.get_status()["loaded_models"]}
            if not kept:
                raise SystemExit("a leased model was evicted")
            say("vit-age-classifier is still loaded")
        answers = client.infer_many(bus, ["paddleocr", "brisque-quality", "no-such-model"])
        say("one frame to three models at once, written once:")
        for name, answer in answers.items():
            say(f"    {name}: {type(answer).__name__ + ': ' if isinstance(answer, Exception) else ''}{summary(answer)}")
        look()
    return sorted(seen)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def main() -> int:
    started = time.perf_counter()
    WORK.mkdir(exist_ok=True)
    title("stand-in checkpoints (random weights, made here)")
    subprocess.run(
        [sys.executable, "-m", "workers.models.standins", str(WORK / "weights"), *STAND_INS],
        check=True,
    )
    with broker(write_config()) as (endpoint, process):
        pids = tour(endpoint)
        process.send_signal(signal.SIGTERM)
        status = process.wait(20)
    title("the end")
    left = [pid for pid in pids if alive(pid)]
    say(f"broker ended with status {status}; of {len(pids)} workers {len(left)} are left")
    say(f"{time.perf_counter() - started:.0f} s in all; pictures in {OUT}/, the broker's log in {WORK}/broker.log")
    return 1 if left or status else 0


if __name__ == "__main__":
    sys.exit(main())
