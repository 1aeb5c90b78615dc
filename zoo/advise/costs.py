"""How long things took in a recording: the loads of each model, and what each request took of its worker.

A worker takes one batch after another. So a batch's own time is from when it was sent, or from the end of the batch
before on that worker if that was later, until its answers. What a further request adds to a batch is the median over
the batches of the model that had several; where there are none it is assumed (`IN_BATCH`).
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_right
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from broker.simulation.simulation import KILL_S
from zoo.recording import RecordedRequest, RecordingPart

LOAD_FIRST_S, LOAD_S_PER_MB = 0.3, 0.001  # assumed of a model that was never loaded, as `benchmarks.replay` does
FORK_S = 0.03  # a start without a process that waits (`standby`), as measured for it
COPY_SHARE = 1 / 7  # of its load: the slowest measured of loads from a copy (`benchmarks.warm`), where none was seen
IN_BATCH = 0.25
KILL_MOST_S = 5.0  # a load that began later after an eviction did not wait for it
KILLS_LEAST = 5  # fewer say nothing: `KILL_S` is taken
UNKNOWN_S = 0.05  # of a request's time, where no request of the model was answered
ANSWERED_EARLY = {"deadline_exceeded", "cancelled", "forgotten"}  # while the worker may have gone on


@dataclass(frozen=True)
class Taken:
    """What a recording tells of time, in seconds.

    Attributes:
        load_s: model → its loads, in order. copied_s: those from copies in host memory.
        own_s: of each request of the recording, in order, run alone.
        in_batch: model → what a further request adds to a batch, as a share of the longest.
        max_batch: model → requests at once.
        kill_s: from the decision to evict a worker until its memory was back.
        assumed: models that were asked for and whose loads were not seen.
    """

    load_s: dict[str, list[float]]
    copied_s: dict[str, list[float]]
    own_s: list[float]
    in_batch: dict[str, float]
    max_batch: dict[str, int]
    kill_s: float
    assumed: set[str]


def taken(part: RecordingPart) -> Taken:
    cold: dict[str, list[float]] = defaultdict(list)
    copied: dict[str, list[float]] = defaultdict(list)
    most = {model.config.name: max(1, min(model.max_batch, 256)) for model in part.began.models}
    for load in part.loads:
        (copied if load.copied else cold)[load.model].append(load.seconds)
        most[load.model] = max(1, min(load.max_batch, 256))
    asked, assumed = {request.model for request in part.requests}, set()
    for model in part.began.models:
        name, mb = model.config.name, model.config.vram_mb
        if not cold[name] and copied[name]:
            cold[name] = [seconds / COPY_SHARE for seconds in copied[name]]
        elif not cold[name] and model.load_s:
            cold[name] = [model.load_s]
        elif not cold[name]:
            cold[name] = [LOAD_FIRST_S + LOAD_S_PER_MB * mb]
            assumed.update({name} & asked)
    shares, own = _batches(part.requests)
    return Taken(dict(cold), dict(copied), own, shares, most, _kill_s(part), assumed)


def _kill_s(part: RecordingPart) -> float:
    """The median of what loads waited for the eviction just before them, which was most probably for them."""
    evicted = [end.at for end in part.ends if end.how == "evicted"]
    starts = sorted(load.at - load.seconds for load in part.loads)
    gaps = []
    for before, start in zip([-math.inf, *starts], starts, strict=False):
        last = bisect_right(evicted, start) - 1
        if last >= 0 and evicted[last] > before and start - evicted[last] <= KILL_MOST_S:
            gaps.append(start - evicted[last])
    return statistics.median(gaps) if len(gaps) >= KILLS_LEAST else KILL_S


def _batches(requests: list[RecordedRequest]) -> tuple[dict[str, float], list[float]]:
    """By model what a further request adds to a batch, and of each request its own time."""
    members: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, request in enumerate(requests):
        if request.batch and request.outcome not in ANSWERED_EARLY:
            members[request.worker, request.batch].append(i)
    free_at: dict[int, float] = defaultdict(float)  # worker → end of its last batch
    spans: dict[str, list[tuple[int, float]]] = defaultdict(list)  # model → size and seconds of its batches
    times: dict[int, tuple[int, float]] = {}
    for (worker, _), of in sorted(members.items(), key=lambda item: _sent(requests[item[1][0]])):
        end = max(requests[i].at + requests[i].took for i in of)
        seconds = max(0.0, end - max(_sent(requests[of[0]]), free_at[worker]))
        free_at[worker] = max(free_at[worker], end)
        spans[requests[of[0]].model].append((len(of), seconds))
        times.update(dict.fromkeys(of, (len(of), seconds)))
    shares = {model: _share(batches) for model, batches in spans.items()}
    own = {i: seconds / (1 + shares[requests[i].model] * (size - 1)) for i, (size, seconds) in times.items()}
    return shares, _filled(requests, own)


def _sent(request: RecordedRequest) -> float:
    return request.at + request.sent_s


def _share(batches: list[tuple[int, float]]) -> float:
    alone = [seconds for size, seconds in batches if size == 1]
    together = [(size, seconds) for size, seconds in batches if size > 1]
    if not alone or not together or not (one := statistics.median(alone)):
        return IN_BATCH
    return min(1.0, max(0.0, statistics.median((seconds / one - 1) / (size - 1) for size, seconds in together)))


def _filled(requests: list[RecordedRequest], own: Mapping[int, float]) -> list[float]:
    """Where a request's time is not known, the median of its model's."""
    by_model: dict[str, list[float]] = defaultdict(list)
    for i, seconds in own.items():
        by_model[requests[i].model].append(seconds)
    usual = {model: statistics.median(of) for model, of in by_model.items()}
    return [own[i] if i in own else usual.get(request.model, UNKNOWN_S) for i, request in enumerate(requests)]


class Loads:
    """How long each load of a replay takes: those of a model as they were recorded, in turn, and from the beginning.

    Args:
        sizes: model → MB, also taken for the size of its copy.
        cache_mb: `host_cache_mb`. copied: models of which there is a copy at the beginning.
        extra_s: for every load.
    """

    def __init__(
        self, times: Taken, sizes: Mapping[str, float], cache_mb: float, copied: list[str], extra_s: float
    ) -> None:
        self._times = times
        self._sizes = sizes
        self._cache_mb = cache_mb
        self._extra_s = extra_s
        self._turns: dict[tuple[str, bool], int] = defaultdict(int)
        self._copies: OrderedDict[str, float] = OrderedDict()  # not used for longest first
        for model in copied:
            self._keep(model)

    def take(self, model: str) -> float:
        """Seconds of the next load of the model."""
        is_copied = model in self._copies
        turn = self._turns[model, is_copied]
        self._turns[model, is_copied] += 1
        self._keep(model)
        cold, copied = self._times.load_s[model], self._times.copied_s.get(model)
        if not is_copied:
            seconds = cold[turn % len(cold)]
        else:
            seconds = copied[turn % len(copied)] if copied else cold[turn % len(cold)] * COPY_SHARE
        return max(0.0, seconds + self._extra_s)

    def _keep(self, model: str) -> None:
        if self._sizes[model] <= self._cache_mb:
            self._copies[model] = self._sizes[model]
            self._copies.move_to_end(model)
            while sum(self._copies.values()) > self._cache_mb:
                self._copies.popitem(last=False)
