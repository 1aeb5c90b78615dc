"""When a model that is loaded gives way to one that waits, if both do not fit: bursts, residency, deadlines. Pure.

A swap costs the load of the model that comes, and later that of the one that has to come back. So a model that is
loaded works off its queue before it makes room for an equal, for a *burst* of at most `BURST` times both loads. Less
when the waiter's deadline wants it, but never less than its own load took: below that minimum residency a device would
do little else but load. A waiter that is more important than the busy model, or that has to wait for one of its several
workers, has to wait for `patience_seconds` only. One whose requests are less urgent than the busy model's waits for
`URGENT_BURSTS` bursts: urgent requests are served first, but not for ever. Among those that wait for room, too, waiting
makes urgent: each quarter of what a request usually has (`request_timeout`) counts for one priority.

Callers that send their next request when they have the last answer leave their model idle for a moment after each. If
they have usually come back soon, compared with what a swap costs, the model is given that moment (it *lingers*), within
the same bounds.
"""

from __future__ import annotations

import math

from broker.scheduler.state import Model, Request, Worker

BURST = 2.0
URGENT_BURSTS = 8
STEPS = 4  # priorities that a request rises while it waits for as long as is usual
LINGER_PART = 0.05  # of what the swap costs: so long a model lingers
LINGER_GAPS = 3.0  # of the usual gaps have to be shorter than that
LOAD_MARGIN = 1.5  # a load may take longer than the last one did


def due(request: Request, usual_s: float) -> float:
    """When the request should be answered: its deadline, or what would be usual, so that no caller gains by asking
    early for much later, and a request with a long deadline is not put off for ever.
    """
    return min(request.deadline, request.since + usual_s)


def urgency(request: Request, usual_s: float, now: float) -> int:
    """Its priority, which rises while it waits for room."""
    return max(0, request.priority - int(STEPS * (now - request.since) / usual_s))


def latest_start(waiter: Model, head: Request) -> float:
    """When the waiter's load has to begin, so that what waits for it is answered by the deadline of its first."""
    last = waiter.primary
    return head.deadline - LOAD_MARGIN * last.load_seconds - waiter.queue.live * last.service_s


def gives_way_at(busy: Worker, waiter: Model, head: Request, patience_s: float) -> float:
    """From when on a busy worker takes no further requests, so that the waiter gets its room."""
    patient = max(head.since, busy.loaded_at) + patience_s
    if busy.model.config.priority > waiter.config.priority or busy.dispensable:
        return patient
    burst = BURST * (busy.load_seconds + waiter.primary.load_seconds)
    first = busy.model.queue.head()
    if first is not None and first.priority < head.priority:
        return max(patient, busy.loaded_at + URGENT_BURSTS * burst)  # its callers said that theirs is more urgent
    burst_ends = busy.loaded_at + burst
    return max(patient, busy.loaded_at + busy.load_seconds, min(burst_ends, latest_start(waiter, head)))


def lingers_until(idle: Worker, waiter: Model, head: Request, patience_s: float) -> float:
    """Until when an idle worker is taken for busy, because its callers usually come right back."""
    moment = LINGER_PART * (idle.load_seconds + waiter.primary.load_seconds)
    if not idle.primary or LINGER_GAPS * idle.model.gap_s > moment:
        return -math.inf
    return min(idle.last_used + moment, gives_way_at(idle, waiter, head, patience_s))


def hopeless_from(request: Request) -> float:
    """From when on not even the fastest load so far of its model, which is not there, would do; inf: not known."""
    fastest = request.model.least_load_s
    return request.deadline - fastest if fastest < math.inf else math.inf
