"""How many requests go to a worker together, and how long the first waits for company. Pure functions.

Nobody waits by default: a batch is what has queued while the worker was busy. With `max_delay_ms` the first of a batch
waits up to so long for it to fill, which trades the time of each request for fewer, fuller batches. Not while another
model waits for room: what is loaded would be swapped out for it without having done anything.
"""

from __future__ import annotations

import math

from broker.scheduler.events import State
from broker.scheduler.residency import Residency

BATCH_S = 0.05  # a batch should take no longer than this, or one request: nobody waits long for his neighbours
WAIT_PART = 0.5  # of its time until the deadline: the most that a request waits for company
RUN_TIMES = 2.0  # the time that the batch is expected to take must be left so often


def most(model: Residency) -> int:
    """As many as the adapter takes, memory has sufficed for, and `BATCH_S` allows."""
    limit = min(model.max_batch, model.batch_limit or model.max_batch)
    if model.service_s * limit > BATCH_S:
        return max(1, int(BATCH_S / model.service_s))
    return limit


def leaves_at(model: Residency) -> float:
    """When what waits for the (loaded) model goes to its worker at the latest; -inf: at once."""
    delay = model.config.max_delay_ms / 1000
    if not delay or model.state is not State.LOADED or model.queue.live >= most(model):
        return -math.inf
    head = model.queue.head()
    if head is None or head.alone:
        return -math.inf
    waiting = model.queue.all()
    needed = RUN_TIMES * model.service_s * len(waiting)
    return min(min(r.since + min(delay, WAIT_PART * (r.deadline - r.since)), r.deadline - needed) for r in waiting)
