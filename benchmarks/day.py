"""A day of cameras behind the page, in virtual time: `python -m benchmarks.day` serves it.

The broker's scheduler, the page's own looks and its own server; callers, devices and workers are simulated
(`broker/simulation/simulation.py`). For the page's memory after a day, and to look at.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from benchmarks import traces
from benchmarks.world import World
from zoo.config.reading import parse_config
from zoo.gateway import serving
from zoo.gateway.gateway import Gateway
from zoo.gateway.page.watch import PageWatch

EVERY_S = 5.0  # of virtual time, between two looks: twelve a minute instead of sixty
MIDNIGHT = 1_795_824_000.0  # of some day, in UTC
TOTAL_MB, OTHERS_MB = 8192.0, 700.0
PATIENCE_MS = 120_000.0  # of what waits for the browser
PAGE = 200  # decisions of one answer


class Day:
    """A day that is played while `play` runs. Answers what the page asks a broker, as `AsyncClient` does.

    Args:
        hours: of it. every_s: between two looks.
    """

    def __init__(self, hours: float, every_s: float, cameras: int = 50) -> None:
        self._every_s = every_s
        trace = traces.cameras("mixed", 3, count=cameras, seconds=hours * traces.HOUR_S)
        self.world = World(trace, {m.name: 0.2 + m.vram_mb / 1000 for m in trace.models})
        self._seconds = hours * traces.HOUR_S
        self.looks = 0

    def clock(self) -> float:
        return MIDNIGHT + self.world.simulation.now

    def play(self, look: Callable[[], None]) -> None:
        """All of it; has `look` called in between."""

        def looked() -> None:
            look()
            self.looks += 1

        for number in range(int(self._seconds / self._every_s)):
            self.world.simulation.at(number * self._every_s, looked)
        self.world.run()

    # ------------------------------------------------------------ what the page asks

    @property
    def _scheduler(self) -> Any:
        return self.world.simulation.scheduler

    async def get_status(self) -> dict[str, Any]:
        status = self._scheduler.status(self.world.simulation.now)
        for device in status["devices"]:
            used = device["used_mb"] + OTHERS_MB
            device |= {"device_used_mb": used, "device_total_mb": TOTAL_MB}
        return {**status, "sessions": 5, "broker": {"pid": 1, "boot": "day"}}

    async def processes(self) -> list[dict[str, Any]]:
        return [{**row, "used_mb": row["vram_mb"]} for row in self._scheduler.processes()]

    async def models(self) -> list[dict[str, Any]]:
        return [
            {
                "name": model.name,
                "category": model.config.category,
                "priority": model.config.priority.name,
                "vram_mb": model.config.vram_mb,
                "measured_mb": None,
                "state": model.state.value,
                "enabled": True,
                "pinned": model.pinned,
                "problem": None,
            }
            for model in self._scheduler.models.values()
        ]

    async def overview(self, *, since: int = 0) -> dict[str, Any]:
        lines, following, more, missed = self._scheduler.decided(since, PAGE)
        rows = [
            {"at": MIDNIGHT + line.at, "model": line.model, "kind": line.kind, "text": line.text, "others": []}
            for line in lines
        ]
        waiting = [
            {**row, "oldest": MIDNIGHT + row["oldest"], "sessions": None, "clients": []}
            for row in self._scheduler.waiting()
        ]
        times = self._scheduler.times()
        place = {"next": following, "more": more, "missed": missed, "boot": "day"}
        return {"lines": rows, **place, "waiting": waiting, "times": times}


@contextlib.asynccontextmanager
async def served(day: Day) -> AsyncIterator[tuple[str, PageWatch]]:
    """A gateway that shows the day; gives its address."""
    gateway = Gateway(parse_config('[gateway]\nhttp = "127.0.0.1:0"\n'))
    watch = gateway.watch = PageWatch(day, day.clock)  # type: ignore[arg-type]
    listener = serving.listen(("127.0.0.1", 0))
    server = serving.http_server(gateway)
    task = asyncio.create_task(server.serve([listener]))
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", watch
    finally:
        server.should_exit = True
        await task
        await gateway.close()


async def played(day: Day, watch: PageWatch) -> None:
    """Plays the day to those who watch, as fast as it can be shown."""
    loop = asyncio.get_running_loop()

    async def look() -> None:
        await watch.look()
        await asyncio.sleep(0)  # for those who wait for it

    await asyncio.to_thread(day.play, lambda: asyncio.run_coroutine_threadsafe(look(), loop).result())


# ---------------------------------------------------------------- in a browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ALONE = [  # it may run as root, and asks nothing of the network by itself
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


def heap_mb(page: Any) -> float:
    """What the page's script holds, after its garbage was collected."""
    session = page.context.new_cdp_session(page)
    session.send("HeapProfiler.collectGarbage")
    session.send("Performance.enable")
    metrics = {row["name"]: row["value"] for row in session.send("Performance.getMetrics")["metrics"]}
    return float(metrics["JSHeapUsedSize"]) / (1 << 20)


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A browser. Close it before another event loop is run in this thread: its driver keeps one."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ALONE)
        yield browser
        browser.close()


def shown(browser: Any, every_s: float = EVERY_S) -> dict[str, float]:
    """Plays a day to a page; its memory in megabytes, and what it had to show."""
    command = [sys.executable, "-m", "benchmarks.day", "--every", str(every_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as day:
        try:
            page = browser.new_page()
            page.set_default_timeout(PATIENCE_MS)
            assert day.stdout is not None
            page.goto(day.stdout.readline().strip())
            page.wait_for_selector("tr.row")
            looks = int(day.stdout.readline().split()[1])
            page.wait_for_timeout(3000)  # for what is still on its way
            elements = page.evaluate("document.querySelectorAll('*').length")
            figures = {"heap": heap_mb(page), "elements": elements, "looks": looks}
            page.close()
        finally:
            day.terminate()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--until", type=float, default=24.0, metavar="HOURS")
    parser.add_argument("--every", type=float, default=EVERY_S, metavar="SECONDS", help="between two looks")
    args = parser.parse_args()

    async def serve() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        day = Day(args.until, args.every)
        async with served(day) as (address, watch):
            print(address, flush=True)
            watch.viewers += 1  # from the beginning
            await played(day, watch)
            print(f"over: {day.looks} looks", flush=True)
            while not stop.is_set():
                await watch.look()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), 1.0)

    asyncio.run(serve())


if __name__ == "__main__":
    main()
