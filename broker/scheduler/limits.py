"""Who is turned away because too many wait already, with the arithmetic and an honest hint when to come again. Pure."""

from __future__ import annotations

from broker.scheduler.events import State
from broker.scheduler.residency import Residency

RETRY_LEAST_S, RETRY_MOST_S = 0.1, 30.0


def model_is_full(model: Residency, limit: int, now: float) -> tuple[str, float]:
    """(why, seconds until a retry makes sense) when `limit` requests wait for the model."""
    text = f"{model.waiting} requests wait for {model.name} already (max_queue = {limit})"
    return f"{text}: {_work(model, now)}", retry_after(model, now)


def client_is_full(model: Residency, unanswered: int, limit: int, now: float) -> tuple[str, float]:
    """The same when the client that asks for the model has `unanswered` requests, of whatever models."""
    text = f"this client waits for {unanswered} answers already (max_queue_per_client = {limit})"
    return f"{text}; {model.name} has {model.waiting} waiting: {_work(model, now)}", retry_after(model, now)


def too_many_leases(held: int, limit: int) -> str:
    """Why a client that holds (or waits for) so many leases gets no more."""
    return f"this client holds {held} leases already (max_leases_per_client = {limit}); release some"


def retry_after(model: Residency, now: float) -> float:
    """Seconds until those who are before a newcomer have been served, as far as is known, within bounds."""
    return min(max(_load_s(model, now) + _before(model) * _each_s(model), RETRY_LEAST_S), RETRY_MOST_S)


def _before(model: Residency) -> int:
    return model.waiting + sum(len(worker.inflight) + len(worker.ahead) for worker in (model, *model.others))


def _each_s(model: Residency) -> float:
    """How long one keeps those behind it waiting: several workers share the queue."""
    return model.service_s / max(1, len(model.answering))


def _load_s(model: Residency, now: float) -> float:
    """What is left of a load that takes as long as the last one did."""
    if model.state in (State.LOADED, State.DRAINING):
        return 0.0
    return max(0.0, model.load_seconds - (now - model.started_at if model.state is State.LOADING else 0.0))


def _work(model: Residency, now: float) -> str:
    count, load, each = _before(model), _load_s(model, now), _each_s(model)
    parts = ([f"a load of {load:.2f} s"] if load else []) + [f"{count} x {each * 1000:.3g} ms"]
    known = f"{' + '.join(parts)} = {load + count * each:.2f} s of work"
    return known if each else "how long one takes is not known yet"
