"""The state of the scheduler: plain records and small containers. They decide nothing."""

from broker.scheduler.state.model import BATCHES_FIRST, FAILURES, End, Guess, Model, Request, Session, Worker
from broker.scheduler.state.peaks import MOST_MB, Peak
from broker.scheduler.state.queue import Queue
from broker.scheduler.state.states import Move, Phase, State
from broker.scheduler.state.timers import Due, Entry, Timers

__all__ = [
    "BATCHES_FIRST",
    "FAILURES",
    "MOST_MB",
    "Due",
    "End",
    "Entry",
    "Guess",
    "Model",
    "Move",
    "Peak",
    "Phase",
    "Queue",
    "Request",
    "Session",
    "State",
    "Timers",
    "Worker",
]  # fmt: skip
