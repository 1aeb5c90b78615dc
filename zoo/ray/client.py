"""`zoo.ray.Client`: the calls of `zoo.Client`, for all nodes together.

A call about one model goes where the router sends it; one that fails because its node is gone is made again elsewhere,
within its own time (an inference may run twice, to the same answer). A question about the zoo goes to every node.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, Self

import msgspec
import numpy as np
import ray
from ray import serve
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import RayServeException

from zoo.client import checks
from zoo.client.enrich import Plan, Residence, read_table
from zoo.client.event import Event
from zoo.client.frames import Boxes
from zoo.client.link import client_closed
from zoo.enrichment import Enrichment
from zoo.errors import BrokerUnreachable, DeadlineExceeded, InvalidInput, ZooError
from zoo.ray import engine, reports
from zoo.ray.board import board
from zoo.ray.node import RENEW_S, NodeAnswer, error
from zoo.ray.router import AT
from zoo.wire import arrays, formats

AGAIN_S = 0.05  # before a call is made again
END_S = 2.0  # for nodes to take leases back when a client is closed
STATES = ("loaded", "loading")


class Deadline:
    """Of a call that may be made more than once."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.at = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds, never quite none."""
        return max(0.001, self.at - time.monotonic())


class NodeLease:
    """Keeps a model loaded on one node, as `zoo.Lease` does; its calls go there.

    When the node is gone, `lost` is true, and the next call takes the lease again on another node, within its own time.

    Attributes:
        model: its name. node: where it is held.
    """

    def __init__(self, of: ClusterClient, model: str, node: str, number: int, keep_alive: float | None) -> None:
        self.model, self.node = model, node
        self.lost = False
        self.number: int | None = number  # None: it was given back
        self._client, self._keep_alive = of, keep_alive
        self._taking = threading.Lock()

    def __call__(self, frame: Any, *, timeout: float | None = None, **how: Any) -> Any:
        until = self._client._until(timeout)
        how, sent = _how(**how), _sendable(frame)
        if self.lost and self.number is not None:
            with self._taking:
                if self.lost:
                    self._take_again(until)
        return self._client._infer(self.model, sent, how, until, self if self.number is not None else None)

    def _take_again(self, until: Deadline) -> None:
        again = self._client.load(self.model, keep_alive=self._keep_alive, timeout=until.left())
        self.node, self.number, self.lost = again.node, again.number, False
        self._client._hold(self)

    def release(self) -> None:
        """Gives the lease back; again is harmless, and so is a node that is gone."""
        number, self.number = self.number, None
        if number is not None:
            self._client._release({number: self.node}, self._client.timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class StoredFrame:
    """An empty frame: fill `.array`, send it as often as you like."""

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        try:
            self.array = np.zeros(checks.check_shape(shape), dtype)
        except (TypeError, ValueError, MemoryError) as e:
            raise InvalidInput(f"frame: no array of shape {shape} and dtype {dtype!r} can be made: {e}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class ClusterClient:
    """A connection to the zoos of a cluster. Any number of threads may share it.

    Args:
        name: of the application, as given to `deploy`.
        timeout: seconds for each call, unless it brings its own.
        address: of the engine; None takes the one that this process is connected to, or finds it.
    """

    def __init__(self, name: str = "zoo", *, timeout: float = 30.0, address: str | None = None) -> None:
        self.timeout = checks.check_timeout(timeout, timeout)
        engine.connect(address)
        self._board = board(name)
        try:
            self._handle = serve.get_app_handle(name)
        except RayServeException as e:
            raise BrokerUnreachable(f"no application {name!r} is deployed: {e}") from None
        self._handles: dict[tuple[str, str], Any] = {}
        self._leases: weakref.WeakValueDictionary[int, NodeLease] = weakref.WeakValueDictionary()
        self._closed = threading.Event()
        self._renewer: threading.Thread | None = None
        self._pool = concurrent.futures.ThreadPoolExecutor(32, "zoo-ray")
        self._met = False

    # ------------------------------------------------------------ inference

    def infer(
        self, model: str, frame: Any, *, boxes: Boxes | None = None, color: str = "rgb",
        size: tuple[int, int] | None = None, stride: int | None = None, scale: tuple[float, float] | None = None,
        timeout: float | None = None, priority: int | str | None = None, **options: Any,
    ) -> Any:  # fmt: skip
        """As `zoo.Client.infer`."""
        until = self._until(timeout)
        how = _how(boxes=boxes, color=color, size=size, stride=stride, scale=scale, priority=priority, **options)
        return self._infer(checks.check_model(model), _sendable(frame), how, until)

    def infer_many(
        self, frame: Any, models: Iterable[str], *, boxes: Boxes | None = None, color: str = "rgb",
        size: tuple[int, int] | None = None, stride: int | None = None, scale: tuple[float, float] | None = None,
        timeout: float | None = None, priority: int | str | None = None, **options: Any,
    ) -> dict[str, Any]:  # fmt: skip
        """As `zoo.Client.infer_many`: the frame goes into the engine's store once."""
        until = self._until(timeout)
        names = checks.check_models(models)
        how = _how(boxes=boxes, color=color, size=size, stride=stride, scale=scale, priority=priority, **options)
        shared = _stored(_sendable(frame))
        self._meet(until)

        def one(name: str) -> Any:
            try:
                return self._infer(name, shared, how, until)
            except ZooError as e:
                return e

        return dict(zip(names, self._pool.map(one, names), strict=True))

    def enrich(
        self, frame: Any, detections: Any, *, suspicious: bool = False, color: str = "rgb",
        size: tuple[int, int] | None = None, stride: int | None = None, scale: tuple[float, float] | None = None,
        min_score: float | None = None, timeout: float | None = None, priority: int | str | None = None,
    ) -> Enrichment:  # fmt: skip
        """As `zoo.Client.enrich`; each model is asked where it is."""
        until = self._until(timeout)
        look = _how(color=color, size=size, stride=stride, scale=scale, priority=priority)
        detector = formats.check_format(color, size, stride, scale)
        event = Event(_sendable(frame), detections, suspicious, min_score, detector)
        started = time.monotonic()
        plan = Plan(self._table(until), event, started, None if timeout is None else until.seconds)
        shared: dict[bool, Any] = {}
        under_way: dict[concurrent.futures.Future[Any], str] = {}
        while not plan.done:
            for ask in plan.take(time.monotonic()):
                if ask.video not in shared:
                    shared[ask.video] = _stored(plan.frames if ask.video else plan.frames[-1])
                how = {**ask.options, **look, "boxes": ask.boxes}
                left = Deadline(max(0.001, plan.deadline - time.monotonic()))
                job = self._submit(self._infer, ask.model, shared[ask.video], how, left)
                under_way[job] = ask.model
            wait = max(0.01, min(plan.wake, plan.deadline) - time.monotonic())
            if not under_way:
                self._closed.wait(wait)
            done, _ = concurrent.futures.wait(under_way, wait, concurrent.futures.FIRST_COMPLETED)
            for job in done:
                e = job.exception()
                if e is not None and not isinstance(e, ZooError):
                    raise e
                plan.answer(under_way.pop(job), e if e is not None else job.result(), time.monotonic())
        return plan.result(time.monotonic())

    def frame(self, shape: tuple[int, ...], dtype: str = "uint8") -> StoredFrame:
        """An empty frame: fill `.array`, send it, leave the `with` block."""
        return StoredFrame(shape, dtype)

    # ------------------------------------------------------------ models

    def load(self, model: str, *, keep_alive: float | None = None, timeout: float | None = None) -> NodeLease:
        """As `zoo.Client.load`, on one node, where its calls go."""
        until, name = self._until(timeout), checks.check_model(model)
        how = {"keep_alive": checks.check_keep_alive(keep_alive)}
        self._meet(until)
        answer = self._ask("lease", name, until, lambda left: (name, {**how, "timeout": left}), seen_at=1)
        lease = NodeLease(self, name, answer.node, answer.value, keep_alive)
        self._hold(lease)
        if self._renewer is None:
            self._renewer = threading.Thread(target=self._renew, name="zoo-ray-leases", daemon=True)
            self._renewer.start()
        return lease

    def get_model(self, model: str, *, timeout: float | None = None) -> None:
        """Loads a model on the best node without keeping it."""
        self._call("get_model", checks.check_model(model), (model,), timeout, timed=True)

    def unload(self, model: str, *, timeout: float | None = None) -> bool:
        """Ends the model's processes on all nodes that have it; returns when their memory is back."""
        seconds = checks.check_timeout(timeout, self.timeout)
        return any(
            found for _, found in self._each("unload", (checks.check_model(model),), timeout=seconds, timed=True)
        )

    def pin(self, model: str) -> None:
        """The model is not evicted any more on the nodes that have it, or on the one where it would be loaded."""
        for key in [AT + node for node in self._board.holds(model)] or [checks.check_model(model)]:
            self._call("pin", key, (model,))

    def unpin(self, model: str) -> None:
        self._each("unpin", (checks.check_model(model),))

    def cleanup_idle_models(self, idle_seconds: float = 300.0) -> list[str]:
        idle = checks.check_seconds("idle_seconds", idle_seconds)
        return [name for _, names in self._each("cleanup_idle_models", (idle,)) for name in names]

    def footprint(self, model: str | None = None, *, forget: bool = False) -> list[dict[str, Any]]:
        return self._rows("footprint", (model,), forget=forget)

    def reload(self) -> list[str]:
        """Each node's broker reads its configuration again. (`deploy` brings a changed one to the nodes.)"""
        return [f"{node}: {line}" for node, lines in self._each("reload", ()) for line in lines]

    # ------------------------------------------------------------ looking

    def get_status(self) -> dict[str, Any]:
        """Of all nodes: `nodes`, each node's own status by its name, and the sums and lists of them together."""
        nodes = dict(self._each("get_status", ()))
        total: dict[str, Any] = {"nodes": nodes}
        for key in ("vram_budget_mb", "vram_used_mb", "vram_available_mb", "leases", "requests", "running", "workers"):
            total[key] = sum(one[key] for one in nodes.values())
        total["loaded_models"] = [{**row, "node": node} for node, one in nodes.items() for row in one["loaded_models"]]
        return total

    def models(self, model: str | None = None) -> list[dict[str, Any]]:
        """As of one node, with `nodes`: where the model is loaded or loads."""
        rows: dict[str, dict[str, Any]] = {}
        for node, found in self._each("models", (model,)):
            for row in found:
                one = rows.setdefault(row["name"], {**row, "nodes": []})
                if row["state"] in STATES:
                    one["nodes"].append(node)
                    if one["state"] != "loaded":
                        one["state"] = row["state"]
        return list(rows.values())

    def processes(self) -> list[dict[str, Any]]:
        return self._rows("processes", ())

    def explain(self, model_or_request: str | int | None = None) -> list[str]:
        """Each line begins with the node's name. Nodes that do not know a request's number are left out."""
        found = self._each("explain", (model_or_request,), tolerant=isinstance(model_or_request, int))
        return [f"{node}: {line}" for node, lines in found for line in lines]

    def overview(self, *, since: int = 0) -> dict[str, Any]:
        """Each node's own, by its name."""
        return dict(self._each("overview", (), since=since))

    def logs(self, model: str | None = None, *, since: int = 0) -> dict[str, Any]:
        """A page of each node's log, by its name."""
        return dict(self._each("logs", (model,), since=since))

    def record(self, what: str = "status", *, since: int = 0) -> dict[str, Any]:
        """Each node's own, by its name."""
        return dict(self._each("record", (what,), since=since))

    # ------------------------------------------------------------ calls

    def _until(self, timeout: float | None) -> Deadline:
        return Deadline(checks.check_timeout(timeout, self.timeout))

    def _submit(self, call: Callable[..., Any], *about: Any, **how: Any) -> concurrent.futures.Future[Any]:
        try:
            return self._pool.submit(call, *about, **how)
        except RuntimeError:
            raise client_closed() from None

    def _infer(
        self, model: str, sent: Any, how: dict[str, Any], until: Deadline, lease: NodeLease | None = None
    ) -> Any:
        self._meet(until)
        key = model if lease is None else AT + lease.node
        return self._ask("infer", key, until, lambda left: (model, sent, {**how, "timeout": left}), 2, lease).value

    def _call(
        self, what: str, key: str, about: tuple[Any, ...], timeout: float | None = None, *, timed: bool = False,
        **how: Any,
    ) -> NodeAnswer:  # fmt: skip
        return self._ask(
            "call", key, self._until(timeout), lambda left: (what, about, {**how, "timeout": left} if timed else how)
        )

    def _ask(
        self, method: str, key: str, until: Deadline, arguments: Callable[[float], tuple[Any, ...]], seen_at: int = 1,
        lease: NodeLease | None = None,
    ) -> NodeAnswer:  # fmt: skip
        """The answer of a node; asks again where one is gone, until the time is over.

        Args:
            key: what the router goes by. arguments: of the method, for the seconds that are left. seen_at: where among
                them the number of the last report known goes. lease: whose node the key names.
        """
        trouble: Exception | None = None
        while (left := until.at - time.monotonic()) > 0:
            key = self._still(key, lease)
            given = list(arguments(left))
            given.insert(seen_at, self._board.number(key[1:]) if key.startswith(AT) else 0)
            try:
                answer: NodeAnswer = self._handle_for(method, key).remote(*given).result(timeout_s=left)
            except RayTaskError as e:
                raise BrokerUnreachable(f"{key or method}: a node failed: {e.cause}", retryable=False) from e
            except TimeoutError:
                break
            except TypeError as e:
                raise InvalidInput(f"{key or method}: an argument cannot be sent: {e}") from e
            except (RayError, RayServeException) as e:  # also an answer that was lost with its node
                trouble = e
                if isinstance(e, RayActorError) and e.actor_id:
                    self._board.doubt(actor=e.actor_id)
                    if lease is not None and key.startswith(AT):
                        lease.lost, key = True, lease.model
                self._closed.wait(min(AGAIN_S, until.left()))
                continue
            if answer.report is not None:
                self._board.heard(answer.node, reports.read(answer.report))
            if lease is not None and key.startswith(AT) and answer.node != key[1:]:
                lease.lost = True  # the router knew before us that its node is gone
            if answer.failure is None:
                return answer
            found = error(answer.failure, answer.node)
            if not isinstance(found, BrokerUnreachable):
                raise found
            trouble = found
            self._board.doubt(answer.node)
            self._closed.wait(min(AGAIN_S, until.left()))
        about, time_s = key or method, f"{until.seconds:g} s"
        if trouble is not None:
            raise BrokerUnreachable(f"{about}: no node answered within {time_s}; the last said: {trouble}") from trouble
        raise DeadlineExceeded(f"{about}: the deadline passed after {time_s}; raise timeout, or ask `explain` why")

    def _still(self, key: str, lease: NodeLease | None) -> str:
        """The key, or the model's own where the lease's node is gone: another node must not be asked in its place."""
        if self._closed.is_set():
            raise client_closed()
        if not key.startswith(AT) or key[1:] in self._board.nodes():
            return key
        if lease is None:
            raise BrokerUnreachable(f"node {key[1:]} is gone", retryable=True)
        lease.lost = True
        return lease.model

    def _handle_for(self, method: str, key: str) -> Any:
        found = self._handles.get((method, key))
        if found is None:
            found = self._handles[method, key] = self._handle.options(method_name=method, multiplexed_model_id=key)
        return found

    # ------------------------------------------------------------ every node

    def _meet(self, until: Deadline) -> None:
        """Asks each node for its report, before the first choice among them: the engine's come a second later."""
        if not self._met:
            self._met = True
            with contextlib.suppress(ZooError):
                self._each("get_status", (), timeout=until.left())

    def _nodes(self, timeout: float | None) -> list[str]:
        if not self._board.nodes():
            self._call("get_status", "", (), timeout)
        return list(self._board.nodes())

    def _each(self, what: str, about: tuple[Any, ...], *, tolerant: bool = False, **how: Any) -> list[tuple[str, Any]]:
        """(node, value) of every node. `tolerant`: nodes that answer with an error are left out, unless all do."""
        nodes = self._nodes(how.get("timeout"))
        jobs = [self._submit(self._call, what, AT + node, about, **how) for node in nodes]
        last: ZooError | None = None
        found: list[tuple[str, Any]] = []
        for node, job in zip(nodes, jobs, strict=True):
            try:
                answer = job.result()
            except BrokerUnreachable as e:
                last = e
            except ZooError as e:
                if not tolerant:
                    raise
                last = e
            else:
                if answer.node == node:
                    found.append((node, answer.value))
        if not found:
            raise last or BrokerUnreachable(f"{what}: no node answered")
        return found

    def _rows(self, what: str, about: tuple[Any, ...], **how: Any) -> list[dict[str, Any]]:
        return [{**row, "node": node} for node, rows in self._each(what, about, **how) for row in rows]

    def _table(self, until: Deadline) -> Any:
        table = read_table(self._call("enrich_table", "", (), until.left(), timed=True).value)
        states = {
            name: Residence("loaded" if self._board.holds(name) else "unloaded", where.vram_mb)
            for name, where in table.models.items()
        }
        return msgspec.structs.replace(table, models=states)

    # ------------------------------------------------------------ leases

    def _hold(self, lease: NodeLease) -> None:
        if lease.number is not None:
            self._leases[lease.number] = lease

    def _renew(self) -> None:
        while not self._closed.wait(RENEW_S):
            self._renew_once()  # a frame of its own: what it holds on to would never be garbage

    def _renew_once(self) -> None:
        """Says to the nodes that their leases are still held. A node forgets those of a client that is gone."""
        by_node: defaultdict[str, dict[int, NodeLease]] = defaultdict(dict)
        for ref in self._leases.valuerefs():
            if (lease := ref()) is not None and not lease.lost and lease.number is not None:
                by_node[lease.node][lease.number] = lease
        there = self._board.nodes()
        told = {node: self._tell("renew", node, [*leases]) for node, leases in by_node.items() if node in there}
        until = Deadline(RENEW_S)
        for node, leases in by_node.items():
            try:
                kept = told[node].result(timeout_s=until.left()) if node in told else []
            except Exception:
                continue  # it is said again, and the node's own answer counts
            for number, lease in leases.items():
                if number not in kept and lease.number == number:
                    lease.lost = True

    def _tell(self, what: str, node: str, numbers: list[int]) -> Any:
        return self._handle_for(what, AT + node).remote(numbers)

    def _release(self, held: dict[int, str], seconds: float) -> None:
        """Number → node. One that is gone has forgotten it."""
        there = self._board.nodes()
        until = Deadline(seconds)
        told = []
        for number, node in held.items():
            self._leases.pop(number, None)
            if node in there:
                told.append(self._tell("release", node, [number]))
        for one in told:
            with contextlib.suppress(RayError, RayServeException, TimeoutError):
                one.result(timeout_s=until.left())

    # ------------------------------------------------------------ its end

    def close(self) -> None:
        """Gives its leases back. The client cannot be used any more."""
        if not self._closed.is_set():
            self._closed.set()
            held = [lease for ref in self._leases.valuerefs() if (lease := ref()) is not None]
            self._release({lease.number: lease.node for lease in held if lease.number is not None}, END_S)
            self._pool.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _how(
    *, boxes: Any = None, color: str = "rgb", size: Any = None, stride: Any = None, scale: Any = None,
    priority: int | str | None = None, **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """What travels of the arguments of an inference. Raises InvalidInput."""
    checks.check_priority(priority)
    formats.check_format(color, size, stride, scale)
    look = {"color": color, "size": size, "stride": stride, "scale": scale}
    return {**options, **look, "boxes": boxes, "priority": priority}


def _sendable(frame: Any) -> Any:
    """A frame in a form that any node can read. Raises InvalidInput."""
    if isinstance(frame, ray.ObjectRef):
        return frame
    if isinstance(frame, dict):
        arrays.named(frame, {})
        return {name: _part(part) for name, part in frame.items()}
    if isinstance(frame, list | tuple):
        return [_part(part) for part in arrays.check_frames(frame)]
    return _part(frame)


def _part(part: Any) -> Any:
    part = getattr(part, "array", part)
    checked = arrays.check_frame(part)
    return bytes(part) if isinstance(part, bytes | bytearray | memoryview) else checked


def _stored(sent: Any) -> Any:
    """In the engine's store. Raises BrokerUnreachable."""
    if isinstance(sent, ray.ObjectRef):
        return sent
    try:
        return ray.put(sent)
    except RayError as e:
        raise BrokerUnreachable(f"the engine's store does not take the frame: {e}", retryable=True) from e
