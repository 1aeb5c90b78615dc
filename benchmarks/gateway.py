"""What the gateway's doors cost, as ratios within one run.

`python -m benchmarks.gateway [--quick]`. The ways take turns, and each ratio is the median over the turns of the pair's
ratio. The floor of a body is an endpoint of the same framework on the same server that reads it and drops it; that of
Frigate's door a ROUTER that drops what it gets and answers with as many bytes. Of the page: what ten viewers cost the
broker, and what one holds in a browser after a day (`benchmarks/day.py`).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import io
import json
import re
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import zmq
from PIL import Image

import zoo
from benchmarks import common, day

CONFIG = """
[broker]
device = "cpu"
[gateway]
http = "127.0.0.1:0"
[[gateway.frigate]]
endpoint = "ipc://FOLDER/frigate"
models = { "instant.onnx" = "instant" }
[[models]]
name = "peek"
adapter = "benchmarks.adapters:Peek"
vram_mb = 10
[[models]]
name = "instant"
adapter = "benchmarks.adapters:Instant"
vram_mb = 10
"""
SHAPE = (1080, 1920, 3)
SMALL = (480, 640, 3)  # as recorders send
CONNECTIONS = 200
DETECTOR_ANSWER = b'{"shape":[20,6],"dtype":"float32"}'
HEAD = "Inference-Header-Content-Length"

Call = Callable[[], object]


def picture(shape: tuple[int, int, int]) -> np.ndarray:
    """Smooth, with some noise: a JPEG of it has about the size of a camera's."""
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]]
    smooth = np.stack([x * 240 / shape[1], y * 216 / shape[0], x * 160 / shape[1] + y * 90 / shape[0]], axis=-1)
    return (smooth + np.random.default_rng(1).normal(0, 6, shape)).clip(0, 255).astype(np.uint8)


def jpeg(frame: np.ndarray) -> bytes:
    made = io.BytesIO()
    Image.fromarray(frame).save(made, "JPEG", quality=85)
    return made.getvalue()


@contextlib.contextmanager
def serving(*command: str) -> Iterator[int]:
    """A process that says on which port it serves."""
    process = subprocess.Popen([sys.executable, "-m", *command], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        port = next(int(found[1]) for line in process.stderr if (found := re.search(r"http://127.0.0.1:(\d+)", line)))
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def floor() -> None:
    """An endpoint that reads a body and drops it."""
    from litestar import Litestar, Request, post

    from zoo.config.reading import parse_config
    from zoo.gateway import serving
    from zoo.gateway.gateway import Gateway

    @post("/", status_code=200)
    async def drop(request: Request) -> dict[str, int]:
        count = 0
        while True:
            message = await request.receive()
            count += len(message["body"])
            if not message["more_body"]:
                return {"count": count}

    async def serve() -> None:
        serving.app.make = lambda _: Litestar([drop], logging_config=None, openapi_config=None)
        listener = serving.listen(("127.0.0.1", 0))
        print(f"http://127.0.0.1:{listener.getsockname()[1]}", file=sys.stderr, flush=True)
        server = serving.http_server(Gateway(parse_config(CONFIG)))
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: setattr(server, "should_exit", True))
        await server.serve([listener])

    import uvloop

    uvloop.run(serve())


def idle_router(endpoint: str) -> None:
    """A ROUTER that does nothing: it drops the picture and answers."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.bind(endpoint)
        print("http://127.0.0.1:0", file=sys.stderr, flush=True)
        while True:
            identity, *_ = router.recv_multipart(copy=False)
            router.send_multipart([identity, b"", DETECTOR_ANSWER, bytes(480)])


def detecting(context: zmq.Context[zmq.Socket[bytes]], endpoint: str, model: bool) -> Call:
    """A detection as Frigate's detector asks for it, of 320 x 320 pixels."""
    sock = context.socket(zmq.REQ)
    sock.setsockopt(zmq.LINGER, 0)
    sock.connect(endpoint)
    if model:
        sock.send_json({"model_request": True, "model_name": "instant.onnx"})
        assert json.loads(sock.recv())["model_loaded"]
    head = json.dumps({"shape": [1, 320, 320, 3], "dtype": "uint8", "model_type": "yologeneric"}).encode()
    pixels = np.zeros((1, 320, 320, 3), np.uint8)

    def call() -> None:
        sock.send_multipart([head, pixels])
        assert len(sock.recv_multipart()[1]) == 480

    return call


def measure_detector(where: str, client: zoo.Client, turns: int) -> dict[str, float]:
    frame = np.zeros((320, 320, 3), np.uint8)
    with zmq.Context() as context:
        calls: dict[str, Call] = {
            "320x320 to a ROUTER that does nothing": detecting(context, f"ipc://{where}/idle", False),
            "320x320 by ZeroMQ": lambda: client.infer("instant", frame),
            "320x320 by Frigate": detecting(context, f"ipc://{where}/frigate", True),
        }
        times = in_turns(calls, turns, 100)
        context.destroy(linger=0)
    idle, direct, ours = times.values()
    figures = {f"{name} (ms)": statistics.median(values) for name, values in times.items()}
    rows = list(zip(ours, idle, direct, strict=True))
    figures["Frigate / ROUTER (at most 2.5)"] = statistics.median(one / other for one, other, _ in rows)
    figures["Frigate / (ROUTER + ZeroMQ)"] = statistics.median(one / (other + zero) for one, other, zero in rows)
    return figures


def posting(port: int, path: str, body: bytes, headers: dict[str, str]) -> Call:
    connection = http.client.HTTPConnection("127.0.0.1", port)

    def call() -> None:
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        found = answer.read()
        assert answer.status == 200, found

    return call


def kserve(port: int, tensor: dict[str, object], data: bytes) -> Call:
    head = json.dumps({
        "inputs": [{"name": "image", **tensor, "parameters": {"binary_data_size": len(data)}}],
        "parameters": {"binary_data_output": True},
    }).encode()  # fmt: skip
    return posting(port, "/v2/models/peek/infer", head + data, {HEAD: str(len(head))})


def deepstack(port: int, small: bytes) -> Call:
    """As a recorder asks: a form with a confidence and a file."""
    head = (
        '--b\r\nContent-Disposition: form-data; name="min_confidence"\r\n\r\n0.4\r\n'
        '--b\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    )
    form = head.encode() + small + b"\r\n--b--\r\n"
    return posting(port, "/v1/vision/custom/instant", form, {"Content-Type": "multipart/form-data; boundary=b"})


def in_turns(calls: dict[str, Call], turns: int, each: int) -> dict[str, list[float]]:
    """Milliseconds of a call, the median of `each`, per turn."""
    for call in calls.values():
        for _ in range(3):
            call()
    made: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(turns):
        for name, call in calls.items():
            times = []
            for _ in range(each):
                start = time.perf_counter()
                call()
                times.append(time.perf_counter() - start)
            made[name].append(statistics.median(times) * 1e3)
    return made


def keep_alive(port: int) -> int:
    """How many of so many connections, all open at once, are answered twice."""
    opened = [http.client.HTTPConnection("127.0.0.1", port) for _ in range(CONNECTIONS)]
    good = 0
    for _ in range(2):
        good = 0
        for connection in opened:
            connection.request("GET", "/v2/models/peek/ready")
            answer = connection.getresponse()
            answer.read()
            good += answer.status == 200
    for connection in opened:
        connection.close()
    return good


def measure_viewers(seconds: float) -> dict[str, float]:
    """What those who watch the page cost a broker of 22 models, four of them loaded, whose journal is full."""
    models = CONFIG.partition("[[gateway.frigate]]")[0]
    for number in range(22):
        models += f'[[models]]\nname = "m{number}"\nadapter = "benchmarks.adapters:Instant"\nvram_mb = 10\n'
    figures: dict[str, float] = {}
    with common.folder() as where, common.broker(models, where) as (endpoint, pid):
        config = str(Path(where) / "config.toml")
        with (
            serving("zoo.gateway", "--config", config, "--endpoint", endpoint) as port,
            zoo.Client(endpoint) as client,
            contextlib.ExitStack() as pages,
        ):
            for number in range(2000):
                client.infer(f"m{number % 4}", np.zeros((8, 8, 3), np.uint8))
            watched = 0
            for viewers in (0, 1, 10):
                for _ in range(viewers - watched):
                    pages.enter_context(watching(port))
                watched = viewers
                time.sleep(2)
                before, began = common.cpu_seconds(pid), time.monotonic()
                time.sleep(seconds)
                share = (common.cpu_seconds(pid) - before) / (time.monotonic() - began)
                figures[f"broker, {viewers} watch the page (% of a core)"] = 100 * share
    none, _, ten = figures.values()
    figures["ten viewers cost the broker (% of a core, at most 1)"] = ten - none
    return figures


@contextlib.contextmanager
def watching(port: int) -> Iterator[None]:
    """A viewer of the page, who reads what it says."""
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(f"GET /page/live HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
        reader = threading.Thread(target=lambda: [None for _ in iter(lambda: sock.recv(1 << 16), b"")])
        reader.start()
        yield
        sock.shutdown(socket.SHUT_RDWR)
        reader.join()


def measure_page() -> dict[str, float]:
    """What the page of a browser holds after a day. Nothing where there is no Chromium."""
    if day.CHROMIUM is None:
        return {}
    with day.chromium() as browser:
        found = day.shown(browser)
    return {"page's memory after a day (MB, at most 50)": found["heap"], "looks of that day": found["looks"]}


def measure(gateway: int, drop: int, client: zoo.Client, turns: int) -> dict[str, float]:
    frame = picture(SHAPE)
    encoded, raw = jpeg(frame), frame.tobytes()
    small = jpeg(picture(SMALL))
    element = len(encoded).to_bytes(4, "little") + encoded
    calls = {
        "jpeg by ZeroMQ": lambda: client.infer("peek", encoded),
        "jpeg by KServe": kserve(gateway, {"shape": [1], "datatype": "BYTES"}, element),
        "raw by ZeroMQ": lambda: client.infer("peek", frame),
        "raw dropped": posting(drop, "/", raw, {}),
        "raw by KServe": kserve(gateway, {"shape": [*SHAPE], "datatype": "UINT8"}, raw),
        "640x480 jpeg by ZeroMQ": lambda: client.infer("instant", small),
        "640x480 jpeg by DeepStack": deepstack(gateway, small),
    }
    times = in_turns(calls, turns, 10)
    pairs = zip(*times.values(), strict=True)
    ratios = [(kj / zj, kr / (dropped + zr), ds / zs) for zj, kj, zr, dropped, kr, zs, ds in pairs]
    figures = {f"{name} (ms)": statistics.median(values) for name, values in times.items()}
    names = (
        "jpeg: KServe / ZeroMQ (at most 2)", "raw: KServe / (dropped + ZeroMQ) (at most 1.3)",
        "640x480 jpeg: DeepStack / ZeroMQ (at most 2)",
    )  # fmt: skip
    figures |= {name: statistics.median(column) for name, column in zip(names, zip(*ratios, strict=True), strict=True)}
    figures |= {"jpeg (KB)": len(encoded) / 1024, "640x480 jpeg (KB)": len(small) / 1024}
    return figures


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--floor", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--router", metavar="ENDPOINT", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.floor or args.router:
        floor() if args.floor else idle_router(args.router)
        return
    with common.folder() as where, common.broker(CONFIG.replace("FOLDER", where), where) as (endpoint, _):
        config = str(Path(where) / "config.toml")
        with (
            serving("zoo.gateway", "--config", config, "--endpoint", endpoint) as gateway,
            serving("benchmarks.gateway", "--floor") as drop,
            serving("benchmarks.gateway", "--router", f"ipc://{where}/idle"),
            zoo.Client(endpoint) as client,
        ):
            figures = measure(gateway, drop, client, 5 if args.quick else 20)
            figures |= measure_detector(where, client, 5 if args.quick else 20)
            figures[f"of {CONNECTIONS} keep-alive connections answered"] = keep_alive(gateway)
    figures |= measure_viewers(5 if args.quick else 20)
    figures |= measure_page()
    common.save("gateway", figures)
    print(common.table([(name, f"{value:.2f}") for name, value in figures.items()]))


if __name__ == "__main__":
    main()
