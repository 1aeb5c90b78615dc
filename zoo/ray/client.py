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
from collections.abc import Callable, Iterable
from typing import Any, Self

import msgspec
import numpy as np
import ray
from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import RayServeException

from zoo.client import checks
from zoo.client.enrich import Plan, Residence, read_table
from zoo.client.event import Event
from zoo.enrichment import Enrichment
from zoo.errors import BrokerUnreachable, DeadlineExceeded, ZooError
from zoo.ray import reports
from zoo.ray.board import board
from zoo.ray.node import RENEW_S, NodeAnswer, error
from zoo.ray.router import AT
from zoo.wire import formats

AGAIN_S = 0.05  # before a call is made again
STATES = ("loaded", "loading")


class NodeLease:
    """Keeps a model loaded on one node, as `zoo.Lease` does; its calls go there.

    When the node is gone, `lost` is true, and the next call takes the lease again on another node, within its own time.

    Attributes:
        model: its name. node: where it is held.
    """

    def __init__(self, of: ClusterClient, model: str, node: str, number: int, keep_alive: float | None) -> None:
        self.model, self.node = model, node
        self.lost = False
        self._client, self._number, self._keep_alive = of, number, keep_alive

    def __call__(self, frame: Any, **how: Any) -> Any:
        if self.lost:
            again = self._client.load(self.model, keep_alive=self._keep_alive, timeout=how.get("timeout"))
            self.node, self._number, self.lost = again.node, again._number, False
            self._client._take_over(again, self)
        return self._client._infer(self.model, frame, how, AT + self.node, self)

    def release(self) -> None:
        """Gives the lease back; again is harmless, and so is a node that is gone."""
        self._client._release(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class StoredFrame:
    """An empty frame: fill `.array`, send it as often as you like."""

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        self.array = np.zeros(shape, dtype)

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
        if not ray.is_initialized():
            ray.init(address=address or "auto", logging_level="WARNING")
        self._board = board(name)
        try:
            self._handle = serve.get_app_handle(name)
        except RayServeException as e:
            raise BrokerUnreachable(f"no application {name!r} is deployed: {e}") from None
        self._handles: dict[tuple[str, str], Any] = {}
        self._leases: weakref.WeakValueDictionary[tuple[str, int], NodeLease] = weakref.WeakValueDictionary()
        self._closed = threading.Event()
        self._renewer: threading.Thread | None = None
        self._pool = concurrent.futures.ThreadPoolExecutor(32, "zoo-ray")
        self._met = False

    # ------------------------------------------------------------ inference

    def infer(self, model: str, frame: Any, **how: Any) -> Any:
        """As `zoo.Client.infer`, with the same arguments."""
        return self._infer(checks.check_model(model), frame, how, model)

    def infer_many(self, frame: Any, models: Iterable[str], **how: Any) -> dict[str, Any]:
        """As `zoo.Client.infer_many`: the frame goes into the engine's store once."""
        names = checks.check_models(models)
        shared = ray.put(_sendable(frame))

        def one(name: str) -> Any:
            try:
                return self._infer(name, shared, how, name)
            except ZooError as e:
                return e

        return dict(zip(names, self._pool.map(one, names), strict=True))

    def enrich(
        self, frame: Any, detections: Any, *, suspicious: bool = False, color: str = "rgb",
        size: tuple[int, int] | None = None, stride: int | None = None, scale: tuple[float, float] | None = None,
        min_score: float | None = None, timeout: float | None = None, priority: int | str | None = None,
    ) -> Enrichment:  # fmt: skip
        """As `zoo.Client.enrich`; each model is asked where it is."""
        seconds = checks.check_timeout(timeout, self.timeout)
        look = {"color": color, "size": size, "stride": stride, "scale": scale, "priority": priority}
        event = Event(frame, detections, suspicious, min_score, formats.check_format(color, size, stride, scale))
        started = time.monotonic()
        plan = Plan(self._table(seconds), event, started, None if timeout is None else seconds)
        shared = {False: ray.put(plan.frames[-1]), True: ray.put(plan.frames)} if not plan.done else {}
        under_way: dict[concurrent.futures.Future[Any], str] = {}
        while not plan.done:
            for ask in plan.take(time.monotonic()):
                left = max(0.001, plan.deadline - time.monotonic())
                how = {**ask.options, **look, "boxes": ask.boxes, "timeout": left}
                job = self._pool.submit(self._infer, ask.model, shared[ask.video], how, ask.model)
                under_way[job] = ask.model
            wait = max(0.0, min(plan.wake, plan.deadline) - time.monotonic())
            done, _ = concurrent.futures.wait(under_way, wait or 0.01, concurrent.futures.FIRST_COMPLETED)
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
        seconds = checks.check_timeout(timeout, self.timeout)
        if not self._met:
            self._meet()
        answer = self._ask(
            "lease", model, seconds, lambda left: (model, {"keep_alive": keep_alive, "timeout": left}), seen_at=1
        )
        lease = NodeLease(self, model, answer.node, answer.value, keep_alive)
        self._leases[lease.node, answer.value] = lease
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
        return [name for _, names in self._each("cleanup_idle_models", (idle_seconds,)) for name in names]

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
        by_node = list(self._each("models", (model,)))
        rows: dict[str, dict[str, Any]] = {}
        for node, found in by_node:
            for row in found:
                one = rows.setdefault(row["name"], {**row, "nodes": []})
                if row["state"] in STATES:
                    one["nodes"].append(node)
                    one["state"] = row["state"] if one["state"] != "loaded" else "loaded"
        return list(rows.values())

    def processes(self) -> list[dict[str, Any]]:
        return self._rows("processes", ())

    def explain(self, model_or_request: str | int | None = None) -> list[str]:
        """Each line begins with the node's name. Nodes that do not know a request's number are left out."""
        found = self._each("explain", (model_or_request,), tolerant=isinstance(model_or_request, int))
        return [f"{node}: {line}" for node, lines in found for line in lines]

    def logs(self, model: str | None = None) -> dict[str, Any]:
        """The first page of each node's log, by its name."""
        return dict(self._each("logs", (model,)))

    # ------------------------------------------------------------ calls

    def _infer(self, model: str, frame: Any, how: dict[str, Any], key: str, lease: NodeLease | None = None) -> Any:
        how = dict(how)
        seconds = checks.check_timeout(how.pop("timeout", None), self.timeout)
        if not self._met:
            self._meet()
        sent = frame if isinstance(frame, ray.ObjectRef) else _sendable(frame)

        def arguments(left: float) -> tuple[Any, ...]:
            return model, sent, {**how, "timeout": left}

        return self._ask("infer", key, seconds, arguments, seen_at=2, lease=lease).value

    def _call(
        self,
        what: str,
        key: str,
        about: tuple[Any, ...],
        timeout: float | None = None,
        *,
        timed: bool = False,
        **how: Any,
    ) -> NodeAnswer:
        seconds = checks.check_timeout(timeout, self.timeout)
        return self._ask(
            "call", key, seconds,
            lambda left: (what, about, {**how, "timeout": left} if timed else how), seen_at=1,
        )  # fmt: skip

    def _ask(
        self, method: str, key: str, seconds: float, arguments: Callable[[float], tuple[Any, ...]], *, seen_at: int,
        lease: NodeLease | None = None,
    ) -> NodeAnswer:  # fmt: skip
        """The answer of a node; asks again where one is gone, until the time is over.

        Args:
            key: what the router goes by. arguments: of the method, for the seconds that are left. seen_at: where among
                them the number of the last report known goes.
        """
        deadline = time.monotonic() + seconds
        trouble: Exception | None = None
        while (left := deadline - time.monotonic()) > 0:
            given = list(arguments(left))
            given.insert(seen_at, self._board.number(key[1:]) if key.startswith(AT) else 0)
            response = self._handle_for(method, key).remote(*given)
            try:
                answer: NodeAnswer = response.result(timeout_s=left)
            except (RayActorError, RayServeException) as e:
                trouble = e
                self._gone(e)
                if lease is not None and (again := self._after(lease, key)) is not None:
                    key = again
                self._closed.wait(min(AGAIN_S, max(0.0, deadline - time.monotonic())))
                continue
            except TimeoutError:
                break
            except RayError as e:
                raise BrokerUnreachable(f"the engine failed: {e}", retryable=True) from e
            if answer.report is not None:
                self._board.heard(answer.node, reports.read(answer.report))
            if answer.failure is None:
                return answer
            found = error(answer.failure, answer.node)
            if not isinstance(found, BrokerUnreachable):
                raise found
            trouble = found
            self._board.doubt(answer.node)
            self._closed.wait(min(AGAIN_S, max(0.0, deadline - time.monotonic())))
        if trouble is not None:
            raise BrokerUnreachable(f"no node answered within {seconds:g} s; the last said: {trouble}") from trouble
        raise DeadlineExceeded(f"the deadline passed after {seconds:g} s")

    def _handle_for(self, method: str, key: str) -> Any:
        found = self._handles.get((method, key))
        if found is None:
            found = self._handles[method, key] = self._handle.options(method_name=method, multiplexed_model_id=key)
        return found

    def _gone(self, e: Exception) -> None:
        """Nodes whose actor died or cannot be reached are not asked for a while."""
        actor = getattr(e, "actor_id", None)
        for node in self._board.nodes():
            if actor is not None and node in str(e):
                self._board.doubt(node)

    def _after(self, lease: NodeLease, key: str) -> str | None:
        lease.lost = True
        return lease.model if key.startswith(AT) else None

    # ------------------------------------------------------------ every node

    def _meet(self) -> None:
        """Asks each node for its report, before the first choice among them: the engine's come a second later."""
        self._met = True
        with contextlib.suppress(ZooError):
            self._each("get_status", ())

    def _nodes(self) -> list[str]:
        if not (found := list(self._board.nodes())):
            self._ask("call", "", self.timeout, lambda _: ("get_status", (), {}), seen_at=1)
            found = list(self._board.nodes())
        return found

    def _each(self, what: str, about: tuple[Any, ...], *, tolerant: bool = False, **how: Any) -> list[tuple[str, Any]]:
        """(node, value) of every node. `tolerant`: nodes that answer with an error are left out, unless all do."""
        nodes = self._nodes()
        jobs = [self._pool.submit(self._call, what, AT + node, about, **how) for node in nodes]
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
        if not found and last is not None:
            raise last
        return found

    def _rows(self, what: str, about: tuple[Any, ...], **how: Any) -> list[dict[str, Any]]:
        return [{**row, "node": node} for node, rows in self._each(what, about, **how) for row in rows]

    def _table(self, seconds: float) -> Any:
        answer: NodeAnswer = self._handle_for("enrich_table", "").remote().result(timeout_s=seconds)
        table = read_table(answer.value)
        states = {
            name: Residence("loaded" if self._board.holds(name) else "unloaded", where.vram_mb)
            for name, where in table.models.items()
        }
        return msgspec.structs.replace(table, models=states)

    # ------------------------------------------------------------ leases

    def _renew(self) -> None:
        """Says to the nodes that their leases are still held. A node forgets those of a client that is gone."""
        while not self._closed.wait(RENEW_S):
            held = list(self._leases.values())
            for node in {lease.node for lease in held}:
                numbers = [lease._number for lease in held if lease.node == node and not lease.lost]
                try:
                    kept = self._handle_for("renew", AT + node).remote(numbers).result(timeout_s=RENEW_S)
                except (RayError, RayServeException, TimeoutError):
                    kept = [] if node not in self._board.nodes() else numbers
                for lease in held:
                    if lease.node == node and lease._number not in kept:
                        lease.lost = True

    def _take_over(self, again: NodeLease, lease: NodeLease) -> None:
        self._leases[lease.node, lease._number] = lease

    def _release(self, lease: NodeLease) -> None:
        if self._leases.pop((lease.node, lease._number), None) is not None:
            with contextlib.suppress(RayError, RayServeException, TimeoutError):
                self._handle_for("release", AT + lease.node).remote(lease._number).result(timeout_s=self.timeout)

    # ------------------------------------------------------------ its end

    def close(self) -> None:
        """Gives its leases back. The client cannot be used any more."""
        if not self._closed.is_set():
            for lease in list(self._leases.values()):
                self._release(lease)
            self._closed.set()
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._handle.shutdown()  # its router's threads

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _sendable(frame: Any) -> Any:
    return frame.array if hasattr(frame, "array") else frame
