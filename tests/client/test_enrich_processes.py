"""`zoo.enrich` against a real broker and real workers: chains, failures, deadlines, and nothing left behind."""

from __future__ import annotations

import asyncio
import io
import os
import re
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from tests import support
from tests.client.inside import link, settled, slots
from tests.support import Running, tables, toy, wait_until
from zoo import (
    AsyncClient,
    BrokerUnreachable,
    Client,
    DeadlineExceeded,
    Frame,
    InferenceFailed,
    InvalidInput,
    LoadFailed,
    ModelDisabled,
    ModelUnavailable,
    QueueFull,
    WorkerCrashed,
)
from zoo.client import calls, threads
from zoo.enrichment import Enrichment
from zoo.wire import protocol

Start = Callable[..., Running]
DOC = (Path(__file__).parent.parent.parent / "docs/protocol.md").read_text(encoding="utf-8")

CAR, TRUCK = ("car", (20, 10, 120, 60)), ("truck", (130, 20, 230, 90))
PLATES = ((60, 40, 80, 50), (150, 70, 190, 80))


def street() -> np.ndarray:
    """Two vehicles, each with a bright plate, in noise by which every crop can be told from every other."""
    frame = np.random.default_rng(0).integers(0, 180, (100, 240, 3), np.uint8)
    for x1, y1, x2, y2 in PLATES:
        frame[y1:y2, x1:x2, 0] = 255
    return frame


def crop(frame: np.ndarray, box: tuple[int, ...]) -> np.ndarray:
    return frame[box[1] : box[3], box[0] : box[2]]


def finder(name: str, **keys: Any) -> dict[str, Any]:
    return toy(name, adapter="tests.finder:Finder", **keys)


def rule(*models: str, **keys: Any) -> dict[str, Any]:
    return {"models": list(models), **({} if "after" in keys else {"for": ["*"]}), **keys}


def text(models: list[dict[str, Any]], rules: list[dict[str, Any]], **enrich: Any) -> str:
    head = "".join(f"{key} = {value}\n" for key, value in enrich.items())
    return tables("models", models) + f"[enrich]\n{head}" + tables("enrich.rules", rules)


LOOK, FIND = {"do": "look"}, {"do": "find"}
CHAIN = text(
    [finder(name) for name in ("find", "read", "look", "film", "whole")],
    [
        rule("find", grow=0.1, options=FIND),
        rule("read", after="find", grow=0.05, options=LOOK),
        rule("look", options=LOOK),
        rule("film", on="video", min_frames=2, options=LOOK),
        rule("whole", on="frame", options=LOOK),
    ],
)


@pytest.fixture(scope="module")
def chain() -> Iterator[Running]:
    folder = Path(tempfile.mkdtemp(prefix="zoo-t-", dir="/tmp"))
    running = Running(folder, CHAIN).start()
    yield running
    try:
        running.close()
    finally:
        support.remove(folder)


def check_street(found: Enrichment, frame: np.ndarray) -> None:
    for detection, (_, box), plate in zip(found.detections, (CAR, TRUCK), PLATES, strict=True):
        assert detection.missing == {}
        assert (detection.answers["find"].boxes == [plate]).all()  # in the frame, though a crop was shown
        np.testing.assert_array_equal(detection.answers["look"]["pixels"], crop(frame, box))
        x1, y1, x2, y2 = plate
        seen = (x1 - (x2 - x1) // 20, y1 - 1, x2 + (x2 - x1) // 20, y2 + 1)
        assert tuple(detection.answers["read"]["box"]) == seen
        for answer in detection.answers.values():
            assert answer.request > 0
            assert 0.0 < answer.timings.infer <= answer.timings.total
        np.testing.assert_array_equal(detection.answers["read"]["pixels"], crop(frame, seen))
    np.testing.assert_array_equal(found.frame["whole"]["pixels"], frame)
    assert found.missing == {}


# ---------------------------------------------------------------- what is sent, and what comes back


@pytest.mark.parametrize("kind", ["rgb", "bgr", "png", "frame", "video"])
def test_each_model_sees_its_part_of_the_frame_whatever_form_that_has(chain: Running, kind: str) -> None:
    frame = street()
    with Client(chain.endpoint, timeout=20.0, arena_mb=8) as zoo, zoo.frame(frame.shape) as shared:
        shared.array[:] = frame
        encoded = io.BytesIO()
        Image.fromarray(frame).save(encoded, "PNG")
        sent: Any = {
            "rgb": frame, "bgr": frame[..., ::-1], "png": encoded.getvalue(), "frame": shared,
            "video": [frame + 1, encoded.getvalue(), shared],
        }[kind]  # fmt: skip
        found = zoo.enrich(sent, [CAR, TRUCK], color="bgr" if kind == "bgr" else "rgb")
        check_street(found, frame)
        if kind == "video":
            assert found.frame["film"]["frames"] == 3
            np.testing.assert_array_equal(found.frame["film"]["pixels"], frame + 1)
        else:
            assert "2 frames" in found.skipped["film"]
        assert found.timings.keys() >= {"find", "read", "look", "whole"}
        assert all(0 < seconds <= found.seconds for seconds in found.timings.values())
        del found
        assert slots(zoo) == 1  # the caller's own


@pytest.mark.parametrize("kind", ["nv12", "padded", "gray", "film"])
def test_a_camera_frame_is_enriched_like_any_other(chain: Running, kind: str) -> None:
    """Boxes are pixels of the picture, which is not the shape of its array."""
    y = street()[..., 0]
    nv12 = np.concatenate([np.where(y == 255, 235, y), np.full((50, 240), 128, np.uint8)])
    padded = np.pad(nv12, ((0, 0), (0, 16)))
    frame = np.repeat(y[..., None], 3, axis=2) if kind == "gray" else cv2.cvtColor(nv12, cv2.COLOR_YUV2RGB_NV12)
    sent, how = {
        "nv12": (nv12, {"color": "nv12"}),
        "padded": (padded, {"color": "nv12", "size": (240, 100), "stride": 256}),
        "gray": (y, {"color": "gray"}),
        "film": ([nv12, nv12], {"color": "nv12"}),
    }[kind]
    with Client(chain.endpoint, timeout=20.0, arena_mb=8) as zoo:
        check_street(zoo.enrich(sent, [CAR, TRUCK], **how), frame)
        assert slots(zoo) == 0


def test_the_asynchronous_client_gives_the_same_answer(chain: Running) -> None:
    frames = [street(), street()]

    async def work() -> Enrichment:
        async with AsyncClient(chain.endpoint, timeout=20.0, arena_mb=8) as zoo:
            found = await zoo.enrich(frames, [CAR, TRUCK, ("van", (5, 5, 5, 5)), ("car", (0, 0, 9, 9), 0.1)])
            assert slots(zoo) == 0
            return found

    there = asyncio.run(work())
    with Client(chain.endpoint, timeout=20.0, arena_mb=8) as zoo:
        here = zoo.enrich(frames, [CAR, TRUCK, ("van", (5, 5, 5, 5)), ("car", (0, 0, 9, 9), 0.1)])
    pairs = [found.to_dict() for found in (here, there)]
    for plain in pairs:
        del plain["seconds"]
        assert plain.pop("timings").keys() == {"find", "read", "look", "film", "whole"}
    assert pairs[0] == pairs[1]
    assert isinstance(there.detections[2].missing["look"], InvalidInput)
    assert "score" in there.detections[3].note


def test_tcp_carries_the_frame_inline(far_broker: Start) -> None:
    running = far_broker(CHAIN)
    frame = street()
    check_street(running.start().client().enrich([frame, frame], [CAR, TRUCK]), frame)


def test_the_frame_is_written_once(chain: Running) -> None:
    """There is room for one in the arena."""
    with Client(chain.endpoint, arena_mb=1, timeout=20.0) as zoo:
        found = zoo.enrich(np.zeros((500, 400, 3), np.uint8), [CAR, TRUCK])
        assert found.missing == {}
        assert all(d.missing == {} for d in found.detections)


def test_the_table_comes_from_the_broker_with_the_state_of_each_model(chain: Running) -> None:
    with Client(chain.endpoint, timeout=20.0, arena_mb=8) as zoo:
        zoo.get_model("find")
        table = threads.run(zoo._calls.ask(calls.Call(protocol.Query(0, "enrich"), dict)))
        assert table["models"].keys() == {"find", "read", "look", "film", "whole"}
        assert table["models"]["find"]["state"] == "loaded"
    rows = DOC.split("### `enrich`\n", 1)[1].split("\n#", 1)[0]
    keys = {*table, *(f"rules.{key}" for key in table["rules"][0]), *(f"models.{k}" for k in table["models"]["find"])}
    assert set(re.findall(r"^\| `([a-z_.]+)` \|", rows, re.MULTILINE)) == keys


def test_arguments_are_checked_before_a_message_is_sent(zoo_dir: Path) -> None:
    with Client(f"ipc://{zoo_dir}/b", timeout=0.2) as zoo:
        for how in (
            {"detections": 3},
            {"frame": []},
            {"min_score": 2.0},
            {"timeout": 0},
            {"priority": "URGENT"},
        ):
            with pytest.raises(InvalidInput, match=next(iter(how))):
                zoo.enrich(**{"frame": street(), "detections": [CAR], **how})
        with pytest.raises(BrokerUnreachable):
            zoo.enrich(street(), [CAR])


def test_a_frame_that_cannot_be_sent_is_a_wrong_argument(chain: Running) -> None:
    with Client(chain.endpoint, arena_mb=1, timeout=20.0) as zoo:
        with pytest.raises(InvalidInput, match="color"):
            zoo.enrich(street(), [CAR], color="yuv")
        with pytest.raises(InvalidInput, match="size"):
            zoo.enrich(street()[:99, :, 0], [CAR], color="i420", size=(240, 100))
        with pytest.raises(InvalidInput, match="color: bytes"):
            zoo.enrich(b"\xff\xd8\xff", [CAR], color="nv12")
        with pytest.raises(InvalidInput, match="arena_mb"):
            zoo.enrich(np.zeros((1000, 1000, 3), np.uint8), [CAR])
        with zoo.frame((8, 8, 3)) as frame:
            pass
        with pytest.raises(InvalidInput, match="with"):
            zoo.enrich(frame, [CAR])


def test_a_picture_that_cannot_be_decoded_is_each_models_reason(chain: Running) -> None:
    with Client(chain.endpoint, timeout=20.0, arena_mb=8) as zoo:
        found = zoo.enrich(b"\xff\xd8\xff no picture", [CAR])
        errors = [*found.missing.values(), *found.detections[0].missing.values()]
        assert {type(error) for error in errors} == {InvalidInput}
        assert found.missing.keys() == {"whole"}
        assert found.detections[0].missing.keys() == {"find", "read", "look"}


# ---------------------------------------------------------------- failures


def test_what_fails_takes_nothing_else_along(broker: Start, zoo_dir: Path) -> None:
    broken = ["raises", "refuses", "dies", "gone", "off", "cheese"]
    running = broker(
        text(
            [
                *(finder(name) for name in ("good", "raises", "refuses", "dies", "whole", "after")),
                finder("gone", path=zoo_dir / "none.pt"),
                finder("off", enabled=False),
                finder("cheese", options={"load": "refuse"}),
            ],
            [
                rule("good", options=LOOK),
                rule("raises", options={"do": "raise"}),
                rule("refuses", options={"do": "refuse"}),
                rule("dies", options={"do": "die"}),
                rule("gone", "off", "cheese"),
                rule("after", after="dies"),
                rule("whole", on="frame", options=LOOK),
            ],
        )
    )
    client = running.client()
    found = client.enrich(street(), [CAR, TRUCK])
    for detection in found.detections:
        assert detection.answers.keys() == {"good"}
        assert {model: type(error) for model, error in detection.missing.items()} == {
            "raises": InferenceFailed,
            "refuses": InvalidInput,
            "dies": WorkerCrashed,
            "after": WorkerCrashed,
            "gone": ModelUnavailable,
            "off": ModelDisabled,
            "cheese": LoadFailed,
        }
        assert detection.missing.keys() == {*broken, "after"}
    assert found.frame.keys() == {"whole"}
    assert found.timings.keys() == {"good", "whole", *broken}
    loads = [line for line in client.explain("cheese") if "load failed: not today; no further" in line]
    assert len(loads) == 2  # a failed load may pass by itself, and was tried once more; not as long as time was left
    assert settled(client)
    assert client.get_status()["requests"] == 0


def test_a_load_that_failed_is_tried_again_in_time(broker: Start, zoo_dir: Path) -> None:
    flag = zoo_dir / "flag"
    flag.touch()
    model = finder("a", options={"load": "flag", "flag": str(flag), "then": "raise"})
    client = broker(text([model], [rule("a", options=LOOK)])).client()

    def mend() -> None:
        wait_until(lambda: any("cheese" in line for line in client.explain("a")))
        flag.unlink()

    with ThreadPoolExecutor(1) as pool:
        mended = pool.submit(mend)
        found = client.enrich(street(), [CAR])
        mended.result()
    assert "a" in found.detections[0].answers
    assert found.timings["a"] > 0.9  # the back-off


SLOW = text(
    [finder(name) for name in ("quick", "slow", "queued", "then")],
    [
        rule("quick", options=LOOK),
        rule("slow", options={"do": "sleep", "seconds": 1.5}),
        rule("then", after="slow"),
        rule("queued", options=LOOK, on="frame"),
    ],
    parallel=2,
)


def test_a_deadline_cuts_the_event_short_and_everything_goes_back(broker: Start) -> None:
    running = broker(SLOW)
    client, other = running.client(), running.client()
    for model in ("quick", "slow", "queued"):
        client.get_model(model)
    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(other.infer, "queued", street(), do="sleep", seconds=1.5)
        wait_until(lambda: client.get_status()["running"] == 1)
        started = time.monotonic()
        found = client.enrich(street(), [CAR], timeout=0.5)
        assert time.monotonic() - started < 1.2
        (car,) = found.detections
        assert car.answers.keys() == {"quick"}
        assert {model: type(error) for model, error in car.missing.items()} == {
            "slow": DeadlineExceeded,
            "then": DeadlineExceeded,
        }
        assert isinstance(found.missing["queued"], DeadlineExceeded)
        assert client.get_status()["requests"] == 1  # the other one's; what was queued is queued no more
        assert slots(client) == 1  # the slow worker still reads it
        busy.result()
    wait_until(lambda: settled(client), what="the slot is given back")


def test_what_was_not_asked_in_time_is_missing_too(broker: Start) -> None:
    models = [finder(name) for name in "abc"]
    rules = [rule("a", options=LOOK), rule("b", options={"do": "sleep", "seconds": 2.5}), rule("c", options=LOOK)]
    client = broker(text(models, rules, parallel=1, timeout=2.0)).client()
    for name in "abc":
        client.get_model(name)
    (car,) = client.enrich(street(), [CAR]).detections
    assert car.answers.keys() == {"a"}
    assert {model: type(error) for model, error in car.missing.items()} == dict.fromkeys("bc", DeadlineExceeded)
    assert "before it was asked" in str(car.missing["c"])
    wait_until(lambda: settled(client))


def test_no_room_for_the_frame_is_a_reason_and_no_exception(broker: Start) -> None:
    client = broker(CHAIN).client(arena_mb=1)
    with client.frame((600_000,)):
        found = client.enrich(np.zeros((500, 400, 3), np.uint8), [CAR], timeout=0.3)
    assert {type(error) for error in found.missing.values()} == {QueueFull}
    assert {type(error) for error in found.detections[0].missing.values()} == {QueueFull}


def test_a_broker_that_dies_in_the_middle_leaves_what_was_there(broker: Start) -> None:
    running = broker(SLOW)
    client, watcher = running.client(), running.client()
    with ThreadPoolExecutor(1) as pool:
        event = pool.submit(client.enrich, street(), [CAR])
        wait_until(lambda: any(r["name"] == "quick" and r["requests"] for r in watcher.processes()))
        wait_until(lambda: any(r["name"] == "slow" and r["inflight"] for r in watcher.processes()))
        running.kill()
        found = event.result(timeout=5.0)
    (car,) = found.detections
    assert car.answers.keys() == {"quick"}
    assert {type(error) for error in car.missing.values()} == {BrokerUnreachable}
    assert slots(client) == 0


# ---------------------------------------------------------------- nothing is left behind


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT means KeyboardInterrupt, also where the tests run in the background of a shell that ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_event_withdraws_its_requests(broker: Start) -> None:
    running = broker(SLOW)
    client = running.client()
    client.get_model("slow")
    watcher = running.client()

    def interrupt() -> None:
        wait_until(lambda: any(row["inflight"] for row in watcher.processes() if row["name"] == "slow"))
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(interrupt)
        with pytest.raises(KeyboardInterrupt):
            client.enrich(street(), [CAR])
        sent.result()
    wait_until(lambda: client.get_status()["requests"] == 0)
    wait_until(lambda: settled(client), what="the slot is given back")


def test_a_cancelled_event_withdraws_its_requests(broker: Start) -> None:
    running = broker(SLOW)

    async def work() -> None:
        async with AsyncClient(running.endpoint, timeout=20.0, arena_mb=8) as zoo:
            await zoo.get_model("slow")
            task = asyncio.create_task(zoo.enrich(street(), [CAR]))
            async with asyncio.timeout(10.0):
                while not any(row["inflight"] for row in await zoo.processes() if row["name"] == "slow"):
                    await asyncio.sleep(0.005)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                while slots(zoo) or (await zoo.get_status())["requests"]:
                    await asyncio.sleep(0.005)

    asyncio.run(work())


def test_no_more_requests_are_under_way_than_the_table_allows(broker: Start) -> None:
    names = "abcde"
    clock = {"do": "clock", "seconds": 0.2}
    client = broker(text([finder(name) for name in names], [rule(*names, options=clock)], parallel=2)).client()
    for name in names:
        client.get_model(name)
    (car,) = client.enrich(street(), [CAR]).detections
    spans = [(answer["from"], answer["to"]) for answer in car.answers.values()]
    assert len(spans) == len(names)
    together = [sum(start <= moment < end for start, end in spans) for moment, _ in spans]
    assert max(together) == 2


def test_hundreds_of_events_leave_nothing_behind(chain: Running) -> None:
    frame = street()
    with Client(chain.endpoint, timeout=20.0, arena_mb=8) as zoo, zoo.frame(frame.shape) as shared:
        shared.array[:] = frame
        for number in range(3):  # every worker has shared its arena then
            check_street(zoo.enrich(_some_form(frame, shared, number), [CAR, TRUCK]), frame)
        before = len(os.listdir("/proc/self/fd"))
        for number in range(200):
            check_street(zoo.enrich(_some_form(frame, shared, number), [CAR, TRUCK]), frame)
        status = zoo.get_status()
        assert (status["leases"], status["requests"]) == (0, 0)
        assert slots(zoo) == 1
        assert link(zoo).exchange.idle
        assert len(os.listdir("/proc/self/fd")) <= before


def _some_form(frame: np.ndarray, shared: Frame, number: int) -> Any:
    return (frame, shared, [frame, shared])[number % 3]
