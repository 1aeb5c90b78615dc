"""The demo's first part: a budget that cannot hold what is asked for. Who is evicted for whom and why, and what a lease
holds. PP-OCR and BRISQUE run with their real, published weights.
"""

from __future__ import annotations

import io

from PIL import Image

import zoo
from zoo.demo.scenes import PLATE, degraded, photograph, street_scene
from zoo.demo.stage import Asking, keep, say, summary, title, zoo_ps

BUDGET_GB = 0.5


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
        keep(street, "street.png")  # the README reads this one
        keep(text.draw(street), "street-ocr.png")
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
        faces = ask("yolo11-face", "zidane.jpg", zidane, conf=0.0001, max_det=5)
        keep(faces.draw(zidane), "zidane-face.png")
        encoded = io.BytesIO()
        Image.fromarray(bus).save(encoded, "JPEG")
        ask("pet-classifier", "bus.jpg as JPEG bytes", encoded.getvalue())
        look()

        budget = client.get_status()["vram_budget_mb"]
        title(f"no room: {budget:g} MB are the budget; threat-detection-yolov8n wants 300 more, and is CRITICAL")
        before = client.get_status()["vram_used_mb"]
        real = {row["name"]: row["used_mb"] for row in client.processes()}
        threats = ask("threat-detection-yolov8n", "bus.jpg", bus, conf=0.0001, max_det=5)
        keep(threats.draw(bus), "bus-threat.png")
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
