"""Frigate's detectors at the gateway, with a client that does what Frigate's does (`tests/gateway/frigate.py`)."""

from __future__ import annotations

import itertools
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from tests.gateway.frigate import FrigateClient
from tests.gateway.serving import RunningGateway
from tests.support import Running, tables, toy, wait_until
from zoo.config.reading import parse_config
from zoo.errors import ConfigError

EVERY = {"name": "every", "adapter": "tests.gateway.adapter:Every", "vram_mb": 10}


def picture(found: int, side: int = 320) -> np.ndarray:
    """In which the adapter of tests finds so many."""
    made = np.zeros((1, side, side, 3), np.uint8)
    made[0, 0, 0, 0] = found
    return made


class AtFrigate:
    """A broker, its gateway, and clients of its `endpoint`."""

    def __init__(self, running: Running, gateway: RunningGateway, endpoint: str) -> None:
        self.running, self.gateway, self.endpoint = running, gateway, endpoint
        self.clients: list[FrigateClient] = []

    def client(self, model: str = "yolov8n.onnx", **how: Any) -> FrigateClient:
        self.clients.append(FrigateClient(self.endpoint, model, **how))
        return self.clients[-1]

    def leases(self, model: str = "every") -> int:
        rows = self.running.client().processes()
        return sum(row["leases"] for row in rows if row["name"] == model)


@pytest.fixture
def at_frigate(broker: Any, gateway_of: Any) -> Iterator[Callable[..., AtFrigate]]:
    made: list[AtFrigate] = []

    def start(models: list[dict[str, Any]], more: str = "", labels: str = '["dog", "cat"]', **keys: Any) -> AtFrigate:
        running = broker(models, **keys)
        endpoint = f"ipc://{running.folder}/frigate.sock"
        table = (
            f'\n[[gateway.frigate]]\nendpoint = "{endpoint}"\nlabels = {labels}\n'
            f'models = {{ "yolov8n.onnx" = "{models[0]["name"]}"{more} }}\n'
        )
        gateway = gateway_of(running, tables("models", models) + table)
        made.append(AtFrigate(running, gateway, endpoint))
        return made[-1]

    yield start
    for one in made:
        for client in one.clients:
            client.close()


def test_a_detector_gets_its_model_and_rows_in_its_own_numbers(at_frigate: Any) -> None:
    one = at_frigate([EVERY])
    client = one.client()
    assert client.offered() == {
        "model_available": True, "model_loaded": True, "model_name": "yolov8n.onnx", "message": "every is loaded",
    }  # fmt: skip
    rows = client.detect(picture(3, 100))
    assert rows[:3, 0].tolist() == [1, 0, 1]  # cat, dog, cat in this user's labels
    assert rows[:3, 1] == pytest.approx([0.9, 0.7, 0.5])
    assert rows[1, 2:] == pytest.approx([0.02, 0.01, 0.04, 0.03])  # y, x, y, x as shares
    assert not rows[3:].any()
    for number in range(300):
        assert np.count_nonzero(client.detect(picture(number % 5))[:, 1]) == number % 5
    assert (
        'zoo_gateway_requests_total{door="frigate",status="200"} 302.0'
        in one.gateway.ask("GET", "/metrics").body.decode()
    )


def test_tensors_of_either_layout_and_type(at_frigate: Any) -> None:
    client = at_frigate([EVERY]).client()
    assert client.is_ready()
    given = picture(3)
    planes = np.ascontiguousarray(given.transpose(0, 3, 1, 2))
    for tensor in (planes, given.astype(np.float32) / 255, planes.astype(np.float32) / 255, given.astype(np.float32)):
        assert np.count_nonzero(client.detect(tensor)[:, 1]) == 3


def test_a_request_for_a_model_is_held_until_it_is_loaded(at_frigate: Any) -> None:
    client = at_frigate([{**EVERY, "adapter": "tests.gateway.adapter:Slow", "options": {"seconds": 1.0}}]).client()
    started = time.monotonic()
    answer = client.offered()
    assert answer["model_available"]
    assert answer["model_loaded"]
    assert time.monotonic() - started >= 1.0


def test_models_that_cannot_be_had_are_not_available(at_frigate: Any) -> None:
    models = [toy(options={"load": "ok"}), toy("broken", enabled=False)]
    one = at_frigate(models, ', "broken.onnx" = "broken"')
    answer = one.client("other.onnx").offered()
    assert not answer["model_available"]
    assert not answer["model_loaded"]
    assert "has no model 'other.onnx'" in one.gateway.log()
    again = one.client("broken.onnx")
    for _ in range(5):
        answer = again.offered()
        assert not answer["model_available"]
        assert "broken" in answer["message"]
    assert one.gateway.log().count("broken cannot be used by Frigate's") == 1, "not the same over and over"
    answer = one.client().offered()  # no detector
    assert not answer["model_available"]
    assert "toy answers" in answer["message"]


def test_files_of_weights_are_refused(at_frigate: Any) -> None:
    one = at_frigate([EVERY])
    client = one.client()
    (answer,) = client.ask({"model_data": True, "model_name": "../x.onnx"}, b"\x08" * 1_000_000, ms=5000)
    told = json.loads(answer)
    assert (told["model_saved"], told["model_loaded"]) == (False, False)
    assert 'has no model \'../x.onnx\': add { "../x.onnx" = "NAME" }' in one.gateway.log()
    assert client.is_ready()


def test_a_lease_lasts_as_long_as_its_connection(at_frigate: Any) -> None:
    one = at_frigate([EVERY])
    first, second = one.client(), one.client()
    assert first.is_ready()
    assert second.is_ready()
    assert first.is_ready()
    assert one.leases() == 2
    first.close()
    wait_until(lambda: one.leases() == 1, 10.0, "the lease of the one that has gone is given back")
    assert second.detect(picture(2)).any()
    second.close()
    wait_until(lambda: one.leases() == 0, 10.0, "no lease is left")
    one.clients.clear()


def test_a_picture_without_a_request_for_a_model_takes_the_lease(at_frigate: Any) -> None:
    one = at_frigate([EVERY])
    assert one.client().is_ready()
    bare = one.client()
    assert np.count_nonzero(bare.detect(picture(4))[:, 1]) == 4
    assert one.leases() == 2


def test_with_several_models_a_bare_picture_is_not_guessed_at(at_frigate: Any) -> None:
    client = at_frigate([EVERY, {**EVERY, "name": "more"}], ', "more.onnx" = "more"').client()
    with pytest.raises(zmq.Again):
        client.detect(picture(4))
    client.connect()
    assert client.is_ready()
    assert client.detect(picture(4)).any()


def test_a_late_answer_is_none(at_frigate: Any) -> None:
    """And the model that took so long is asked for anew."""
    one = at_frigate([{**EVERY, "adapter": "tests.gateway.adapter:Slow", "options": {"slow": 4, "late": 0.4}}])
    client = one.client(timeout_ms=2000)
    assert client.is_ready()
    with pytest.raises(zmq.Again):
        client.detect(picture(4))
    assert "did not answer within 0.19 s" in one.gateway.log()
    client.connect()
    assert client.is_ready()
    assert np.count_nonzero(client.detect(picture(3))[:, 1]) == 3


WILD: list[list[bytes]] = [
    [b"{"], [b"\xff" * 100], [b"{}"], [b"[]", b""], [b"{}", b""], [b"{}", b"", b"", b""], [b" " * 100_000],
    [b'{"shape":[1,320,320,3],"dtype":"uint8"}', b"short"],
    [b'{"shape":[1,99999999,320,3],"dtype":"uint8"}', b"short"],
    [b'{"shape":[1,-1,-1,3],"dtype":"uint8"}', b"abc"], [b'{"shape":[0,0,0,3],"dtype":"uint8"}', b""],
    [b'{"shape":[1,1,1,3],"dtype":"object"}', b"abc"], [b'{"shape":[1,1,1,3],"dtype":"float32"}', b"\xff" * 12],
    [b'{"model_request":true}'], [b'{"model_request":true,"model_name":7}'], [b'{"shape":"x"}', b""],
    [b'{"shape":[1,1,1,3],"dtype":"float32"}', np.full(3, np.nan, np.float32).tobytes()],
]  # fmt: skip


def test_nothing_that_is_sent_does_harm(at_frigate: Any) -> None:
    one = at_frigate([EVERY])
    client = one.client()
    assert client.is_ready()
    context = zmq.Context()
    for parts in WILD:
        wild = context.socket(zmq.DEALER)
        wild.setsockopt(zmq.LINGER, 0)
        wild.connect(one.endpoint)
        for message in (parts, [b"", *parts], [b"", b"", *parts], [b"no delimiter", *parts]):
            for _ in range(10):
                wild.send_multipart(message)
        assert np.count_nonzero(client.look(picture(2))[:, 1]) == 2
        wild.close()
    context.term()
    assert client.zeros == 0
    assert "Traceback" not in one.gateway.log()


def test_connections_beyond_the_limit_are_ended(at_frigate: Any) -> None:
    one = at_frigate([EVERY])
    good = one.client()
    assert good.is_ready()
    crowd = [one.client() for _ in range(80)]
    wait_until(lambda: "connections already" in one.gateway.log(), 10.0, "the limit is told")
    assert good.detect(picture(1)).any()
    for client in crowd:
        client.close()
    one.clients = [good]
    wait_until(lambda: one.client().is_ready(), 20.0, "there is room again")


def test_after_a_restart_of_the_broker_it_sees_again(at_frigate: Any) -> None:
    one = at_frigate([{**EVERY, "adapter": "tests.gateway.adapter:Slow", "options": {"seconds": 0.5}}])
    client = one.client()
    assert client.is_ready()
    assert client.detect(picture(3)).any()
    one.running.kill()
    loaded: list[float] = []

    def restart() -> None:
        one.running.start()
        zoo = one.running.client()
        wait_until(lambda: zoo.get_status()["loaded_models"], 20.0, "the model is loaded")
        loaded.append(time.monotonic())

    thread = threading.Thread(target=restart)
    thread.start()
    while not (rows := client.look(picture(3))).any():
        pass
    seen = time.monotonic()
    thread.join(30)
    assert np.count_nonzero(rows[:, 1]) == 3
    print(f"seeing again {seen - loaded[0]:.3f} s after the model was loaded, {client.zeros} answers were zeros")
    assert seen - loaded[0] < 5.0
    assert client.zeros <= 3
    wait_until(lambda: one.leases() == 1, 10.0, "it has its lease again")


@pytest.mark.slow
def test_ten_thousand_requests_while_others_are_swapped(at_frigate: Any) -> None:
    others = [{**EVERY, "name": f"other{i}"} for i in range(5)]
    one = at_frigate([EVERY, *others], vram_budget_gb=0.035)
    client = one.client()
    assert client.is_ready()
    stop, swaps = threading.Event(), itertools.count()

    def swap() -> None:
        zoo = one.running.client()
        while not stop.is_set():
            zoo.infer(f"other{next(swaps) % 5}", picture(1)[0])

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        given = picture(3)
        answers = sum(np.count_nonzero(client.look(given)[:, 1]) == 3 for _ in range(10_000))
    finally:
        stop.set()
        thread.join(30)
    print(f"{answers} right answers, {client.zeros} zeros, {next(swaps)} swaps")
    assert (answers, client.zeros) == (10_000, 0)
    assert next(swaps) > 20


def test_beyond_loopback_only_with_trusted_networks() -> None:
    table = (
        '[gateway]\n{}\n[[gateway.frigate]]\nendpoint = "tcp://0.0.0.0:5555"\nmodels = {{ "x.onnx" = "toy" }}\n'
        '[[models]]\nname = "toy"\nadapter = "tests.toy:Toy"\nvram_mb = 10'
    )
    with pytest.raises(ConfigError, match="trusted_networks"):
        parse_config(table.format(""))
    assert parse_config(table.format('trusted_networks = ["10.0.0.0/8"]')).gateway.frigate


@pytest.mark.parametrize("other", ["127.0.0.1", ""])
def test_by_tcp_whose_address_is_trusted(broker: Any, gateway_of: Any, other: str) -> None:
    """And the gateway ends while a detector is connected."""
    running = broker([EVERY])
    text = '\n[[gateway.frigate]]\nendpoint = "tcp://0.0.0.0:*"\nmodels = { "yolov8n.onnx" = "every" }\n'
    gateway = gateway_of(running, tables("models", [EVERY]) + text, trusted_networks=["203.0.113.0/24"])
    served = re.compile(r"detectors are served on tcp://0.0.0.0:(\d+)")
    (port,) = wait_until(lambda: served.findall(gateway.log()), 10.0, "the socket is there")
    address = other or own_address()
    client = FrigateClient(f"tcp://{address}:{port}")
    try:
        if other:
            assert client.is_ready()
            assert np.count_nonzero(client.detect(picture(2))[:, 1]) == 2
        else:
            with pytest.raises(zmq.Again):
                client.ask({"model_request": True, "model_name": "yolov8n.onnx"}, ms=1000)
        gateway.stop()
        gateway.start()
    finally:
        client.close()


def own_address() -> str:
    """Of this machine, for others. Skips the test where it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
            return str(probe.getsockname()[0])
        except OSError:
            pytest.skip("this machine has no address but loopback")


def test_the_folder_of_a_socket_is_made_and_a_socket_that_cannot_be_had_is_told_in_a_sentence(zoo_dir: Path) -> None:
    def table(path: str) -> str:
        return tables("models", [EVERY]) + (
            f'[[gateway.frigate]]\nendpoint = "ipc://{path}"\nmodels = {{ "a.onnx" = "every" }}\n'
        )

    gateway = RunningGateway(zoo_dir, f"ipc://{zoo_dir}/b", table(f"{zoo_dir}/run/frigate.sock"))
    gateway.start()
    assert (zoo_dir / "run").stat().st_mode & 0o777 == 0o700
    gateway.stop()
    gateway.write(table(f"{zoo_dir}/config.toml/frigate.sock"), f"ipc://{zoo_dir}/b")
    (zoo_dir / "config.toml").touch()
    gateway.start(wait=False)
    assert gateway.process.wait(20.0) == 2
    assert f"the folder {zoo_dir}/config.toml is not there and cannot be made" in gateway.log().splitlines()[-1]
    assert "Traceback" not in gateway.log()
