"""A seeded storm over a real broker, workers and clients: `python -m tests.storm.storm --seed 7 --seconds 60`.

Client processes ask without a pause (`customer.py`) while the storm kills, stops, reloads, fills the disk and sends
nonsense. Then it calms down, and two things are looked at:

* **The books.** Each call that a client sent was answered rightly or refused by one typed error; none was lost, none
  had the answer of another. A client on bare sockets counts the answers to each of its requests: one each.
* **What is left.** No session, lease or queued request; no process but the broker, its nursery and its reserve; as many
  descriptors in the broker as before. After SIGTERM: exit status 0, and nothing at all. No internal error, and no
  traceback but those that the storm's adapters cause.

Each start of the broker draws its surroundings anew (`surroundings.py`).

The bounds in time are wide, because the storm starves the machine on purpose. `tests/client/test_deadlines.py` has the
narrow ones.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import zmq

from tests import support
from tests.storm.raw import RawCustomer
from tests.storm.surroundings import Tried, unforeseen
from tests.support import ROOT, wait_until
from zoo import Client, ZooError

MODELS = 6
BUDGET_GB = 0.35  # of 100 MB each: three fit
CUSTOMERS = 3
MOST_RESIDENT_MB = 400
SPARE_DESCRIPTORS = 8  # a log, a standby process, a connection that is just being closed


def config(seed: int, *, load_seconds: float = 0.05) -> list[dict[str, Any]]:
    """The models of a storm: some load slowly, some fail to load now and then, some take batches."""
    dice = random.Random(seed)
    return [
        {
            "name": f"m{i}",
            "adapter": "tests.storm.adapter:Sum",
            "vram_mb": 100,
            "priority": dice.choice(["CRITICAL", "HIGH", "MEDIUM", "LOW"]),
            "dispatch_timeout": 2.0,
            "options": {
                "load_seconds": load_seconds * i,
                "max_batch": dice.choice([1, 4]),
                **({"load_fails": 5} if i == MODELS - 1 else {}),
            },
        }
        for i in range(MODELS)
    ]


class Storm:
    """One storm. `report`: what has happened, by name."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.seed = seed
        self.dice = random.Random(seed)
        self.report: Counter[str] = Counter()
        self.models = [f"m{i}" for i in range(MODELS)]
        self.broker = Tried(
            folder,
            self.dice,
            config(seed),
            vram_budget_gb=BUDGET_GB,
            load_timeout=5.0,
            idle_seconds=5.0,
            standby=1,
            host_cache_mb=self.dice.choice([0, 64]),
            footprint=self.dice.choice(["declared", "measured"]),
            eviction=self.dice.choice(["priority", "adaptive"]),
            state_dir=str(folder / "state"),
            record=self.dice.choice(["", str(folder / "requests")]),
            record_mb=1,
        )
        self._customers: list[subprocess.Popen[bytes]] = []
        self._killed: set[int] = set()
        self._junk: list[Any] = []
        self._started = 0
        self._disk = self._small_disk(folder / "state")

    # ------------------------------------------------------------ the course of it

    def run(self, seconds: float) -> None:
        self._start()
        try:
            with Client(self.broker.endpoint, timeout=20.0) as zoo:  # all of them once: modules, arenas, first sockets
                for name in self.models[:-1]:
                    zoo.get_model(name)
            before = self._descriptors()
            raw = RawCustomer(self.broker.endpoint, self.seed, self.models)
            for _ in range(CUSTOMERS):
                self._add_customer()
            end = time.monotonic() + seconds
            deeds = [getattr(self, name) for name in sorted(dir(self)) if name.startswith("do_")]
            while time.monotonic() < end:
                deed = self.dice.choice(deeds)
                deed()
                self.report[deed.__name__] += 1
                assert self._process().poll() is None, f"the broker has ended:\n{self.broker.log()[-6000:]}"
                raw.assert_sound()
                time.sleep(self.dice.uniform(0.05, 0.4))
            self._calm(raw, before)
        finally:
            self._clean()

    def _calm(self, raw: RawCustomer, before: int) -> None:
        for pid in self.broker.processes():
            os.kill(pid, signal.SIGCONT)
        self._let_go()
        for customer in self._customers:
            assert customer.stdin is not None
            customer.stdin.close()
        for customer in self._customers:
            assert customer.wait(timeout=60.0) == 0 or customer.pid in self._killed
        self.report["raw answers"] = raw.close()
        self._read_books()
        with Client(self.broker.endpoint, timeout=30.0) as zoo:
            wait_until(lambda: self._is_quiet(zoo), 30.0, "no session, lease or request is left")
            for name in self.models:
                with contextlib.suppress(ZooError):  # one that cannot be loaded now
                    zoo.unload(name)
            wait_until(lambda: self._is_quiet(zoo) and not zoo.get_status()["loaded_models"], 30.0, "all is unloaded")
        wait_until(
            lambda: self._descriptors() <= before + SPARE_DESCRIPTORS, 20.0, f"no more than {before} descriptors"
        )
        resident = self._resident_mb()
        assert resident < MOST_RESIDENT_MB, f"the broker has {resident:.0f} MB"
        self.report["resident MB"] = int(resident)
        self.broker.stop()
        self.broker.close_log()
        log = self.broker.log()
        self.report["tracebacks"] = log.count("Traceback")
        assert not unforeseen(log), unforeseen(log)[:10]
        assert "internal error" not in log
        self.report["lines dropped"] = len(re.findall("lines? .*dropped", log))

    def _is_quiet(self, zoo: Client) -> bool:
        rows, status = zoo.processes(), zoo.get_status()
        busy = sum(
            row[key] for row in rows for key in ("leases", "queued", "in_flight") if isinstance(row.get(key), int)
        )
        return status["sessions"] <= 1 and status["pending_loads"] in (0, []) and busy == 0

    def _clean(self) -> None:
        for customer in self._customers:
            with contextlib.suppress(ProcessLookupError):
                customer.kill()
            customer.wait()
            if customer.stdin is not None:
                customer.stdin.close()
        self._let_go()
        if self.broker.process is not None and self.broker.process.poll() is None:
            self.broker.process.kill()
            self.broker.process.wait()
        for pid in self.broker.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self._disk is not None:
            subprocess.run(["umount", "-l", str(self._disk)], check=False, capture_output=True)

    # ------------------------------------------------------------ books

    def _read_books(self) -> None:
        wrong: list[str] = []
        for number, customer in enumerate(self._customers):
            sent = ended = 0
            last = ""
            books = self.broker.folder / f"tally{number}"
            if customer.pid in self._killed and not books.exists():  # killed before it had begun
                continue
            for line in books.read_text().splitlines():
                sent += line == "s"
                ended += line[:1] in "arW"
                wrong += [line] if line.startswith("W") else []
                self.report[line if line[0] == "r" else line[0]] += line[0] in "ar"
                last = line
            if customer.pid in self._killed:
                assert 0 <= sent - ended <= 3, f"{sent} sent, {ended} ended, of three threads that were killed"
            else:
                assert last == "end"
                assert sent == ended, f"client {number} sent {sent} and heard {ended}"
        assert not wrong, wrong[:20]

    # ------------------------------------------------------------ helpers

    def _start(self) -> None:
        self.broker.start()
        self.report[f"started in {self.broker.surroundings or 'plain surroundings'}"] += 1

    def _process(self) -> subprocess.Popen[bytes]:
        assert self.broker.process is not None
        return self.broker.process

    def _descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.broker.pid}/fd"))

    def _resident_mb(self) -> float:
        return (
            int(Path(f"/proc/{self.broker.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)
        )

    def _add_customer(self) -> None:
        number = len(self._customers)
        arguments = [self.broker.endpoint, str(self.seed + 10 * number), str(self.broker.folder / f"tally{number}")]
        with open(self.broker.folder / f"customer{number}.log", "wb") as log:
            self._customers.append(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.storm.customer", *arguments, *self.models],
                    stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=ROOT,
                )
            )  # fmt: skip

    def _find(self, name: str) -> list[int]:
        """Our processes whose name begins so; names that end before they are read are no matter."""
        found = []
        for pid in self.broker.processes():
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().startswith(name):
                    found.append(pid)
        return sorted(found)

    def _signal(self, name: str, number: int) -> int | None:
        found = self._find(name)
        if not found:
            return None
        pid = self.dice.choice(found)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        return pid

    def _small_disk(self, folder: Path) -> Path | None:
        """A file system of one megabyte for the broker's state, where we may mount one."""
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "storm", str(folder)]
        done = subprocess.run(command, check=False, capture_output=True)
        return folder if done.returncode == 0 else None

    def _let_go(self) -> None:
        while self._junk:
            one = self._junk.pop()
            one.close(0) if isinstance(one, zmq.Socket) else one.close()
        if self._disk is not None:
            (self._disk / "full").unlink(missing_ok=True)

    # ------------------------------------------------------------ the weather; each `do_` is as likely as another

    def do_kill_a_worker(self) -> None:
        self._signal("zoo:", signal.SIGKILL)

    def do_terminate_a_worker(self) -> None:
        self._signal("zoo:", signal.SIGTERM)

    def do_stop_a_worker(self) -> None:
        pid = self._signal("zoo:", signal.SIGSTOP)
        if pid is not None:
            timer = threading.Timer(self.dice.choice([0.2, 3.0]), self._go_on, [pid])
            timer.daemon = True
            timer.start()

    def _go_on(self, pid: int) -> None:
        if pid in self.broker.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def do_kill_the_reserve(self) -> None:
        self._signal("zoo-standby", signal.SIGKILL)

    def do_kill_the_nursery(self) -> None:
        self._signal("zoo-nursery", signal.SIGKILL)

    def do_stop_the_broker_for_a_moment(self) -> None:
        os.kill(self.broker.pid, signal.SIGSTOP)
        time.sleep(self.dice.uniform(0.05, 0.5))
        os.kill(self.broker.pid, signal.SIGCONT)

    def do_kill_the_broker(self) -> None:
        if self.dice.random() < 0.3:
            self.broker.kill()
            self._start()

    def do_terminate_the_broker(self) -> None:
        if self.dice.random() < 0.3:
            self._process().send_signal(signal.SIGTERM)
            assert self._process().wait(timeout=30.0) == 0, self.broker.log()[-6000:]
            self.broker.wait_gone()
            self._start()

    def do_reload(self) -> None:
        text = self.broker.config_path.read_text()
        changed = support.tables(
            "models", config(self.dice.randrange(1 << 20), load_seconds=self.dice.choice([0, 0.1]))
        )
        self.broker.config_path.write_text(text[: text.index("[[models]]")] + changed)
        os.kill(self.broker.pid, signal.SIGHUP)

    def do_reload_nonsense(self) -> None:
        text = self.broker.config_path.read_text()
        self.broker.config_path.write_text(text + "\n[[models]]\nname = 7\n")
        os.kill(self.broker.pid, signal.SIGHUP)
        time.sleep(0.1)
        self.broker.config_path.write_text(text)

    def do_kill_a_client(self) -> None:
        living = [c for c in self._customers if c.pid not in self._killed]
        victim = self.dice.choice(living)
        self._killed.add(victim.pid)
        victim.kill()
        self._add_customer()

    def do_stop_a_client(self) -> None:
        living = [c for c in self._customers if c.pid not in self._killed]
        victim = self.dice.choice(living)
        victim.send_signal(signal.SIGSTOP)
        time.sleep(0.3)
        victim.send_signal(signal.SIGCONT)

    def do_connect_without_a_word(self) -> None:
        path = self.broker.endpoint.removeprefix("ipc://")
        for _ in range(40):
            kind, where = self.dice.choice([(socket.SOCK_STREAM, path), (socket.SOCK_SEQPACKET, f"{path}.handoff")])
            sock = socket.socket(socket.AF_UNIX, kind)
            sock.setblocking(False)
            with contextlib.suppress(OSError):
                sock.connect(where)
            self._junk.append(sock)

    def do_send_nonsense(self) -> None:
        path = self.broker.endpoint.removeprefix("ipc://")
        for kind, where in ((socket.SOCK_STREAM, path), (socket.SOCK_SEQPACKET, f"{path}.handoff")):
            with socket.socket(socket.AF_UNIX, kind) as sock, contextlib.suppress(OSError):
                sock.settimeout(0.5)
                sock.connect(where)
                sock.send(self.dice.randbytes(self.dice.choice([1, 64, 4000])))
        dealer = zmq.Context.instance().socket(zmq.DEALER)
        dealer.setsockopt(zmq.SNDTIMEO, 100)
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.connect(self.broker.endpoint)
        with contextlib.suppress(zmq.ZMQError):
            for _ in range(20):
                dealer.send_multipart([b"\x01" + self.dice.randbytes(self.dice.randrange(40)), self.dice.randbytes(9)])
        self._junk.append(dealer)

    def do_let_go_of_the_junk(self) -> None:
        self._let_go()

    def do_fill_the_disk(self) -> None:
        if self._disk is not None:
            with contextlib.suppress(OSError), open(self._disk / "full", "wb", buffering=0) as file:
                while True:
                    file.write(bytes(1 << 16))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--seconds", type=float, default=60.0)
    args = parser.parse_args()
    print(f"storm: seed {args.seed}, {args.seconds:g} s", flush=True)
    with tempfile.TemporaryDirectory(prefix="zoo-s-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        storm = Storm(Path(folder), args.seed)
        try:
            storm.run(args.seconds)
        except BaseException:
            print(storm.broker.log()[-8000:], file=sys.stderr)
            raise
        finally:
            print(dict(sorted(storm.report.items())), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
