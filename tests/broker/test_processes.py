"""What the zoo promises about processes, shown with real ones: loads, evictions, crashes, hangs, and the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import zoo
from tests.support import alive, stops_growing, wait_until

FRAME = np.zeros((48, 64, 3), np.uint8)


def toy(name: str, vram_mb: float = 100, **more: object) -> dict[str, object]:
    return {"name": name, "adapter": "tests.toy:Toy", "vram_mb": vram_mb, **more}


def loaded(client: zoo.Client) -> set[str]:
    return {row["name"] for row in client.get_status()["loaded_models"]}


# ---------------------------------------------------------------- loading and evicting


@pytest.mark.parametrize("how", ["fork-and-die", "babble"])
def test_a_worker_that_leaves_its_channel_open_or_fills_it_with_nonsense_is_ended(broker, how: str) -> None:
    running = broker([toy("toy"), toy("other")])
    client = running.client()
    pids = [client.infer(name, FRAME)["pid"] for name in ("toy", "other")]
    before = len(running.processes())
    with pytest.raises(zoo.WorkerCrashed):
        client.infer("toy", FRAME, do=how)
    assert client.infer("other", FRAME)["pid"] == pids[1]
    assert client.infer("toy", FRAME)["pid"] != pids[0]
    wait_until(lambda: len(running.processes()) == before, what="nothing is left of the three that ended")


def test_what_queues_is_run_together_and_each_gets_its_own_answer(broker) -> None:
    running = broker([toy("toy", options={"max_batch": 8})])
    client = running.client()
    frames = [np.full((2, 2), i, np.uint8) for i in range(6)]
    together: list[int] = []

    def ask(i: int) -> int:
        answer = client.infer("toy", frames[i])
        together.append(answer["together"])
        return int(answer["first"][0])

    def bad(_: int) -> str:
        with pytest.raises(zoo.InvalidInput, match="taste"):
            client.infer("toy", frames[0], do="refuse")
        return "refused"

    def rounds() -> bool:
        with ThreadPoolExecutor(8) as threads:
            refused = threads.map(bad, range(20))
            assert list(threads.map(ask, [i % 6 for i in range(120)])) == [i % 6 for i in range(120)]
            assert set(refused) == {"refused"}
        return max(together) > 1

    wait_until(rounds, 60.0, "requests are run together")
    assert max(together) <= 8


def test_the_first_use_loads_the_second_does_not(broker):
    with broker([toy("a")]).client() as client:
        first, second = client.infer("a", FRAME), client.infer("a", FRAME)
        assert first["pid"] == second["pid"]
        assert sum("loading on" in line for line in client.explain("a")) == 1


def test_twenty_simultaneous_first_requests_start_one_process(broker):
    running = broker([toy("a", options={"load_seconds": 0.2})])
    with running.client() as client, ThreadPoolExecutor(20) as pool:
        pids = set(pool.map(lambda _: client.infer("a", FRAME)["pid"], range(20)))
        assert len(pids) == 1
        assert sum("loading on" in line for line in client.explain("a")) == 1


def test_three_models_load_one_after_another_while_a_warm_one_keeps_answering(broker):
    slow = {"load_seconds": 0.5}
    running = broker([toy("warm"), *(toy(f"m{i}", options=slow) for i in range(3))])
    with running.client() as client, ThreadPoolExecutor(3) as pool:
        client.infer("warm", FRAME)
        loads = [pool.submit(client.infer, f"m{i}", FRAME) for i in range(3)]
        waits = []
        while not all(load.done() for load in loads):
            start = time.monotonic()
            client.infer("warm", FRAME)
            waits.append(time.monotonic() - start)
        assert {load.result()["shape"][0] for load in loads} == {48}
        # Serial loads take 1.5 s in all; not one warm answer may have waited for even one of them.
        assert max(waits) < 0.45
        assert len(waits) > 20


def test_the_older_model_goes_and_its_memory_comes_back(broker):
    running = broker([toy("a", 300, options={"ballast_mb": 64}), toy("b", 300)], vram_budget_gb=0.5, device="cpu")
    with running.client() as client:
        pid = client.infer("a", FRAME)["pid"]
        wait_until(lambda: (client.processes()[0]["used_mb"] or 0.0) > 64, what="the model has been measured")
        client.infer("b", FRAME)
        assert not alive(pid)
        assert loaded(client) == {"b"}
        assert client.get_status()["vram_used_mb"] == 300
        assert any("evicted, 300 MB" in line and "88 MB short of 512" in line for line in client.explain("a"))


def test_a_touched_model_stays_and_low_goes_before_critical(broker):
    running = broker(
        [toy("old", 200), toy("touched", 200), toy("new", 200), toy("low", 100, priority="LOW"),
         toy("critical", 200, priority="CRITICAL"), toy("high", 200, priority="HIGH")],
        vram_budget_gb=0.5,
    )  # fmt: skip
    with running.client() as client:
        for name in ("touched", "old", "touched", "new"):
            client.infer(name, FRAME)
        assert loaded(client) == {"touched", "new"}
        for name in ("new", "critical", "low"):
            client.infer(name, FRAME)
        client.infer("new", FRAME)
        assert "critical" in loaded(client)
        client.infer("high", FRAME)
        assert "critical" in loaded(client), "CRITICAL survives a HIGH request"
        assert "high" in loaded(client)


def test_a_model_larger_than_the_budget_is_refused_and_no_model_goes(broker):
    with broker([toy("a", 300), toy("huge", 5000)], vram_budget_gb=0.5).client() as client:
        client.infer("a", FRAME)
        with pytest.raises(zoo.ModelTooLarge, match="512 MB"):
            client.infer("huge", FRAME)
        assert loaded(client) == {"a"}


def test_all_leased_waits_and_gets_the_room_when_a_lease_ends(broker):
    with broker([toy("a", 300), toy("b", 300)], vram_budget_gb=0.5).client() as client:
        with client.load("a") as outer:
            with pytest.raises(zoo.DeadlineExceeded, match="1 lease"):
                client.infer("b", FRAME, timeout=0.3)
            with client.load("a"):
                pass  # the inner lease ends: the outer still holds
            with pytest.raises(zoo.DeadlineExceeded):
                client.infer("b", FRAME, timeout=0.3)
            assert outer(FRAME)["pid"] == outer(FRAME)["pid"]
            with ThreadPoolExecutor(1) as pool:
                waiting = pool.submit(client.infer, "b", FRAME, timeout=20)
                wait_until(lambda: "b" in client.get_status()["pending_loads"])
                assert loaded(client) == {"a"}
                outer.release()
                assert waiting.result()["shape"] == [48, 64, 3]
        assert loaded(client) == {"b"}


def test_keep_alive_zero_unloads_with_the_last_reference(broker):
    with broker([toy("a")]).client() as client:
        with client.load("a", keep_alive=0) as lease:
            pid = lease(FRAME)["pid"]
            assert loaded(client) == {"a"}
        wait_until(lambda: not alive(pid))
        wait_until(lambda: client.get_status()["vram_used_mb"] == 0)


def test_idle_models_go_recent_and_leased_ones_stay(broker):
    models = [toy("a", idle_seconds=0.3), toy("b", idle_seconds=0.3), toy("c")]
    with broker(models).client() as client, client.load("b"):
        client.infer("a", FRAME)
        client.infer("c", FRAME)
        wait_until(lambda: loaded(client) == {"b", "c"})
        assert any("idle for" in line for line in client.explain("a"))
        assert client.cleanup_idle_models(idle_seconds=0) == ["c"]
        wait_until(lambda: loaded(client) == {"b"})


def test_unload_returns_when_the_memory_is_back_and_refuses_a_leased_model(broker):
    with broker([toy("a")]).client() as client:
        pid = client.infer("a", FRAME)["pid"]
        with client.load("a"), pytest.raises(zoo.ModelInUse, match="1 lease"):
            client.unload("a")
        client.pin("a")
        with pytest.raises(zoo.ModelInUse, match="pinned"):
            client.unload("a")
        client.unpin("a")
        assert client.unload("a") is True
        assert not alive(pid)
        assert client.unload("a") is False


# ---------------------------------------------------------------- loads that fail


@pytest.mark.parametrize(
    ("how", "says"),
    [("raise", "made of cheese"), ("refuse", "not today"), ("die", "SIGKILL"), ("hang", "load_timeout")],
)
def test_a_load_that_fails_answers_every_waiter_and_the_next_one_works(broker, zoo_dir, how, says):
    flag = Path(zoo_dir) / "flag"
    flag.touch()
    options = {"load": "flag", "flag": str(flag), "then": how}
    running = broker([toy("a", options=options), toy("other")], load_timeout=1.0 if how == "hang" else 30)
    with running.client() as client, ThreadPoolExecutor(5) as pool:
        calls = [pool.submit(client.infer, "a", FRAME) for _ in range(4)] + [pool.submit(client.load, "a")]
        for call in calls:
            with pytest.raises(zoo.LoadFailed, match=says) as caught:
                call.result(timeout=20)
            assert caught.value.retryable
            assert caught.value.retry_after is not None
        wait_until(lambda: client.get_status()["vram_used_mb"] == 0)
        status = client.get_status()
        assert (status["leases"], status["requests"], status["workers"]) == (0, 0, 0)
        assert client.infer("other", FRAME)["mean"] == 0
        flag.unlink()

        def works() -> bool:
            try:
                return client.infer("a", FRAME)["mean"] == 0
            except zoo.LoadFailed:  # still backing off
                return False

        wait_until(works)


def test_an_adapter_that_does_not_exist_says_so(broker):
    models = [
        {"name": "m", "adapter": "no.such.module:X", "vram_mb": 1},
        {"name": "c", "adapter": "tests.toy:NoSuchClass", "vram_mb": 1},
        {"name": "none", "vram_mb": 1},
        toy("gone", path="nowhere/weights.pt"),
        toy("off", enabled=False),
    ]
    with broker(models).client() as client:
        with pytest.raises(zoo.LoadFailed, match=r"no\.such\.module"):
            client.infer("m", FRAME)
        with pytest.raises(zoo.LoadFailed, match="NoSuchClass"):
            client.infer("c", FRAME)
        with pytest.raises(zoo.ModelUnavailable, match="adapter"):
            client.infer("none", FRAME)
        with pytest.raises(zoo.ModelUnavailable, match=r"nowhere/weights\.pt"):
            client.infer("gone", FRAME)
        with pytest.raises(zoo.ModelDisabled):
            client.infer("off", FRAME)
        with pytest.raises(zoo.ModelNotFound, match="did you mean 'gone'"):
            client.infer("gon", FRAME)


# ---------------------------------------------------------------- crashes and hangs


def test_a_worker_killed_mid_request_is_replaced_and_the_request_answered(broker):
    with broker([toy("a")]).client() as client, ThreadPoolExecutor(1) as pool:
        pid = client.infer("a", FRAME)["pid"]
        call = pool.submit(client.infer, "a", FRAME, do="sleep", seconds=1.0)
        wait_until(lambda: client.processes()[0]["inflight"] == 1)
        os.kill(pid, signal.SIGKILL)
        assert call.result(timeout=20)["pid"] != pid


def test_an_input_that_kills_twice_is_refused_from_then_on_and_others_are_not(broker):
    with broker([toy("a")]).client() as client:
        with pytest.raises(zoo.WorkerCrashed):
            client.infer("a", FRAME, do="die")
        with pytest.raises(zoo.Quarantined):
            client.infer("a", FRAME, do="die")
        pid = client.infer("a", FRAME)["pid"]
        with pytest.raises(zoo.Quarantined):
            client.infer("a", FRAME, do="die")
        assert client.infer("a", FRAME)["pid"] == pid
        assert client.infer("a", FRAME + 1, do="x")["mean"] == 1


def test_an_input_that_kills_once_is_answered(broker, zoo_dir):
    with broker([toy("a")]).client() as client:
        answer = client.infer("a", FRAME, do="die-once", flag=str(Path(zoo_dir) / "died"))
        assert answer["shape"] == [48, 64, 3]


@pytest.mark.parametrize("how", ["hang-python", "hang-gil", "ignore-term"])
def test_a_stuck_worker_is_killed_at_its_deadline_and_others_never_notice(broker, how):
    running = broker([toy("stuck", dispatch_timeout=0.5), toy("other")])
    with running.client() as client, ThreadPoolExecutor(1) as pool:
        pid = client.infer("stuck", FRAME)["pid"]
        other = client.infer("other", FRAME)["pid"]
        call = pool.submit(client.infer, "stuck", FRAME, do=how)
        while not call.done():
            assert client.infer("other", FRAME)["pid"] == other
        with pytest.raises(zoo.WorkerHung, match="dispatch_timeout"):
            call.result()
        wait_until(lambda: not alive(pid))
        assert client.infer("stuck", FRAME)["pid"] != pid
        assert client.get_status()["requests"] == 0


def test_an_input_that_hangs_twice_is_refused_until_the_model_is_unloaded(broker):
    running = broker([toy("stuck", dispatch_timeout=0.5)])
    with running.client() as client:
        for _ in range(2):
            with pytest.raises(zoo.WorkerHung):
                client.infer("stuck", FRAME, do="hang-gil")
        with pytest.raises(zoo.Quarantined, match="not run again"):
            client.infer("stuck", FRAME, do="hang-gil")
        assert client.infer("stuck", FRAME)["shape"] == [48, 64, 3], "others are served"
        client.unload("stuck")
        with pytest.raises(zoo.WorkerHung):
            client.infer("stuck", FRAME, do="hang-gil")


def test_an_adapter_that_raises_fails_its_request_alone(broker):
    with broker([toy("a")]).client() as client:
        pid = client.infer("a", FRAME)["pid"]
        with pytest.raises(zoo.InferenceFailed, match="ValueError: no such animal"):
            client.infer("a", FRAME, do="raise")
        with pytest.raises(zoo.InvalidInput, match="not to my taste"):
            client.infer("a", FRAME, do="refuse")
        assert client.infer("a", FRAME)["pid"] == pid


# ---------------------------------------------------------------- clients that die

DOOMED = """
import sys, threading, numpy as np, zoo
client = zoo.Client(sys.argv[1])
leases = [client.load("a"), client.load("a"), client.load("b")]
frame = client.frame((480, 640, 3))
result = client.infer("b", frame, do="large")
for _ in range(6):
    threading.Thread(target=lambda: client.infer("a", frame, do="sleep", seconds=30), daemon=True).start()
threading.Event().wait(60)
"""


def test_a_client_killed_with_leases_slots_and_work_is_released_at_once(broker):
    running = broker([toy("a", dispatch_timeout=1.5), toy("b")])
    with running.client() as client:
        doomed = subprocess.Popen([sys.executable, "-c", DOOMED, running.endpoint])
        try:
            wait_until(lambda: client.get_status()["requests"] == 6)
            assert client.get_status()["leases"] == 3
        finally:
            doomed.kill()
            doomed.wait()
        wait_until(lambda: client.get_status()["sessions"] == 1)
        status = client.get_status()
        assert (status["leases"], status["requests"]) == (0, 0)
        assert client.unload("b") is True
        wait_until(lambda: client.get_status()["running"] == 0)
        assert client.infer("a", FRAME)["mean"] == 0


# ---------------------------------------------------------------- brokers that die


def test_broker_kill_9_takes_every_worker_with_it_and_a_new_one_serves_the_same_client(broker):
    running = broker([toy("a"), toy("b"), toy("c")])
    client = running.client(timeout=20)
    pids = [client.infer(name, FRAME)["pid"] for name in "abc"]
    errors: list[BaseException] = []

    def under_way() -> None:
        try:
            client.infer("c", FRAME, do="hang-gil")
        except BaseException as e:
            errors.append(e)

    thread = threading.Thread(target=under_way)
    thread.start()
    wait_until(lambda: any(row["inflight"] for row in client.processes()))
    running.kill()
    wait_until(lambda: not any(alive(pid) for pid in pids))
    thread.join(10)
    assert isinstance(errors[0], zoo.BrokerUnreachable)
    assert errors[0].retryable
    running.start()
    assert client.infer("a", FRAME)["pid"] not in pids
    client.close()


def test_sigterm_finishes_what_runs_and_exits_0(broker):
    running = broker([toy("a"), toy("b")], drain_seconds=10)
    with running.client() as client, ThreadPoolExecutor(3) as pool:
        client.infer("a", FRAME)
        calls = [pool.submit(client.infer, "a", FRAME, do="sleep", seconds=0.4) for _ in range(2)]
        wait_until(lambda: client.get_status()["requests"] == 2)
        running.process.send_signal(signal.SIGTERM)
        wait_until(lambda: client.get_status()["stopping"])
        with pytest.raises(zoo.BrokerUnreachable, match="shutting down"):
            client.infer("b", FRAME)
        assert all(call.result()["mean"] == 0 for call in calls)
        assert running.process.wait(10) == 0


def test_a_second_broker_on_the_same_endpoint_says_so_and_leaves_the_first_alone(broker):
    running = broker([toy("a")])
    with running.client() as client:
        client.infer("a", FRAME)
        second = subprocess.run(
            [sys.executable, "-m", "zoo.broker", "--config", str(running.config_path), "--endpoint", running.endpoint],
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        assert second.returncode == 2
        assert str(running.pid) in second.stderr
        assert "already" in second.stderr
        assert client.infer("a", FRAME)["mean"] == 0


# ---------------------------------------------------------------- the long run


def figures(pid: int) -> tuple[int, int, float]:
    status = Path(f"/proc/{pid}/status").read_text()
    threads = int(status.split("Threads:")[1].split()[0])
    rss = int(status.split("VmRSS:")[1].split()[0]) / 1024
    return len(os.listdir(f"/proc/{pid}/fd")), threads, rss


def cycle(running, client, times: int) -> None:
    for _ in range(times):
        client.infer("a", FRAME)
        assert client.unload("a") is True


def test_fifty_cycles_leave_nothing_behind(broker):
    grow_nothing(broker, 10, 50)


@pytest.mark.slow
def test_a_thousand_cycles_leave_nothing_behind(broker):
    grow_nothing(broker, 50, 250)


def grow_nothing(broker, warm_up: int, times: int) -> None:
    running = broker([toy("a")])
    with running.client() as client:
        cycle(running, client, warm_up)
        fds, threads, _ = figures(running.pid)
        mine = len(os.listdir("/proc/self/fd"))
        stops_growing(lambda: figures(running.pid)[2], lambda: cycle(running, client, times), slack=1.0)
        fds_after, threads_after, _ = figures(running.pid)
        assert fds_after <= fds
        assert threads_after <= threads
        assert len(os.listdir("/proc/self/fd")) <= mine
        assert client.get_status()["workers"] == 0


def test_a_broker_that_is_told_to_brings_back_what_was_loaded(broker):
    running = broker([toy("a"), toy("b"), toy("c")], restore=True, state_dir="state")
    client = running.client()
    client.infer("b", FRAME)
    client.infer("a", FRAME)
    client.close()
    running.stop()
    client = running.start().client()
    wait_until(lambda: {m["name"] for m in client.get_status()["loaded_models"]} == {"a", "b"})
    assert client.get_status()["pending_loads"] == []
