"""Each call of a client, once, for `Client` and `AsyncClient`.

Most calls are one message and one answer: a `Call` says which message, how its answer becomes a value, and how long it
may take. The others (inference, enrichment, leases) are methods of `Calls`.

These methods are generators. Where a call has to wait, it delegates (`yield from`) to its driver: that of the threads
blocks and yields nothing, that of asyncio yields what the event loop waits for. So one text serves both, and whatever
ends a call (an answer, its deadline, a cancelled task, an exception out of a signal handler) leaves through the same
`except`.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from zoo import tracing
from zoo.client import checks, frames, session
from zoo.client.dealer import Dealer
from zoo.client.depot import Depot
from zoo.client.enrich import Plan, read_table
from zoo.client.event import Event
from zoo.client.exchange import Waiter
from zoo.client.link import Link
from zoo.enrichment import Enrichment
from zoo.errors import BrokerUnreachable, DeadlineExceeded, InvalidInput, ModelNotFound, ZooError
from zoo.wire import arrays, formats, moments, protocol

T = TypeVar("T")
Steps = Generator[Any, None, T]  # of a call, which gives a T at its end
How = tuple[frames.Boxes | None, frames.Look, float | None, int | str | None]  # boxes, look, timeout, priority

# ---------------------------------------------------------------- one message, one answer


class Call(NamedTuple, Generic[T]):
    """A call that is one message.

    Attributes:
        message: its `rid` and `timeout_ms` are set when it is sent.
        value: makes the caller's value of the answer's.
        timeout: seconds; None takes the client's.
    """

    message: Any
    value: Callable[[Any], T]
    timeout: float | None = None


def _nothing(_: Any) -> None:
    return None


def get_model(model: str, timeout: float | None) -> Call[None]:
    return Call(protocol.Load(0, checks.check_model(model), 0), _nothing, timeout)


def unload(model: str, timeout: float | None) -> Call[bool]:
    return Call(protocol.Unload(0, checks.check_model(model), 0), bool, timeout)


def pin(model: str, on: bool) -> Call[None]:
    return Call(protocol.Pin(0, checks.check_model(model), on), _nothing)


def cleanup_idle_models(idle_seconds: float) -> Call[list[str]]:
    return Call(protocol.CleanupIdle(0, checks.check_seconds("idle_seconds", idle_seconds)), list)


def footprint(model: str | None, forget: bool) -> Call[list[dict[str, Any]]]:
    return Call(protocol.Footprint(0, model, forget), list)


def reload() -> Call[list[str]]:
    return Call(protocol.Reload(0), list)


def get_status() -> Call[dict[str, Any]]:
    return Call(protocol.Query(0, "status"), moments.readable_status)


def models(model: str | None) -> Call[list[dict[str, Any]]]:
    if model is None:
        return Call(protocol.Query(0, "models"), list)
    name = checks.check_model(model)

    def its_own(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """A broker of an earlier release gives all of them, whatever it is asked."""
        if not (found := [row for row in rows if row["name"] == name]):
            raise ModelNotFound(f"there is no model {name!r}; `zoo ls` lists the models")
        return found

    return Call(protocol.Query(0, "models", name), its_own)


def processes() -> Call[list[dict[str, Any]]]:
    return Call(protocol.Query(0, "ps"), moments.readable)


def explain(model_or_request: str | int | None) -> Call[list[str]]:
    return Call(protocol.Query(0, "explain", checks.check_about(model_or_request)), list)


def overview(since: int) -> Call[dict[str, Any]]:
    return Call(protocol.Query(0, "overview", None, since), dict)


def record(what: str, since: int) -> Call[dict[str, Any]]:
    def readable(said: dict[str, Any]) -> dict[str, Any]:
        return {**said, "since": moments.to_text(said["since"])}

    return Call(protocol.Record(0, what, since), readable)


def logs(model: str | None, since: int) -> Call[dict[str, Any]]:
    name = None if model is None else checks.check_model(model)
    return Call(protocol.Query(0, "logs", name, since), _parsed)


def _parsed(page: dict[str, Any]) -> dict[str, Any]:
    return {**page, "lines": [json.loads(line) for line in page["lines"]]}


# ---------------------------------------------------------------- leases


@dataclass(eq=False)
class Grant:
    """A lease as the broker knows it. One that is garbage is given back.

    Attributes:
        link: the session that it was granted in. number: its number there, 0 before that and after its release.
    """

    link: Link | None = None
    number: int = 0

    def granted(self, link: Link, number: int) -> None:
        self.link, self.number = link, number

    def __del__(self) -> None:
        try:
            if self.number and self.link is not None and not self.link.dead and not sys.is_finalizing():
                session.say(self.link, protocol.Release(0, self.number))
        except Exception:
            pass  # the interpreter is going, and the lease with it


@dataclass(eq=False)
class Held:
    """What a caller holds a lease by. `grant` is None when it was released."""

    model: str
    keep_alive: float | None
    grant: Grant | None

    @property
    def lost(self) -> bool:
        """The broker that granted it is gone, and it was not taken again yet."""
        grant = self.grant
        return grant is not None and grant.link is not None and not grant.link.look()


# ---------------------------------------------------------------- all the others


class Driver(Protocol):
    """How a call waits, and for what.

    Attributes:
        quit: up when the client is closed.
        link: the session there is, of which this caller may have a socket.
        crowded: others wait for a free slot already.
        depot: where frames go.
    """

    depot: Depot
    quit: session.Flag

    @property
    def link(self) -> Link | None: ...

    @property
    def crowded(self) -> bool: ...

    def ready(self) -> Dealer | None:
        """The caller's socket, if there is one that can be used."""

    def open(self, deadline: float, seconds: float) -> Steps[Dealer]:
        """The caller's socket, of a new session if need be. Raises BrokerUnreachable, AccessDenied."""

    def store(self, link: Link, deadline: float) -> Steps[frames.Store]:
        """`Depot.get`."""

    def place(self, dealer: Dealer, store: frames.Store, deadline: float, take: Callable[[], T]) -> Steps[T]:
        """What `take` gives, as soon as it finds a free slot. Raises QueueFull, BrokerUnreachable."""

    def next(self, dealer: Dealer, waiter: Waiter, deadline: float, until: float) -> Steps[tuple[str, Any] | None]:
        """The next answer, and whose it is; None: it is `until`, or a little later.

        Raises:
            ZooError: no answer comes any more.
        """

    def withdraw(self, dealer: Dealer, waiter: Waiter, deadline: float) -> None:
        """Gives up on what the waiter has asked."""


class Calls:
    """See the module's docstring.

    Args:
        timeout: seconds for each call, unless it brings its own.
    """

    def __init__(self, driver: Driver, timeout: float) -> None:
        self._driver = driver
        self.timeout = timeout

    def ask(self, call: Call[T], granted: Callable[[Link, int], None] | None = None) -> Steps[T]:
        """One message, and the value of its answer. Raises ZooError."""
        seconds = checks.check_timeout(call.timeout, self.timeout)
        deadline = time.monotonic() + seconds
        dealer = self._driver.ready() or (yield from self._driver.open(deadline, seconds))
        outcomes = yield from self._collect(dealer, deadline, [""], dealer.ask, call.message, granted)
        return call.value(_only(outcomes))

    # ------------------------------------------------------------ inference

    def infer(self, model: str, frame: Any, how: How, options: dict[str, Any]) -> Steps[Any]:
        steps = self._infer([checks.check_model(model)], frame, how, options, _only)
        return tracing.one(model, steps) if tracing.is_on() else steps

    def infer_many(self, frame: Any, models: Iterable[str], how: How, options: dict[str, Any]) -> Steps[dict[str, Any]]:
        names = checks.check_models(models)
        steps = self._infer(names, frame, how, options, lambda outcomes: {name: outcomes[name] for name in names})
        return tracing.many(names, steps) if tracing.is_on() else steps

    def _infer(
        self, names: list[str], frame: Any, how: How, options: dict[str, Any], value: Callable[[dict[str, Any]], T]
    ) -> Steps[T]:
        boxes, look, timeout, priority = how
        if isinstance(frame, dict):
            frame, options = arrays.named(frame, options)
        seconds = checks.check_timeout(timeout, self.timeout)
        rank = checks.check_priority(priority)
        deadline = time.monotonic() + seconds
        take = frames.Store.request
        dealer, _, request = yield from self._place(deadline, seconds, take, frame, boxes, look, options)
        try:
            return value((yield from self._collect(dealer, deadline, names, dealer.infer, request, rank)))
        finally:
            request.drop()

    def _place(
        self, deadline: float, seconds: float, take: Callable[..., T], *what: Any
    ) -> Steps[tuple[Dealer, frames.Store, T]]:
        """What `take(store, *what)` takes of the arena, which may be full for a while."""
        driver = self._driver
        dealer = driver.ready() or (yield from driver.open(deadline, seconds))
        store = driver.depot.ready(dealer.link) or (yield from driver.store(dealer.link, deadline))
        if not driver.crowded:
            try:
                return dealer, store, take(store, *what)
            except frames.NoRoom:
                pass
        return dealer, store, (yield from driver.place(dealer, store, deadline, lambda: take(store, *what)))

    def _collect(
        self, dealer: Dealer, deadline: float, names: list[str], send: Callable[..., None], *what: Any
    ) -> Steps[dict[str, Any]]:
        """Asks, and waits for the answer under each name. Where some have come, an error is that of the others."""
        outcomes: dict[str, Any] = {}
        waiter = Waiter()
        with dealer.lock:
            try:
                for name in names:
                    send(waiter, name, deadline, *what)
                while len(outcomes) < len(names):
                    if (answer := (yield from self._driver.next(dealer, waiter, deadline, math.inf))) is not None:
                        outcomes[answer[0]] = answer[1]
            except BaseException as e:
                self._driver.withdraw(dealer, waiter, deadline)
                if not (isinstance(e, ZooError) and outcomes):
                    raise
                return dict.fromkeys(names, e) | outcomes
        return outcomes

    def frame(self, shape: tuple[int, ...], dtype: str) -> Steps[frames.Frame]:
        size = checks.check_shape(shape)
        deadline = time.monotonic() + self.timeout
        _, _, slot = yield from self._place(deadline, self.timeout, frames.Store.empty, size, dtype)
        return frames.Frame(slot)

    # ------------------------------------------------------------ enrichment

    def enrich(
        self,
        frame: Any,
        detections: Any,
        suspicious: bool,
        look: frames.Look,
        min_score: float | None,
        timeout: float | None,
        priority: int | str | None,
    ) -> Steps[Enrichment]:
        seconds = checks.check_timeout(timeout, self.timeout)
        rank = checks.check_priority(priority)
        event = Event(frame, detections, suspicious, min_score, formats.check_format(*look))
        started = time.monotonic()
        try:
            table = yield from self.ask(Call(protocol.Query(0, "enrich"), read_table, seconds))
        except DeadlineExceeded as e:
            raise BrokerUnreachable(str(e)) from None
        plan = Plan(table, event, started, None if timeout is None else seconds)
        try:
            if not plan.done and tracing.is_on():
                with tracing.EnrichmentSpan() as span:
                    yield from self._carry_out(plan, look, rank, span)
            elif not plan.done:
                yield from self._carry_out(plan, look, rank)
        except InvalidInput:
            raise
        except ZooError as e:
            plan.fail(e, time.monotonic())
        return plan.result(time.monotonic())

    def _carry_out(
        self, plan: Plan, look: frames.Look, rank: int, span: tracing.EnrichmentSpan | None = None
    ) -> Steps[None]:
        """Asks and answers until the plan is done. Whatever ends it before, what is under way is withdrawn."""
        deadline = plan.deadline
        dealer, store, placed = yield from self._place(
            deadline, deadline - time.monotonic(), frames.Store.place, plan.frames, look
        )
        waiter = Waiter()
        try:
            with dealer.lock:
                try:
                    while not plan.done:
                        for ask in plan.take(time.monotonic()):
                            request = store.compose(placed if ask.video else placed[-1:], ask.boxes, ask.options)
                            if span is not None:
                                span.asked(ask.model)
                            dealer.infer(waiter, ask.model, deadline, request, rank)
                        if not plan.done:
                            answer = yield from self._driver.next(dealer, waiter, deadline, plan.wake)
                            if answer is not None:
                                plan.answer(*answer, time.monotonic())
                                if span is not None:
                                    span.answered(*answer)
                except BaseException:
                    self._driver.withdraw(dealer, waiter, deadline)
                    raise
        finally:
            frames.drop(placed)

    # ------------------------------------------------------------ leases

    def load(self, model: str, keep_alive: float | None, timeout: float | None) -> Steps[Held]:
        name, keep = checks.check_model(model), checks.check_keep_alive(keep_alive)
        grant = Grant()
        yield from self.ask(Call(protocol.Load(0, name, 0, True, keep), _nothing, timeout), grant.granted)
        return Held(name, keep, grant)

    def infer_leased(self, held: Held, frame: Any, options: dict[str, Any]) -> Steps[Any]:
        """`infer`; takes the lease again if the broker that granted it is gone."""
        options = {"boxes": None, "color": "rgb", "timeout": None, "priority": None, **options}
        boxes, color, timeout, priority = map(options.pop, ("boxes", "color", "timeout", "priority"))
        look = (color, options.pop("size", None), options.pop("stride", None), options.pop("scale", None))
        seconds = checks.check_timeout(timeout, self.timeout)
        deadline = time.monotonic() + seconds
        grant = held.grant
        if grant is not None and not self._driver.quit.up:
            dealer = self._driver.ready() or (yield from self._driver.open(deadline, seconds))
            if dealer.link is not grant.link:
                again = yield from self.load(held.model, held.keep_alive, _left(deadline))
                if held.grant is grant:
                    held.grant = again.grant
                else:
                    yield from self.release(again)  # another caller has taken it again, or released it, meanwhile
        return (yield from self.infer(held.model, frame, (boxes, look, _left(deadline), priority), options))

    def release(self, held: Held) -> Steps[None]:
        """Again is harmless, and so is a broker that is gone: it kept no leases."""
        grant, held.grant = held.grant, None
        if grant is None or grant.link is None or grant.link.dead or grant.link is not self._driver.link:
            return
        try:
            yield from self.ask(Call(protocol.Release(0, grant.number), _nothing))
        except BrokerUnreachable:
            pass
        grant.number = 0  # only now: if this was interrupted, it goes back with the object


def _only(outcomes: dict[str, Any]) -> Any:
    (outcome,) = outcomes.values()
    if isinstance(outcome, ZooError):
        raise outcome
    return outcome


def _left(deadline: float) -> float:
    return max(0.001, deadline - time.monotonic())
