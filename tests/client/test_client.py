"""What users of `zoo.Client` rely on, against a real broker and real workers."""

from __future__ import annotations

import gc
import io
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from tests.client.inside import driver, link, settled, slots
from tests.support import Running, toy, wait_until
from zoo import (
    BrokerUnreachable,
    Client,
    DeadlineExceeded,
    InferenceFailed,
    InvalidInput,
    LoadFailed,
    ModelDisabled,
    ModelInUse,
    ModelNotFound,
    QueueFull,
    ZooError,
    curve,
)
from zoo.client.exchange import Waiter
from zoo.client.threads import run

Start = Callable[..., Running]
FRAME = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)


@pytest.fixture
def zoo(shared_broker: Running) -> Iterator[Client]:
    with Client(shared_broker.endpoint, timeout=20.0, arena_mb=8) as client:
        yield client


def encoded(kind: str, size: tuple[int, int] = (64, 48)) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(1).integers(0, 255, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


# ---------------------------------------------------------------- what is sent is what arrives


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "float64", "bool", "complex64"])
@pytest.mark.parametrize("shape", [(7,), (3, 5), (4, 5, 3), (2, 3, 4, 5)])
def test_an_array_arrives_as_it_was_sent(zoo: Client, dtype: str, shape: tuple[int, ...]) -> None:
    sent = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    got = zoo.infer("toy", sent, do="echo")["array"]
    assert got.dtype == sent.dtype
    np.testing.assert_array_equal(got, sent)


@pytest.mark.parametrize(
    "view", [FRAME[::2], FRAME[:, ::-1], FRAME.transpose(2, 1, 0), np.asfortranarray(FRAME), FRAME[1:2, 2:3]]
)
def test_a_view_arrives_as_its_values(zoo: Client, view: np.ndarray) -> None:
    np.testing.assert_array_equal(zoo.infer("toy", view, do="echo")["array"], view)


def test_bgr_is_turned_into_rgb(zoo: Client) -> None:
    np.testing.assert_array_equal(zoo.infer("toy", FRAME, color="bgr", do="echo")["array"], FRAME[..., ::-1])
    with pytest.raises(InvalidInput, match="color"):
        zoo.infer("toy", FRAME, color="yuv")


def test_a_list_of_frames_is_a_video(zoo: Client) -> None:
    answer = zoo.infer("toy", [FRAME, FRAME + 1, FRAME + 2], do="echo")
    assert answer["frames"] == 3
    np.testing.assert_array_equal(answer["array"], FRAME)


def test_an_adapter_cannot_write_into_a_frame(zoo: Client) -> None:
    assert zoo.infer("toy", FRAME)["writeable"] is False


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_encoded_images_are_decoded_by_the_worker(zoo: Client, kind: str) -> None:
    raw = encoded(kind)
    got = zoo.infer("toy", raw, do="echo")["array"]
    np.testing.assert_array_equal(got, np.array(Image.open(io.BytesIO(raw)).convert("RGB")))


def test_a_cut_off_jpeg_is_refused_and_the_worker_lives_on(zoo: Client) -> None:
    before = zoo.infer("toy", FRAME)["pid"]
    for raw in (encoded("JPEG")[:-200], b"\xff\xd8\xff" + b"x" * 50, b"hello"):
        with pytest.raises(InvalidInput, match="frame"):
            zoo.infer("toy", raw)
    assert zoo.infer("toy", FRAME)["pid"] == before


def test_boxes_give_one_answer_each(zoo: Client) -> None:
    frame = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    answers = zoo.infer("toy", frame, boxes=[(10, 5, 20, 25), (-3.0, -3.0, 4.5, 4.5), (50, 30, 99, 99)], do="echo")
    for answer, part in zip(answers, (frame[5:25, 10:20], frame[:5, :5], frame[30:, 50:]), strict=True):
        np.testing.assert_array_equal(answer["array"], part)
    assert zoo.infer("toy", frame, boxes=[]) == []


@pytest.mark.parametrize(
    ("boxes", "got"),
    [
        ((1, 2, 3, 4), r"got shape \(4,\); of a single box too, a list"),
        ([(1, 2, 3, 4), (1, 2, 3)], r"got \[\(1, 2, 3, 4\), \(1, 2, 3\)\]"),
        ([{"x1": 1}], r"got \[{'x1': 1}\]"),
        ([None], "got shape"),
        ([(0, 0, 10**400, 5)], "got "),
    ],
)
def test_boxes_of_another_form_are_shown(zoo: Client, boxes: object, got: str) -> None:
    with pytest.raises(InvalidInput, match=rf"^boxes: expected a list of \(x1, y1, x2, y2\), \(n, 4\) numbers, {got}"):
        zoo.infer("toy", FRAME, boxes=boxes)  # type: ignore[arg-type]


def test_boxes_in_shares_of_the_frame_are_refused_with_the_remedy(zoo: Client) -> None:
    shares, frame = [(0.1, 0.2, 0.5, 0.6)], np.zeros((48, 64, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "PNG")
    for given in (frame, [frame], file.getvalue()):
        with pytest.raises(InvalidInput, match=r"toy: boxes: .*the width, 64, and y by the height, 48") as refused:
            zoo.infer("toy", given, boxes=shares)
        assert not refused.value.retryable
    errors = zoo.infer_many(frame, ["toy", "toy2"], boxes=np.array(shares, np.float32))
    assert all(isinstance(error, InvalidInput) and "multiply" in str(error) for error in errors.values())


@pytest.mark.parametrize("boxes", [[(1, 2, 3)], [(5, 5, 5, 9)], [(0, 0, float("nan"), 3)], [(900, 900, 999, 999)], "x"])
def test_a_box_that_makes_no_sense_is_refused_by_name(zoo: Client, boxes: object) -> None:
    with pytest.raises(InvalidInput, match="boxes"):
        zoo.infer("toy", FRAME, boxes=boxes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "frame", [[], b"", np.empty((0, 3)), "a path", object(), np.array(["x"]), None, np.zeros((1,) * 9)]
)
def test_what_is_no_frame_is_refused_by_name(zoo: Client, frame: object) -> None:
    with pytest.raises(InvalidInput, match=r"frame|dtype"):
        zoo.infer("toy", frame)


def test_options_have_to_be_like_json(zoo: Client) -> None:
    for option in (object(), {1, 2j}, FRAME):
        with pytest.raises(InvalidInput, match="options"):
            zoo.infer("toy", FRAME, what=option)
    assert zoo.get_status()["requests"] == 0


@pytest.mark.parametrize(
    "how", [{"timeout": 0}, {"timeout": float("inf")}, {"timeout": "x"}, {"priority": "URGENT"}, {"priority": 9}]
)
def test_arguments_are_checked_before_anything_is_sent(zoo: Client, how: dict[str, object]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(how))):
        zoo.infer("toy", FRAME, **how)  # type: ignore[arg-type]


# ---------------------------------------------------------------- frames in shared memory


def test_one_frame_serves_many_requests_without_being_written_again(zoo: Client) -> None:
    with zoo.frame((480, 640, 3)) as frame:
        for value in range(20):
            frame.array[:] = value
            assert zoo.infer("toy", frame, do="peek")["value"] == value
        assert slots(zoo) == 1
    assert slots(zoo) == 0


def test_a_frame_is_not_usable_after_its_block(zoo: Client) -> None:
    with zoo.frame((4, 4, 3)) as frame:
        frame.array[:] = 7
    with pytest.raises(InvalidInput, match="with"):
        zoo.infer("toy", frame)


def test_a_frame_of_another_client_is_refused(zoo: Client, shared_broker: Running) -> None:
    with (
        Client(shared_broker.endpoint, arena_mb=8) as other,
        other.frame((4, 4, 3)) as frame,
        pytest.raises(InvalidInput),
    ):
        zoo.infer("toy", frame)


def test_a_frame_larger_than_the_arena_is_refused(shared_broker: Running) -> None:
    with Client(shared_broker.endpoint, arena_mb=1) as small:
        with pytest.raises(InvalidInput, match="arena_mb"):
            small.infer("toy", np.zeros((1024, 1024, 3), np.uint8))
        with pytest.raises(InvalidInput, match="arena_mb"), small.frame((1 << 21,)):
            pass
        assert small.infer("toy", FRAME)["shape"] == [4, 5, 3]


def test_a_full_arena_makes_others_wait_for_their_turn(shared_broker: Running) -> None:
    with Client(shared_broker.endpoint, arena_mb=1, timeout=20.0) as small, ThreadPoolExecutor(4) as pool:
        frame = np.zeros(600_000, np.uint8)  # one of them fits, two do not
        answers = list(pool.map(lambda _: small.infer("toy", frame, do="sleep", seconds=0.01)["shape"], range(12)))
        assert answers == [[600_000]] * 12


def test_a_full_arena_is_said_when_time_is_up(shared_broker: Running) -> None:
    with Client(shared_broker.endpoint, arena_mb=1) as small, small.frame((600_000,)):
        with pytest.raises(QueueFull) as failure:
            small.infer("toy", np.zeros(600_000, np.uint8), timeout=0.1)
        assert failure.value.retryable


def test_an_error_names_its_request_so_that_it_can_be_explained(zoo: Client) -> None:
    with pytest.raises(InferenceFailed) as failure:
        zoo.infer("toy", FRAME, do="raise")
    number = failure.value.request
    assert number > 0
    first, *_, last = zoo.explain(number)
    assert f"request {number} came in" in first
    assert "no such animal" in last
    with pytest.raises(InvalidInput, match="nor one of the last"):
        zoo.explain(10**9)


# ---------------------------------------------------------------- many models, many threads


def test_infer_many_gives_each_models_answer_or_its_error(zoo: Client) -> None:
    answers = zoo.infer_many(FRAME, ["toy", "toy2", "broken", "off", "nobody", "toy"])
    assert list(answers) == ["toy", "toy2", "broken", "off", "nobody"] or set(answers) == {
        "toy", "toy2", "broken", "off", "nobody",
    }  # fmt: skip
    assert answers["toy"]["shape"] == answers["toy2"]["shape"] == [4, 5, 3]
    assert answers["toy"]["pid"] != answers["toy2"]["pid"]
    assert isinstance(answers["broken"], LoadFailed)
    assert "cheese" in str(answers["broken"])
    assert isinstance(answers["off"], ModelDisabled)
    assert isinstance(answers["nobody"], ModelNotFound)
    assert zoo.infer_many(FRAME, []) == {}
    with pytest.raises(InvalidInput, match="models"):
        zoo.infer_many(FRAME, "toy")


def test_threads_share_a_client(zoo: Client) -> None:
    def run(number: int) -> None:
        for i in range(50):
            value = (number * 50 + i) % 251
            assert zoo.infer("toy", np.full((32, 32, 3), value, np.uint8), do="peek")["value"] == value

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(run, range(8)))


def test_sockets_of_ended_threads_are_closed(zoo: Client) -> None:
    for _ in range(20):
        thread = threading.Thread(target=zoo.infer, args=("toy", FRAME))
        thread.start()
        thread.join()
    assert len(driver(zoo)._dealers) <= 2


# ---------------------------------------------------------------- large results


def test_large_results_come_through_shared_memory_and_their_slots_go_back(zoo: Client) -> None:
    kept = [zoo.infer("toy", np.full((2, 2, 3), i, np.uint8), do="large", height=256)["map"] for i in range(6)]
    for value in range(200):
        got = zoo.infer("toy", np.full((2, 2, 3), value % 200, np.uint8), do="large", height=1080)["map"]
        assert got.shape == (1080, 1920)
        assert not got.flags.writeable
        assert got[0, 0] == got[-1, -1] == value % 200
        assert not got.flags.owndata  # it lies in the worker's arena
    for i, array in enumerate(kept):
        assert (array == i).all()
    del got, array
    kept.clear()
    gc.collect()


def test_more_large_results_than_the_arena_holds_come_inline(zoo: Client) -> None:
    kept = [zoo.infer("toy", np.full((1, 1, 3), i, np.uint8), do="large", height=540)["map"] for i in range(12)]
    assert [int(a[0, 0]) for a in kept] == list(range(12))


@pytest.mark.parametrize(("how", "field"), [({"height": 22_000}, "frame"), ({"boxes": [(0, 0, 2, 2)] * 25}, "boxes")])
def test_an_answer_that_no_message_carries_is_refused_by_name(zoo: Client, how: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidInput, match=f"{field}: the answer has more than"):
        zoo.infer("toy", FRAME, do="large", **how)
    assert (zoo.infer("toy", FRAME, do="large")["map"] == FRAME[0, 0, 0]).all()


def test_a_large_result_outlives_its_worker_and_its_client(broker: Start) -> None:
    running = broker()
    client = running.client()
    held = client.infer("toy", FRAME + 9, do="large")["map"]
    assert client.unload("toy")
    again = client.infer("toy", FRAME + 5, do="large")["map"]
    client.close()
    assert (held == 9).all()
    assert (again == 5).all()


def test_a_large_result_that_was_not_read_yet_survives_its_worker(broker: Start) -> None:
    running = broker()
    client, other = running.client(), running.client()
    client.get_model("toy")
    waiter, deadline = Waiter(), time.monotonic() + 5.0
    request = run(driver(client).store(link(client), deadline)).request(
        FRAME + 3, None, ("rgb", None, None, None), {"do": "large"}
    )
    dealer = driver(client).ready()
    dealer.infer(waiter, "toy", deadline, request, 2)
    wait_until(lambda: other.processes()[0]["requests"] == 1)
    assert other.unload("toy")
    assert link(client).look()  # takes in the news about the worker's arena
    answer = run(driver(client).next(dealer, waiter, deadline, deadline))[1]["map"]
    assert (answer == 3).all()
    del answer
    wait_until(lambda: link(client).look() and not link(client)._mappings, what="the mapping goes with its last result")


# ---------------------------------------------------------------- time


def test_a_deadline_is_kept_while_a_worker_computes(broker: Start) -> None:
    client = broker().client()
    client.infer("toy", FRAME)  # its arena is made
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded) as failure:
        client.infer("toy", FRAME, timeout=0.2, do="sleep", seconds=1.0)
    assert time.monotonic() - started < 0.8
    assert failure.value.retryable
    assert slots(client) == 1  # the worker still reads it
    client.infer("toy", FRAME)
    wait_until(lambda: settled(client), what="the slot is given back")


def test_an_interrupted_call_gives_its_slot_back(broker: Start) -> None:
    client = broker().client()
    client.infer("toy", FRAME)  # its arena is made
    threading.Timer(0.2, signal.raise_signal, [signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        client.infer("toy", FRAME, do="sleep", seconds=0.6)
    wait_until(lambda: settled(client), what="the slot is given back")
    assert client.infer("toy", FRAME)["shape"] == [4, 5, 3]
    assert client.get_status()["requests"] == 0


def test_an_interrupted_load_leaves_no_lease(broker: Start) -> None:
    client = broker([toy(options={"load_seconds": 0.5})]).client()
    threading.Timer(0.2, signal.raise_signal, [signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        client.load("toy")
    client.get_model("toy")
    assert client.get_status()["leases"] == 0


def test_an_adapters_error_is_told(zoo: Client) -> None:
    with pytest.raises(InferenceFailed, match="no such animal"):
        zoo.infer("toy", FRAME, do="raise")
    with pytest.raises(InvalidInput, match="not to my taste"):
        zoo.infer("toy", FRAME, do="refuse")


# ---------------------------------------------------------------- leases


def test_a_leased_model_is_not_unloaded(broker: Start) -> None:
    client = broker().client()
    with client.load("toy") as lease:
        assert lease(FRAME)["shape"] == [4, 5, 3]
        with pytest.raises(ModelInUse):
            client.unload("toy")
        assert client.get_status()["leases"] == 1
    lease.release()
    assert client.get_status()["leases"] == 0
    assert client.unload("toy") is True
    assert client.unload("toy") is False


def test_close_gives_everything_back(broker: Start) -> None:
    running = broker()
    watcher = running.client()
    client = running.client()
    lease = client.load("toy")
    held = client.infer("toy", FRAME, do="large")["map"]
    assert watcher.get_status()["sessions"] == 2
    client.close()
    client.close()
    lease.release()
    status = wait_until(lambda: (s := watcher.get_status())["sessions"] == 1 and s)
    assert (status["leases"], status["requests"]) == (0, 0)
    assert held[0, 0] == 0
    with pytest.raises(BrokerUnreachable) as failure:
        client.get_status()
    assert not failure.value.retryable


def test_close_ends_other_threads_calls(broker: Start) -> None:
    client = broker().client()
    client.get_model("toy")
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.infer, "toy", FRAME, do="sleep", seconds=1.0)
        wait_until(lambda: len(driver(client)._dealers) == 2)
        client.close()
        with pytest.raises(BrokerUnreachable):
            call.result(timeout=5.0)


# ---------------------------------------------------------------- a broker that comes and goes


def test_an_absent_broker_is_reported_within_the_timeout(zoo_dir: object) -> None:
    with Client(f"ipc://{zoo_dir}/b", timeout=0.3) as client:
        started = time.monotonic()
        with pytest.raises(BrokerUnreachable, match="zoo serve") as failure:
            client.get_status()
        assert failure.value.retryable
        assert time.monotonic() - started < 1.0


def test_the_first_call_waits_for_a_broker_that_is_still_starting(broker: Start) -> None:
    running = broker(start=False)
    client = running.client()
    threading.Timer(1.0, running.start, kwargs={"wait": False}).start()
    assert client.infer("toy", FRAME)["shape"] == [4, 5, 3]


def test_a_killed_broker_fails_what_is_under_way_and_its_successor_serves_the_same_client(broker: Start) -> None:
    running = broker()
    client = running.client()
    lease = client.load("toy")
    with client.frame((8, 8, 3)) as frame, ThreadPoolExecutor(2) as pool:
        frame.array[:] = 42
        calls = [pool.submit(client.infer, "toy", frame, do="sleep", seconds=5.0) for _ in range(2)]
        wait_until(lambda: client.get_status()["requests"] == 2)
        running.kill()
        for call in calls:
            with pytest.raises(BrokerUnreachable) as failure:
                call.result(timeout=3.0)
            assert failure.value.retryable
        running.start()
        assert client.infer("toy", frame, do="peek")["value"] == 42
        assert list(pool.map(lambda _: client.infer("toy", frame, do="peek")["value"], range(4))) == [42] * 4
    lease.release()
    assert client.get_status()["leases"] == 0
    assert slots(client) == 0


def test_a_dead_client_holds_nothing(broker: Start) -> None:
    running = broker()
    watcher = running.client()
    pid = os.fork()
    if pid == 0:
        try:
            mine = Client(running.endpoint, arena_mb=8)
            mine.load("toy")
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    os.waitpid(pid, 0)
    wait_until(lambda: watcher.get_status()["leases"] == 0 and watcher.get_status()["sessions"] == 1)


def test_a_fork_cannot_use_its_parents_client_and_does_not_keep_its_session(zoo: Client) -> None:
    zoo.infer("toy", FRAME)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            zoo.get_status()
        except ZooError as e:
            os.write(write, str(e).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    os.close(write)
    assert b"fork" in os.read(read, 1000)
    os.close(read)
    assert zoo.infer("toy", FRAME)["shape"] == [4, 5, 3]


# ---------------------------------------------------------------- tcp


@pytest.fixture
def far(far_broker: Start) -> Running:
    """A broker behind tcp:// and CURVE."""
    running = far_broker()
    return running.start()


def test_tcp_carries_frames_and_large_results_inline(far: Running) -> None:
    client = far.client()
    np.testing.assert_array_equal(client.infer("toy", FRAME, do="echo")["array"], FRAME)
    with client.frame((64, 64, 3)) as frame:
        frame.array[:] = 3
        answer = client.infer("toy", frame, do="large")["map"]
    assert answer.shape == (1080, 1920)
    assert (answer == 3).all()
    with client.load("toy") as lease:
        assert lease(encoded("PNG"))["shape"] == [48, 64, 3]
    watcher = far.client()
    client.close()
    wait_until(lambda: watcher.get_status()["sessions"] == 1, 12.0, "a closed client says goodbye")


def test_tcp_refuses_a_client_whose_key_it_does_not_know(far: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    curve.make_keys(far.folder / "others")
    stranger = far.folder / "others"
    (stranger / "server.key").write_bytes((far.folder / "keys" / "server.key").read_bytes())
    monkeypatch.setenv("ZOO_CURVE_DIR", str(stranger))
    with Client(far.endpoint, timeout=0.5) as client, pytest.raises(BrokerUnreachable, match="key"):
        client.get_status()
    monkeypatch.delenv("ZOO_CURVE_DIR")
    with Client(far.endpoint, timeout=0.5) as client, pytest.raises(ZooError, match="ZOO_CURVE_DIR"):
        client.get_status()


def test_tcp_a_client_outlives_its_broker(far: Running) -> None:
    client = far.client()
    assert client.infer("toy", FRAME)["shape"] == [4, 5, 3]
    far.kill()
    far.start()

    def served() -> bool:
        try:
            return bool(client.infer("toy", FRAME, timeout=2.0)["shape"] == [4, 5, 3])
        except (BrokerUnreachable, DeadlineExceeded) as e:
            if not e.retryable:
                raise
            return False

    wait_until(served)
