"""The metrics port: bounded, and read while everything moves."""

from __future__ import annotations

import http.client
import os
import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.parser import text_string_to_metric_families

from broker import exposition
from broker.exposition import Exposition
from broker.guard import Guard
from broker.latencies import Latencies, Tally
from broker.memory.host_cache import Copies
from broker.metrics import Metrics
from broker.scheduler.capacity.ledger import Device
from broker.scheduler.events import Asked, Deliver, Kind, Reconfigured, SendBatch, SessionClosed
from broker.scheduler.scheduler import Scheduler
from broker.scheduler.state import Model, Peak, Worker
from tests.support import toy, wait_until
from zoo.config.schema import BrokerConfig, ModelConfig
from zoo.errors import ConfigError, InvalidInput, ZooError
from zoo.timings import Timings

FRAME = np.full((6, 8, 3), 9, np.uint8)
Served = tuple[Exposition, int]


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as found:
        return int(found.getsockname()[1])


@pytest.fixture
def served() -> Iterator[tuple[Exposition, int]]:
    registry = CollectorRegistry()
    Gauge("the_answer", "of the test", registry=registry).set(42)
    port = free_port()
    made = Exposition(registry, f"127.0.0.1:{port}")
    yield made, port
    made.close()


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5.0) as page:
        assert page.headers["Content-Type"].startswith("text/plain")
        return str(page.read().decode())


def is_hung_up(sock: socket.socket) -> bool:
    sock.setblocking(False)
    try:
        return not sock.recv(1)
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.slow
def test_five_hundred_idle_connections_keep_no_scrape_out_and_cost_no_thread(served: Served) -> None:
    made, port = served
    before, threads = descriptors(), threading.active_count()
    idle = [socket.create_connection(("127.0.0.1", port), 5.0) for _ in range(500)]
    try:
        assert "the_answer 42.0" in scrape(port)
        wait_until(lambda: len(made.connections) <= exposition.METRICS)
        ours = descriptors() - before - len(idle)
        assert ours <= exposition.METRICS + exposition.BACKLOG
        assert threading.active_count() == threads
        assert is_hung_up(idle[0])
        assert not is_hung_up(idle[-1])
    finally:
        for sock in idle:
            sock.close()
    wait_until(lambda: len(made.connections) == 0)


def test_a_connection_that_does_not_ask_is_closed(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposition, "HEAD_S", 0.05)
    made, port = served
    with closing(socket.create_connection(("127.0.0.1", port), 5.0)) as sock:
        sock.sendall(b"GET /met")
        assert not sock.recv(1)
    wait_until(lambda: len(made.connections) == 0)


def test_one_that_takes_no_answer_is_closed(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposition, "ANSWER_S", 0.05)
    made, port = served
    monkeypatch.setattr(made, "_answer", lambda _: bytes(32 << 20))
    with closing(socket.create_connection(("127.0.0.1", port), 5.0)) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        wait_until(lambda: len(made.connections) == 1 or sock.recv(1, socket.MSG_PEEK))
        wait_until(lambda: len(made.connections) == 0)


@pytest.mark.parametrize("said", [b"\r\n\r\n", b"GET\r\n\r\n", b"\xff\xfe \xfd\r\n\r\n", b"a b c d\r\n\r\n"])
def test_what_is_no_request_is_told_so(served: Served, said: bytes) -> None:
    _, port = served
    with closing(socket.create_connection(("127.0.0.1", port), 5.0)) as sock:
        sock.sendall(said)
        assert sock.recv(100).startswith(b"HTTP/1.1 400 ")
    assert "the_answer 42.0" in scrape(port)


def test_a_request_that_is_too_long_is_cut_off(served: Served) -> None:
    made, port = served
    with closing(socket.create_connection(("127.0.0.1", port), 5.0)) as sock:
        try:
            sock.sendall(b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 100_000)
            assert not sock.recv(1)
        except ConnectionError:
            pass
    wait_until(lambda: len(made.connections) == 0)
    assert "the_answer 42.0" in scrape(port)


def test_methods_and_compression_are_as_prometheus_has_them(served: Served) -> None:
    _, port = served
    for method, headers, status, encoding in (
        ("GET", {}, 200, None), ("GET", {"Accept-Encoding": "gzip"}, 200, "gzip"), ("OPTIONS", {}, 200, None),
        ("POST", {}, 405, None),
    ):  # fmt: skip
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5.0)) as http_port:
            http_port.request(method, "/metrics", headers=headers)
            answer = http_port.getresponse()
            assert (answer.status, answer.headers["Content-Encoding"]) == (status, encoding)


def test_a_port_in_use_is_refused_in_words() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken, pytest.raises(ConfigError, match="cannot listen on"):
        Exposition(CollectorRegistry(), f"127.0.0.1:{taken.getsockname()[1]}")


def models(count: int) -> list[ModelConfig]:
    return [ModelConfig(name=f"m{i}", adapter="tests.toy:Toy", vram_mb=10) for i in range(count)]


@pytest.mark.slow
def test_a_scrape_is_sound_while_models_sessions_and_measurements_come_and_go() -> None:
    config, budgets = BrokerConfig(), {"cpu": 10_000.0}
    scheduler = Scheduler(config, [Device("cpu", "cpu", 10_000.0)], models(60))
    metrics = Metrics(scheduler, Copies(0), Guard(lambda: None), False)
    troubles: list[BaseException] = []
    done = threading.Event()

    def scrapes() -> None:
        try:
            while not done.is_set():
                for family in metrics.registry.collect():
                    assert family.samples is not None
        except BaseException as e:
            troubles.append(e)

    threads = [threading.Thread(target=scrapes) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for turn in range(300):
            now = float(turn)
            scheduler.handle(Reconfigured(config, budgets, models(1 + turn * 7 % 60), set(), []), now)
            for i, model in enumerate(list(scheduler.models.values())):
                model.peaks[f"cuda:{turn % 9}"] = Peak(5.0)
                model.peaks.pop(f"cuda:{(turn + 4) % 9}", None)
                scheduler.evictions[model.name, str(turn)] = 1
                scheduler.handle(Asked(turn * 100 + i, b"s", model.name, Kind.INFER, now + 5.0), now)
            scheduler.handle(SessionClosed(b"s"), now)
            for key in list(scheduler.evictions):
                del scheduler.evictions[key]
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert troubles == []


def test_a_scrape_that_meets_a_change_looks_again_and_keeps_the_last_if_need_be() -> None:
    scheduler = Scheduler(BrokerConfig(), [Device("cpu", "cpu", 100.0)], models(2))
    metrics = Metrics(scheduler, Copies(0), Guard(lambda: None), False)
    assert {"m0", "m1"} == {
        s.labels["model_name"] for f in metrics.collect() if f.name == "zoo_requests" for s in f.samples
    }
    scheduler.models["m1"].shortages = {}  # as if it were half made
    assert [f.name for f in metrics.collect()] == [f.name for f in metrics.collect()]
    assert list(metrics.collect()), "the last sound ones"


Values = dict[tuple[str, ...], float]


def told(port: int) -> Values:
    """By the sample's name and the values of its labels, in the order of their names."""
    families = text_string_to_metric_families(scrape(port))
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_a_scrape_tells_what_was_done(broker) -> None:  # type: ignore[no-untyped-def]
    port = free_port()
    models = [toy(options={"load_seconds": 0.05}), toy("other"), toy("broken", options={"load": "raise"})]
    client = broker(models, metrics=f"127.0.0.1:{port}").client()
    answers = [client.infer("toy", FRAME, do="sleep", seconds=0.02 * n) for n in range(3)]
    answers += client.infer("toy", FRAME, boxes=[(0, 0, 4, 4), (1, 1, 4, 4)])[:1]
    for name, how in (
        ("toy", {"do": "refuse"}), ("toy", {"do": "raise"}), ("toy", {"do": "raise"}), ("broken", {}), ("nothing", {}),
    ):  # fmt: skip
        with pytest.raises(ZooError):
            client.infer(name, FRAME, **how)
    with pytest.raises(InvalidInput):
        client.infer("toy", FRAME, boxes=[(0, 0, 4, 4)] * 2000)
    kept = client.infer("other", FRAME, do="large")
    lease = client.load("other")
    found = told(port)
    for name, times in (
        ("zoo_request_seconds", [answer.timings.total for answer in answers]),
        ("zoo_queue_seconds", [answer.timings.queue for answer in answers]),
        ("zoo_inference_seconds", [answer.timings.infer for answer in answers]),
    ):
        assert found[f"{name}_count", "toy"] == len(answers) == found[f"{name}_bucket", "+Inf", "toy"]
        assert found[f"{name}_sum", "toy"] == pytest.approx(sum(times))
        assert found[f"{name}_bucket", "0.01", "toy"] == sum(seconds <= 0.01 for seconds in times)
        assert found[f"{name}_count", "broken"] == 0
    assert (found["zoo_batch_size_count", "toy"], found["zoo_batch_size_sum", "toy"]) == (8, 8)
    errors = {key[1:]: value for key, value in found.items() if key[0] == "zoo_request_errors_total"}
    assert errors == {
        ("invalid_input", "toy"): 2, ("inference_failed", "toy"): 2, ("load_failed", "broken"): 1,
        ("model_not_found", ""): 1,
    }  # fmt: skip
    assert found["zoo_requests_total", "toy"] == 8
    assert (found["zoo_model_loads_total", "toy"], found["zoo_worker_ends_total", "load_failed", "broken"]) == (1, 1)
    assert found["zoo_model_state", "other", "loaded"] == found["zoo_model_state", "broken", "failed"] == 1
    assert found["zoo_model_state", "other", "unloaded"] == 0
    assert (found["zoo_model_leases", "other"], found["zoo_sessions",], found["zoo_results_in_use",]) == (1, 1, 1)
    assert (found["zoo_arenas", "client"], found["zoo_arena_bytes", "client"]) == (1, 8 << 20)
    assert found["zoo_arenas", "worker"] == 1
    charged = sum(value for key, value in found.items() if key[0] == "zoo_model_charged_bytes")
    assert charged == found["zoo_device_charged_bytes", "cpu"] > 0
    del kept
    lease.release()
    wait_until(lambda: told(port)["zoo_results_in_use",] == 0)


def test_a_crash_and_a_hang_are_counted_by_their_cause(broker) -> None:  # type: ignore[no-untyped-def]
    port = free_port()
    client = broker([toy(dispatch_timeout=0.3)], metrics=f"127.0.0.1:{port}").client()
    for code, how in (("worker_crashed", {"do": "die"}), ("worker_hung", {"do": "sleep", "seconds": 60})):
        with pytest.raises(ZooError) as failed:
            client.infer("toy", FRAME, **how)
        assert failed.value.code == code
    client.infer("toy", FRAME)
    client.unload("toy")
    found = told(port)
    ends = {key[1]: n for key, n in found.items() if key[0] == "zoo_worker_ends_total" and n}
    assert ends == {"crashed": 2, "hung": 1, "unloaded": 1}
    assert (found["zoo_worker_restarts_total", "toy"], found["zoo_worker_crashes_total", "toy"]) == (3, 3)
    assert found["zoo_request_errors_total", "worker_crashed", "toy"] == 1
    assert found["zoo_request_errors_total", "worker_hung", "toy"] == 1


def test_however_many_names_are_asked_for_the_labels_stay_few() -> None:
    scheduler = Scheduler(BrokerConfig(), [Device("cpu", "cpu", 100.0)], models(2))
    metrics = Metrics(scheduler, Copies(0), Guard(lambda: None), False)
    for i in range(500):
        scheduler.handle(Asked(i, b"s", f"nothing-{i}", Kind.INFER, 5.0), 0.0)
    scheduler.handle(Reconfigured(BrokerConfig(), {"cpu": 100.0}, models(1), set(), []), 1.0)
    samples = [s for family in metrics.collect() for s in family.samples]
    assert {s.labels["model_name"] for s in samples if "model_name" in s.labels} == {"m0", ""}
    assert [s.value for s in samples if s.labels == {"model_name": "", "code": "model_not_found"}] == [500]


def test_a_value_at_a_bound_is_below_it_and_the_rest_is_above_all() -> None:
    tally = Tally((1.0, 2.0))
    latencies = Latencies({})
    assert tally.buckets() == [("1.0", 0), ("2.0", 0), ("+Inf", 0)]
    told: list[object] = []
    latencies.delivering(told.append)(Deliver(1, None, 7))  # of a worker that is not known any more
    latencies.sending(told.append)(SendBatch(7, []))
    assert len(told) == 2
    workers = {1: Worker(Model(models(1)[0]))}
    latencies = Latencies(workers)
    for seconds in (0.001, 0.0011, 60.0, 60.1):
        latencies.delivering(told.append)(Deliver(1, None, 1, Timings(total=seconds)))
    buckets = dict(latencies.of("m0").total.buckets())
    assert [buckets[bound] for bound in ("0.001", "0.0025", "30.0", "60.0", "+Inf")] == [1, 2, 2, 3, 4]
    assert latencies.of("m0").total.sum == pytest.approx(120.1021)


def test_the_metrics_of_a_broker_count_lost_lines_and_its_own_errors(broker) -> None:  # type: ignore[no-untyped-def]
    port = free_port()
    broker(metrics=f"127.0.0.1:{port}")
    families = list(text_string_to_metric_families(scrape(port)))
    assert len({f.name for f in families}) == len(families), "each is described once"
    values = {s.name: s.value for f in families for s in f.samples if not s.labels}
    assert (values["zoo_log_lines_dropped_total"], values["zoo_internal_errors_total"]) == (0.0, 0.0)


def test_a_broker_that_cannot_serve_its_metrics_leaves_no_sockets_behind(broker) -> None:  # type: ignore[no-untyped-def]
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        running = broker(metrics=f"127.0.0.1:{taken.getsockname()[1]}", start=False)
        running.start(wait=False)
        assert running.process.wait(timeout=30.0) == 2
    assert "cannot listen on" in running.log()
    assert not [name for name in os.listdir(running.folder) if name == "b" or name.startswith("b.")]
