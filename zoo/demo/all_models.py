"""The demo's first part: what real weights see, then all models load, answer and unload within the budget, and one call
enriches an event.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np

from zoo.demo import real
from zoo.demo.scenes import CAR, FACE, PERSONS, photograph, street_scene
from zoo.demo.stage import WORK, Part, Stage, brief, expect, keep, listed, say, title

DRAWN = (
    "coco-detector",
    "vitpose-small",
    "depth-anything-v2-small",
    "segformer-b2-clothes",
    "vehicle-damage-detection",
)


def questions() -> list[tuple[str, str, Any, dict[str, Any]]]:
    """(model, what it looks at in words, frame, arguments) for each model of config.toml."""
    bus, zidane = photograph("bus.jpg"), photograph("zidane.jpg")
    street, plate = street_scene()
    people: dict[str, Any] = {"boxes": PERSONS}
    walk = [np.ascontiguousarray(bus[:, 4 * i : 600 + 4 * i]) for i in range(8)]  # the camera moves past
    return [
        ("coco-detector", "bus.jpg", bus, {}),
        ("yolov8n-pose", "zidane.jpg", zidane, {}),
        ("threat-detection-yolov8n", "bus.jpg", bus, {}),
        ("fashion-clip", "3 people of bus.jpg", bus, people),
        ("segformer-b2-clothes", "3 people of bus.jpg", bus, people),
        ("vitpose-small", "3 people of bus.jpg", bus, people),
        ("osnet-x0-25", "3 people of bus.jpg", bus, people),
        ("clip-vit-l", "3 people of bus.jpg", bus, people),
        ("depth-anything-v2-small", "bus.jpg", bus, {}),
        ("xclip-base", "8 frames of bus.jpg", walk, {}),
        ("yolo-world-s", "bus.jpg, 2 prompts", bus, {"prompts": ["person", "bus"]}),
        ("yolo11-face", "zidane.jpg", zidane, {}),
        ("vit-age-classifier", "a face of zidane.jpg", zidane, {"boxes": [FACE]}),
        ("vit-gender-classifier", "a face of zidane.jpg", zidane, {"boxes": [FACE]}),
        ("violence-detection", "zidane.jpg", zidane, {}),
        ("weather-classification", "the street", street, {}),
        ("vehicle-segment-classification", "the car", street, {"boxes": [CAR]}),
        ("vehicle-damage-detection", "the car", street, {"boxes": [CAR]}),
        ("yolo11-license-plate", "the car", street, {"boxes": [CAR], "max_det": 6}),
        ("paddleocr", "the plate", street, {"boxes": [plate], "mode": "line"}),
        ("pet-classifier", "chelsea.png, a cat", photograph("chelsea.png"), {}),
        ("brisque-quality", "bus.jpg", bus, {}),
    ]


def stand_ins(stage: Stage) -> None:
    """Made while the broker's nursery imports the model libraries."""
    title("stand-in checkpoints for the rest (random weights, made here)")
    rest = [row["name"] for row in stage.client.models() if row["path"] and row["name"] not in stage.real]
    subprocess.run([sys.executable, "-m", "workers.models.standins", str(WORK / "weights"), *rest], check=True)


def every_model(stage: Stage) -> None:
    rows, asked = [row for row in stage.client.models() if row["name"] != real.FALLS], questions()
    unknown = {row["name"] for row in rows} ^ {model for model, *_ in asked}
    expect(not unknown, f"the demo does not know {sorted(unknown)}")
    declared = sum(row["vram_mb"] for row in rows)
    budget = stage.client.get_status()["vram_budget_mb"]
    title(f"all {len(rows)} models, {declared:,.0f} MB declared, within {budget:,.1f} MB; stand-ins are marked")
    for model, what, frame, how in asked:
        answers = listed(stage.ask(model, what, frame, **how))
        said = all(answer.stand_in == (model not in stage.real) for answer in answers)
        expect(said, f"{model} should say whether it is a stand-in")
        expect(stage.client.get_status()["vram_used_mb"] <= budget, "the budget was exceeded")
        if model in DRAWN:
            for answer in answers:
                frame = answer.draw(frame)
            keep(frame, f"all-{model}.png")
    say(f"{len(stage.evictions())} evictions on the way, such as:")
    for line in stage.evictions()[:3]:
        say(f"    {line}")
    stage.ps()


def one_call(stage: Stage) -> None:
    title("one call: what the right models say about the people in bus.jpg")
    bus = photograph("bus.jpg")
    people: Any = [("person", box, 0.9) for box in PERSONS]
    if "yolov8n-pose" in stage.real:
        people = stage.client.infer("yolov8n-pose", bus)
        say(f"the real yolov8n-pose has found {len(people.boxes)} people; enrich takes its answer as it is")
    event = stage.client.enrich(bus, people, timeout=60)
    say(f"{len(event.timings)} models in {event.seconds:.1f} s, each asked once, with all of its boxes")
    for number, person in enumerate(event.detections):
        say(f"person {number}, {len(person.answers)} answers{':' if not number else ''}")
        for model, answer in person.answers.items() if not number else ():
            say(f"    {model:30} {brief(answer)}")
    say("the frame:")
    for model, answer in event.frame.items():
        say(f"    {model:30} {brief(answer)}")
    for missing in (event.missing, *(person.missing for person in event.detections)):
        expect(not missing, f"models gave no answer: {missing}")
    keep(event.draw(bus), "bus-enriched.png")


def unloaded(stage: Stage) -> None:
    title("and unloaded again")
    stage.pids.update(row["pid"] for row in stage.client.processes() if row["pid"])
    for row in stage.client.processes():
        stage.client.unload(row["name"])
    status = stage.client.get_status()
    say(f"{len(status['loaded_models'])} models are loaded, {status['vram_used_mb']:g} MB are charged")
    expect(not status["loaded_models"] and not status["vram_used_mb"], "something is still loaded")


PART = Part("all-models", 6.8, (stand_ins, real.people, real.falls, real.plate, every_model, one_call, unloaded))
