"""The demo's second part: a budget that cannot hold what is asked for. It shows which model is evicted for which, and
why, and what a lease holds. PP-OCR and BRISQUE run with their real, published weights.
"""

from __future__ import annotations

import io

from PIL import Image

import zoo
from zoo.demo.scenes import PLATE, degraded, photograph, street_scene
from zoo.demo.stage import Part, Stage, brief, expect, keep, say, title


def real_weights(stage: Stage) -> None:
    title("real weights: PP-OCR reads a plate, BRISQUE judges pictures")
    street, plate = street_scene()
    text = stage.ask("paddleocr", "street, whole frame", street)
    keep(street, "street.png")  # the README reads this one
    keep(text.draw(street), "street-ocr.png")
    (cropped,) = stage.ask("paddleocr", "street, boxes=[plate]", street, boxes=[plate], mode="line")
    wanted = PLATE.replace(" ", "")
    expect(wanted in text.text and cropped.text == wanted,
           f"the plate says {wanted}, PP-OCR read {text.text!r} and {cropped.text!r}")  # fmt: skip
    pictures = degraded(photograph("bus.jpg"))
    scores = [stage.ask("brisque-quality", f"bus.jpg, {kind}", frame).score for kind, frame in pictures.items()]
    expect(scores == sorted(scores), f"BRISQUE should rank {', '.join(pictures)} in this order, got {scores}")


def stand_ins(stage: Stage) -> None:
    title("stand-ins: real architectures, random weights, meaningless answers")
    zidane = photograph("zidane.jpg")
    faces = stage.ask("yolo11-face", "zidane.jpg", zidane, conf=0.0001, max_det=5)
    keep(faces.draw(zidane), "zidane-face.png")
    encoded = io.BytesIO()
    Image.fromarray(photograph("bus.jpg")).save(encoded, "JPEG")
    stage.ask("pet-classifier", "bus.jpg as JPEG bytes", encoded.getvalue())
    stage.ps()


def no_room(stage: Stage) -> None:
    before, bus = stage.client.get_status(), photograph("bus.jpg")
    budget = before["vram_budget_mb"]
    title(f"no room: {budget:g} MB are the budget; threat-detection-yolov8n wants 300 more, and is CRITICAL")
    real = {row["name"]: row["used_mb"] for row in stage.client.processes()}
    threats = stage.ask("threat-detection-yolov8n", "bus.jpg", bus, conf=0.0001, max_det=5)
    keep(threats.draw(bus), "bus-threat.png")
    charged = stage.client.get_status()["vram_used_mb"]
    say(f"charged before {before['vram_used_mb']:g} MB, now {charged:g} MB of {budget:g} MB")
    for name in real.keys() - stage.loaded():
        say(f"evicted: {name}; its process is gone, and with it {real[name] or 0:.0f} MB of really used memory")
    say("$ zoo explain threat-detection-yolov8n; zoo explain, evictions")
    for line in [*stage.client.explain("threat-detection-yolov8n"), *stage.evictions()]:
        say(f"    {line}")
    expect(stage.evictions() and charged <= budget, "there should have been an eviction, within the budget")
    stage.ps()


def lease(stage: Stage) -> None:
    title("a lease: the model stays while it is held, whatever else is wanted")
    bus = photograph("bus.jpg")
    with stage.client.load("vit-age-classifier") as ages:
        say(f"vit-age-classifier is leased; it says {brief(ages(photograph('zidane.jpg')))}")
        try:
            stage.ask("pet-classifier", "bus.jpg", bus, timeout=1.0)
        except zoo.DeadlineExceeded as e:
            say(f"refused, with its reason: {e}")
        say("unload the CRITICAL one, which has no lease, and there is room:")
        stage.client.unload("threat-detection-yolov8n")
        stage.ask("pet-classifier", "bus.jpg", bus)
        expect("vit-age-classifier" in stage.loaded(), "a leased model was evicted")
        say("vit-age-classifier is still loaded")
    say("one frame to three models at once, written once:")
    for name, answer in stage.client.infer_many(bus, ["paddleocr", "brisque-quality", "no-such-model"]).items():
        say(f"    {name}: {f'{type(answer).__name__}: {answer}' if isinstance(answer, Exception) else brief(answer)}")
    stage.ps()


PART = Part("eviction", 0.5, (real_weights, stand_ins, no_room, lease))
