"""One request through the zoo, as a ratio to a broker that does nothing (`benchmarks/floor.py`).

`python -m benchmarks.latency [--quick]`. Zoo and floor take turns within one run, and each ratio is the median over
the turns of the pair's ratio, so that a host that slows down slows both.
"""

from __future__ import annotations

import argparse
import mmap
import multiprocessing
import statistics
import sys
import time
from typing import Any

import numpy as np
import zmq

import zoo
from benchmarks import common, floor
from zoo.wire import payload, protocol

MODEL = """
[[models]]
name = "peek"
adapter = "benchmarks.adapters:Peek"
vram_mb = 10
"""
EXTRA = '[[models]]\nname = "m{}"\nadapter = "benchmarks.adapters:Peek"\nvram_mb = 10\n'
SHAPE = (1080, 1920, 3)


def config(models: int) -> str:
    return '[broker]\ndevice = "cpu"\n' + MODEL + "".join(EXTRA.format(i) for i in range(models - 1))


def messages() -> tuple[list[bytes], list[bytes]]:
    """A request and an answer of exactly the zoo's sizes."""
    body = payload.InferBody((payload.FrameRef(1, 1 << 20, SHAPE, "|u1"),))
    request = [protocol.pack(protocol.Infer(100_000, "peek", 30_000, 2, (1,))), payload.pack_request(body)]
    result, _ = payload.pack_result(payload.ResultBody([{"value": 1.5}]), lambda _: None)
    return request, [protocol.pack(protocol.Result(100_000)), result]


class Floor:
    def __init__(self, endpoint: str, request: list[bytes]) -> None:
        self._sock = zmq.Context.instance().socket(zmq.DEALER)
        self._sock.setsockopt(zmq.LINGER, 0)
        self._sock.connect(endpoint)
        self._request = request

    def __call__(self) -> None:
        self._sock.send_multipart(self._request)
        self._sock.recv_multipart()

    def close(self) -> None:
        self._sock.close()


def timed(call: Any, n: int) -> list[float]:
    """Microseconds of n calls."""
    times = []
    for _ in range(n):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e6)
    return times


def memcpy_us(n: int = 50) -> float:
    """One copy of a frame into warm shared pages; private ones are a little faster, being larger pages."""
    source = np.ones(SHAPE, np.uint8)
    target = np.frombuffer(mmap.mmap(-1, source.nbytes), np.uint8).reshape(SHAPE)
    return statistics.median(timed(lambda: np.copyto(target, source), n))


def _load_client(kind: str, endpoint: str, seconds: float, start: Any, out: Any) -> None:
    done = 0
    if kind == "floor":
        call = Floor(endpoint, messages()[0])
        call()
        start.wait()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            call()
            done += 1
    else:
        with zoo.Client(endpoint, arena_mb=8) as client, client.frame(SHAPE) as frame:
            client.infer("peek", frame)
            start.wait()
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                client.infer("peek", frame)
                done += 1
    out.put(done)


def throughput(kind: str, endpoint: str, clients: int, seconds: float) -> float:
    """Requests a second that so many processes get through."""
    context = multiprocessing.get_context("spawn")
    out, start = context.Queue(), context.Barrier(clients)
    processes = [
        context.Process(target=_load_client, args=(kind, endpoint, seconds, start, out)) for _ in range(clients)
    ]
    for p in processes:
        p.start()
    total = sum(out.get(timeout=60) for _ in processes)
    for p in processes:
        p.join()
    return total / seconds


def broker_cpu_us(endpoint: str, pid: int, clients: int, n: int) -> float:
    """Broker CPU per request with so many clients, who take turns."""
    callers = [zoo.Client(endpoint, arena_mb=8) for _ in range(clients)]
    frames = [c.frame(SHAPE) for c in callers]
    try:
        for c, f in zip(callers, frames, strict=True):
            c.infer("peek", f)
        before = common.cpu_seconds(pid)
        for i in range(n):
            callers[i % clients].infer("peek", frames[i % clients])
        return (common.cpu_seconds(pid) - before) / n * 1e6
    finally:
        for c in callers:
            c.close()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    args = parser.parse_args(argv)
    turns, n, load_s = (5, 300, 1.0) if args.quick else (15, 1000, 3.0)
    request, answer = messages()
    rows: list[tuple[str, ...]] = [("figure", "measured", "floor", "ratio", "to reach")]
    figures: dict[str, Any] = {}

    with common.folder() as where, floor.running(where, answer) as (floor_at, _):
        with common.broker(config(21), where) as (zoo_at, pid):
            # what rests, first: the clients below leave nothing behind, but a fresh broker is the honest one
            resident, idle_from = common.resident_mb(pid), common.cpu_seconds(pid)
            time.sleep(3.0)
            idle = (common.cpu_seconds(pid) - idle_from) / 3.0 * 100
            bare = Floor(floor_at, request)
            with zoo.Client(zoo_at) as client, client.frame(SHAPE) as shared:
                own = np.ones(SHAPE, np.uint8)  # written: untouched zeros are all the same page
                pairs: dict[str, list[tuple[float, float]]] = {"a": [], "b": [], "b_apart": []}
                samples: dict[str, list[float]] = {"floor": [], "zoo": []}
                for turn in range(turns + 1):
                    f = timed(bare, n)
                    a = timed(lambda: client.infer("peek", shared), n)
                    b = timed(lambda: client.infer("peek", own), n // 4)
                    apart = timed(lambda: (np.copyto(shared.array, own), client.infer("peek", shared)), n // 4)
                    if turn:  # the first warms up
                        pairs["a"].append((statistics.median(a), statistics.median(f)))
                        pairs["b"].append((statistics.median(b), statistics.median(a) + 1.2 * memcpy_us()))
                        pairs["b_apart"].append((statistics.median(b), statistics.median(apart)))
                        samples["floor"] += f
                        samples["zoo"] += a
            bare.close()
            labels = {
                "a": "frame in the arena, p50 (us)",
                "b": "frame copied in, p50 (us)",
                "b_apart": "the same, to a bare copy and a request in turn",
            }
            goals = {"a": 1.35, "b": 1.0, "b_apart": 1.1}
            for key, found in pairs.items():
                ratio = statistics.median(x / y for x, y in found)
                mine, base = (statistics.median(v) for v in zip(*found, strict=True))
                figures[key] = {"us": mine, "floor_us": base, "ratio": ratio, "goal": goals[key]}
                rows.append((labels[key], f"{mine:.0f}", f"{base:.0f}", f"{ratio:.2f}", f"<= {goals[key]}"))
            ratios = []
            for _ in range(3):
                bare_rate = throughput("floor", floor_at, 4, load_s)
                zoo_rate = throughput("zoo", zoo_at, 4, load_s)
                ratios.append((zoo_rate / bare_rate, zoo_rate, bare_rate))
            ratio, zoo_rate, bare_rate = sorted(ratios)[1]
            figures["c"] = {"per_s": zoo_rate, "floor_per_s": bare_rate, "ratio": ratio, "goal": 0.75}
            rows.append(("four clients (requests/s)", f"{zoo_rate:.0f}", f"{bare_rate:.0f}", f"{ratio:.2f}", ">= 0.75"))
            cpu = {k: [] for k in (1, 64)}  # type: dict[int, list[float]]
            for _ in range(3):
                for clients, seen in cpu.items():
                    seen.append(broker_cpu_us(zoo_at, pid, clients, 2 * n))
            one, many = (statistics.median(cpu[k]) for k in (1, 64))
        with common.broker(config(1000), where) as (zoo_at, pid):
            thousand = statistics.median(broker_cpu_us(zoo_at, pid, 1, 2 * n) for _ in range(3))
    for key, label, value in (
        ("d_clients", "broker CPU/request, 64 clients (us)", many),
        ("d_models", "broker CPU/request, 1,000 models (us)", thousand),
    ):
        figures[key] = {"us": value, "floor_us": one, "ratio": value / one, "goal": 1.3}
        rows.append((label, f"{value:.0f}", f"{one:.0f}", f"{value / one:.2f}", "<= 1.3"))
    figures["resident_mb"], figures["idle_percent"] = resident, idle
    rows.append(("broker resident, 21 models (MB)", f"{resident:.0f}", "", "", "<= 80"))
    rows.append(("broker idle (% of a core)", f"{idle:.2f}", "", "", "<= 1"))
    print(common.table(rows))
    if not args.quick:
        common.save("latency", figures)
        plot(samples)
    return 0


def plot(samples: dict[str, list[float]]) -> None:
    """How the latencies are spread, as a picture beside the JSON."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for name, values in samples.items():
        ordered = np.sort(values)
        axes.plot(ordered, np.linspace(0, 100, len(ordered)), label=name)
    axes.set(xscale="log", xlabel="one request, us", ylabel="percent of requests", title="1080p frame, small answer")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(common.RESULTS / "latency.png", dpi=90)


if __name__ == "__main__":
    sys.exit(main())
