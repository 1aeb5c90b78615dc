"""What is asked about us: answers of plain maps and lists, as `docs/protocol.md` names their fields.

Looks at what the scheduler knows and what was measured anyway, so that a question costs the loop little, however many
workers there are. Changes nothing, and measures no process.
"""

from __future__ import annotations

import os
import time
from collections import Counter as Count
from collections.abc import Mapping
from typing import Any

import msgspec

from broker import labels, logs
from broker.fleet.roster import WorkerProcess
from broker.memory import host_cache, meters
from broker.memory.gauge import Gauge
from broker.scheduler.scheduler import Scheduler
from broker.scheduler.story import journal, story
from zoo.config.schema import ZooConfig
from zoo.errors import AccessDenied, InvalidInput, ModelNotFound
from zoo.system.files import shown
from zoo.weights import catalogue

MOST_DIGITS, MOST_NAME = 20, 64
OVERVIEW_LINES = 200  # decisions of one answer: a sentence is made of each
MOST_CLIENTS = 10  # named of those that wait for one model


class Views:
    """`config` comes with each question: a reload replaces it."""

    def __init__(self, scheduler: Scheduler, gauge: Gauge, copies: host_cache.Copies, known: labels.Labels) -> None:
        self._scheduler = scheduler
        self._labels = known
        self._copies = copies
        self._gauge = gauge
        self._wall = time.time() - time.monotonic()

    def _at(self, monotonic: float) -> float:
        """A moment of the scheduler's clock as Unix time; 0 for never."""
        return round(monotonic + self._wall, 3) if monotonic else 0.0

    def status(self, config: ZooConfig, boot: str, sessions: int) -> dict[str, Any]:
        status = self._scheduler.status(time.monotonic())
        for row in status["loaded_models"]:
            row["last_used"] = self._at(row["last_used"])
        for row in status["devices"]:
            figures = self._gauge.figures(row["name"])
            row["device_used_mb"] = _rounded(figures.used_mb if figures is not None else None)
            row["device_total_mb"] = _rounded(figures.total_mb if figures is not None else None)
        status["sessions"] = sessions
        status["host_cache"] = {
            "limit_mb": config.broker.host_cache_mb,
            "used_mb": round(self._copies.used_bytes / meters.MB, 1),
            "models": self._copies.models(),
        }
        status["broker"] = {
            "pid": os.getpid(),
            "boot": boot,
            "endpoint": config.endpoint,
            "footprint": config.broker.footprint,
            "config": shown(config.file.resolve()) if config.file is not None else "",
        }
        return status

    def models(self, config: ZooConfig, only: str | None = None) -> list[dict[str, Any]]:
        """`only`: this one alone, with its labels however many they are."""
        now = time.monotonic()
        chosen = self._scheduler.models.values() if only is None else [self._scheduler.models[only]]
        rows = [
            {
                **catalogue.row(config, model.config),
                "state": model.state.value,
                "measured_mb": max((peak.mb for peak in model.peaks.values()), default=None),
                "available": model.config.available,
                "pinned": model.pinned,
            }
            for model in chosen
        ]
        for row in rows:
            row |= self._labels.of(row["name"], row["labels"])
            if only is None and labels.is_long(row["labels"]):
                row["labels"] = None
            row["problem"] = row["problem"] or self._scheduler.trouble(row["name"], now)
        return rows

    def processes(self, workers: Mapping[int, WorkerProcess]) -> list[dict[str, Any]]:
        rows = self._scheduler.processes()
        for row in rows:
            worker = workers.get(row["worker"])
            child = worker.child if worker is not None else None
            row["pid"] = child.pid if child is not None else None
            row["stand_in"] = worker is not None and worker.stand_in
            row["used_mb"] = _rounded(self._gauge.told_mb(row["worker"]) if child is not None else None)
            row["last_used"] = self._at(row["last_used"])
        return rows

    def explain(self, about: str | None, only: bytes | None = None) -> list[str]:
        """`about`: a model, or the number of a request. `only`: leave out the requests of all other sessions.

        Raises:
            InvalidInput, ModelNotFound: there is none such. AccessDenied: it is a request of another session.
        """
        lines: list[story.Line] | None
        if about is None or about in self._scheduler.models:
            lines = self._scheduler.explain(about) if only is None else self._scheduler.decisions(about)
        elif about.isdecimal() and len(about) < MOST_DIGITS:
            if only is not None and self._scheduler.session_of(int(about)) not in (None, only):
                raise AccessDenied(f"request {about} is another client's; it is explained to operators")
            lines = self._scheduler.explain_request(int(about))
            if lines is None:
                raise InvalidInput(f"request: {about} is not under way, nor one of the last {journal.KEEP} that were")
            if only is not None:
                lines = [line for line in lines if line.fields.get("request", int(about)) == int(about)]
        else:
            raise ModelNotFound(self._scheduler.no_such_model(about[:MOST_NAME]))
        return [f"{self._clock(line.at)} {line.model + ': ' if line.model else ''}{line.text}" for line in lines]

    def _clock(self, monotonic: float) -> str:
        at = monotonic + self._wall
        return time.strftime("%H:%M:%S", time.localtime(at)) + f".{int(at % 1 * 1000):03d}"

    def logs(self, model: str | None, since: int) -> dict[str, Any]:
        found = logs.installed()
        lines, following, more = found.recent.since(since, model) if found is not None else ([], 0, False)
        return {"lines": lines, "next": following, "more": more}

    def overview(self, since: int, named: Mapping[bytes, tuple[str, int]]) -> dict[str, Any]:
        """What was decided since then, what waits now, and how long the last inferences took.

        Args:
            named: program and process of each session that may be named.
        """
        lines, following, more, missed = self._scheduler.decided(since, OVERVIEW_LINES)
        waiting = self._scheduler.waiting()
        for row in waiting:
            row["oldest"] = self._at(row["oldest"])
            clients = Count[tuple[str, int]]()
            for session, count in row.pop("sessions").items():
                if session in named:
                    clients[named[session]] += count
            row["clients"] = [
                {"client": name, "pid": pid, "requests": n} for (name, pid), n in clients.most_common(MOST_CLIENTS)
            ]
        return {
            "lines": [self._told(line) for line in lines],
            "next": following,
            "more": more,
            "missed": missed,
            "waiting": waiting,
            "times": self._scheduler.times(),
        }

    def _told(self, line: story.Line) -> dict[str, Any]:
        others = sorted(line.models - {line.model.partition("#")[0]})
        return {"at": self._at(line.at), "model": line.model, "kind": line.kind, "text": line.text, "others": others}

    def enrich(self, config: ZooConfig) -> dict[str, Any]:
        """The table of enrichment, and where its clients find the models of it."""
        table: dict[str, Any] = msgspec.to_builtins(config.enrich)
        asked = {name for rule in config.enrich.rules for name in rule.models}
        table["models"] = {
            name: {"state": model.state.value, "vram_mb": model.config.vram_mb}
            for name, model in self._scheduler.models.items()
            if name in asked
        }
        return table


def _rounded(mb: float | None) -> float | None:
    """None is unknown."""
    return round(mb, 1) if mb is not None else None
