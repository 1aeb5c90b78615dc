"""The demo's second part: all 21 models load, answer and unload within the budget, and one call enriches an event."""

from __future__ import annotations

from typing import Any

import numpy as np

import zoo
from zoo.demo.scenes import CAR, FACE, PERSONS, photograph, street_scene
from zoo.demo.stage import Asking, keep, say, summary, title, zoo_ps

BUDGET_GB = 6.8
REAL = ("paddleocr", "brisque-quality")
DRAWN = ("yolov8n-pose", "vitpose-small", "depth-anything-v2-small", "segformer-b2-clothes", "vehicle-damage-detection")


def questions() -> list[tuple[str, str, Any, dict[str, Any]]]:
    """(model, what it looks at in words, frame, arguments) for each model of config.toml."""
    bus, zidane = photograph("bus.jpg"), photograph("zidane.jpg")
    street, plate = street_scene()
    people: dict[str, Any] = {"boxes": PERSONS}
    walk = [np.ascontiguousarray(bus[:, 4 * i : 600 + 4 * i]) for i in range(8)]  # the camera moves past
    return [
        ("yolov8n-pose", "bus.jpg", bus, {}),
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
        ("vehicle-damage-detection", "the car", street, {"boxes": [CAR], "max_det": 6}),
        ("yolo11-license-plate", "the car", street, {"boxes": [CAR], "max_det": 6}),
        ("paddleocr", "the plate", street, {"boxes": [plate], "mode": "line"}),
        ("pet-classifier", "bus.jpg, cat or dog?", bus, {}),
        ("brisque-quality", "bus.jpg", bus, {}),
    ]


def tour(endpoint: str) -> list[int]:
    """All of them. Gives the process ids of every worker it saw."""
    seen: set[int] = set()
    with zoo.Client(endpoint, timeout=120) as client:
        ask = Asking(client)
        names = {row["name"] for row in client.models()}
        asked = questions()
        if names != {model for model, *_ in asked}:
            raise SystemExit(f"the demo does not know {sorted(names ^ {model for model, *_ in asked})}")
        declared = sum(row["vram_mb"] for row in client.models())
        budget = client.get_status()["vram_budget_mb"]
        title(f"all {len(names)} models, {declared:,.0f} MB declared, within {budget:,.1f} MB; stand-ins are marked")
        for model, what, frame, how in asked:
            answer = ask(model, what, frame, **how)
            for one in answer if isinstance(answer, list) else [answer]:
                if one.stand_in != (model not in REAL):
                    raise SystemExit(f"{model} should say whether it is a stand-in")
            seen.update(row["pid"] for row in client.processes() if row["pid"])
            if client.get_status()["vram_used_mb"] > budget:
                raise SystemExit("the budget was exceeded")
            if model in DRAWN:
                drawn = frame
                for one in answer if isinstance(answer, list) else [answer]:
                    drawn = one.draw(drawn)
                keep(drawn, f"all-{model}.png")
        evictions = [line for line in client.explain() if "evicted" in line]
        say(f"{len(evictions)} evictions on the way, such as:")
        for line in evictions[:3]:
            say(f"    {line}")
        zoo_ps(endpoint)

        title("one call: what the right models say about the people in bus.jpg")
        bus = photograph("bus.jpg")
        event = client.enrich(bus, [("person", box, 0.9) for box in PERSONS], timeout=60)
        say(f"{len(event.timings)} models in {event.seconds:.1f} s, each asked once, with all of its boxes")
        for number, person in enumerate(event.detections):
            say(f"person {number}: " + "; ".join(f"{m}: {summary(a)}" for m, a in person.answers.items()))
        for model, answer in event.frame.items():
            say(f"the frame: {model}: {summary(answer)}")
        for missing in (event.missing, *(person.missing for person in event.detections)):
            for model, error in missing.items():
                raise SystemExit(f"{model} gave no answer: {error}")
        keep(event.draw(bus), "bus-enriched.png")
        seen.update(row["pid"] for row in client.processes() if row["pid"])

        title("and unloaded again")
        for row in client.processes():
            client.unload(row["name"])
        status = client.get_status()
        say(f"{len(status['loaded_models'])} models are loaded, {status['vram_used_mb']:g} MB are charged")
        if status["loaded_models"] or status["vram_used_mb"]:
            raise SystemExit("something is still loaded")
    return sorted(seen)
