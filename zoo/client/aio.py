"""`AsyncClient`: the zoo for asyncio. Its calls are in `zoo/client/calls.py`, its waiting in `zoo/client/tasks.py`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self, TypeVar

from zoo.client import calls, checks
from zoo.client.frames import Boxes, Frame
from zoo.client.tasks import Opening, Tasks, run
from zoo.enrichment import Enrichment

T = TypeVar("T")


class AsyncLease:
    """Keeps a model loaded: reference-counted, never evicted while held. Callable like `AsyncClient.infer`.

    What becomes of it when the broker is started again: see `Lease`.

    Attributes:
        model: its name.
    """

    def __init__(self, of: calls.Calls, held: calls.Held) -> None:
        self.model = held.model
        self._calls = of
        self._held = held

    @property
    def lost(self) -> bool:
        """The broker that granted it is gone, and it was not taken again yet."""
        return self._held.lost

    async def __call__(self, frame: Any, **how: Any) -> Any:
        return await run(self._calls.infer_leased(self._held, frame, how))

    async def release(self) -> None:
        """Gives the lease back; again is harmless, and so is a broker that is gone (it kept no leases)."""
        await run(self._calls.release(self._held))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.release()


class AsyncClient:
    """A connection to a zoo, for any number of tasks of one event loop.

    Args:
        endpoint: "ipc://…" or "tcp://…"; None takes $ZOO_ENDPOINT, else the configuration's.
        timeout: seconds for each call, unless it brings its own. The first call also waits, within it, for a
            broker that is still starting.
        arena_mb: shared memory for frames under way; made with the first frame.
    """

    def __init__(self, endpoint: str | None = None, *, timeout: float = 30.0, arena_mb: int = 64) -> None:
        self.endpoint = checks.check_endpoint(endpoint)
        self.timeout = checks.check_timeout(timeout, timeout)
        self._tasks = Tasks(self.endpoint, checks.check_arena_mb(arena_mb))
        self._calls = calls.Calls(self._tasks, self.timeout)

    # ------------------------------------------------------------ inference

    async def infer(
        self,
        model: str,
        frame: Any,
        *,
        boxes: Boxes | None = None,
        color: str = "rgb",
        size: tuple[int, int] | None = None,
        stride: int | None = None,
        scale: tuple[float, float] | None = None,
        timeout: float | None = None,
        priority: int | str | None = None,
        **options: Any,
    ) -> Any:
        """One answer of one model; loads it if need be.

        Args:
            frame: HxWx3 uint8 array (or as `color` says), `Frame`, JPEG or PNG bytes, or a list of them (video); for a
                model of tensors, a dict of arrays by name.
            boxes: (n, 4) xyxy in pixels; the worker crops, the answer is a list with one result per box, in
                coordinates of the frame. They are grown to whole pixels and clipped to the frame; shares of it (0 to 1)
                are refused.
            color: "rgb" or "bgr" (OpenCV); "nv12" or "i420": (H*3/2, W); "gray": (H, W). The worker makes them RGB, of
                YUV by BT.601 in limited range, as OpenCV does. "encoded": a JPEG or PNG file in a uint8 `Frame`.
            size, stride: width and height of the picture in pixels, and bytes in a row of Y or grey, where the shape of
                the array does not say so: odd sizes, padded rows, arrays of one dimension (`zoo/wire/formats.py`).
            scale: (lo, hi) of a uint16 frame, HxW or HxWx3: lo becomes 0, hi 255.
            timeout: seconds until `DeadlineExceeded`.
            priority: within the model's queue, CRITICAL (first) to LOW.
            options: for the adapter, JSON-like.

        Raises:
            ZooError: see `zoo.errors`; `retryable` says whether the same call may succeed later.
        """
        how = boxes, (color, size, stride, scale), timeout, priority
        return await run(self._calls.infer(model, frame, how, options))

    async def infer_many(
        self,
        frame: Any,
        models: Iterable[str],
        *,
        boxes: Boxes | None = None,
        color: str = "rgb",
        size: tuple[int, int] | None = None,
        stride: int | None = None,
        scale: tuple[float, float] | None = None,
        timeout: float | None = None,
        priority: int | str | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """The same frame to several models at once; it is written once. A failure is that model's value."""
        how = boxes, (color, size, stride, scale), timeout, priority
        return await run(self._calls.infer_many(frame, models, how, options))

    async def enrich(
        self,
        frame: Any,
        detections: Any,
        *,
        suspicious: bool = False,
        color: str = "rgb",
        size: tuple[int, int] | None = None,
        stride: int | None = None,
        scale: tuple[float, float] | None = None,
        min_score: float | None = None,
        timeout: float | None = None,
        priority: int | str | None = None,
    ) -> Enrichment:
        """What the right models say about each detection, by the broker's table (`docs/enrich.md`).

        The frame is written once; each model is asked once, with all of its boxes. What fails, or is not there in
        time, is missing from the answer with its reason, and takes nothing else along.

        Args:
            frame: as for `infer`; of a list, a video, the detections belong to the last frame.
            detections: `Detections`, `Keypoints` of a pose detector, or a list of (label, box), (label, box, score)
                or dicts with these keys.
            suspicious: whether this event is, which some models wait for.
            min_score: detections below it are left alone; None takes the table's.
            timeout: seconds for the whole event; None takes the table's.
            color, size, stride, scale, priority: as for `infer`.

        Raises:
            InvalidInput: an argument is wrong, or all boxes are shares of the frame. One bad box misses its answers.
            BrokerUnreachable: no broker has answered at all. (AccessDenied, ProtocolMismatch: it refused us.)
        """
        return await run(
            self._calls.enrich(
                frame, detections, suspicious, (color, size, stride, scale), min_score, timeout, priority
            )
        )

    def frame(self, shape: tuple[int, ...], dtype: str = "uint8") -> Opening[Frame]:
        """An empty frame in shared memory: fill `.array`, send it as often as you like, leave the `with` block."""
        return Opening(self._calls.frame(shape, dtype), Frame.close)

    # ------------------------------------------------------------ models

    def load(self, model: str, *, keep_alive: float | None = None, timeout: float | None = None) -> Opening[AsyncLease]:
        """Loads a model and keeps it: use the lease as a context manager, or call `.release()`.

        Args:
            keep_alive: seconds it stays after the last reference; 0 unloads it at once; None: its idle time.
        """
        return Opening(self._load(model, keep_alive, timeout), AsyncLease.release)

    def _load(self, model: str, keep_alive: float | None, timeout: float | None) -> calls.Steps[AsyncLease]:
        return AsyncLease(self._calls, (yield from self._calls.load(model, keep_alive, timeout)))

    async def get_model(self, model: str, *, timeout: float | None = None) -> None:
        """Loads a model without keeping it: from then on it may be evicted like any other."""
        await self._ask(calls.get_model(model, timeout))

    async def unload(self, model: str, *, timeout: float | None = None) -> bool:
        """Ends the model's process, after the work it has accepted. Its memory is back then. False: it was not loaded.

        Raises:
            ModelInUse: it is leased or pinned.
        """
        return await self._ask(calls.unload(model, timeout))

    async def pin(self, model: str) -> None:
        """The model is not evicted any more (it need not be loaded yet)."""
        await self._ask(calls.pin(model, True))

    async def unpin(self, model: str) -> None:
        """The model may be evicted again."""
        await self._ask(calls.pin(model, False))

    async def cleanup_idle_models(self, idle_seconds: float = 300.0) -> list[str]:
        """Evicts the models that were not used for that long; gives their names."""
        return await self._ask(calls.cleanup_idle_models(idle_seconds))

    async def footprint(self, model: str | None = None, *, forget: bool = False) -> list[dict[str, Any]]:
        """What the broker knows of a model's memory (None: of each), a row per device, in megabytes.

        With `forget`, what was measured no longer counts: the next process is charged what config.toml declares, until
        it is measured.

        Raises:
            ModelNotFound, AccessDenied. ProtocolMismatch: the broker is of a release that does not know this.
        """
        return await self._ask(calls.footprint(model, forget))

    async def reload(self) -> list[str]:
        """Has the broker read its config.toml again; gives what has changed, a line each.

        No model in use is ended for it: one that is removed, or was changed, ends when it is not used any more.

        Raises:
            ConfigError: the file is not valid, and nothing was changed.
        """
        return await self._ask(calls.reload())

    # ------------------------------------------------------------ looking

    async def get_status(self) -> dict[str, Any]:
        """Budget, use, and what is loaded. `docs/protocol.md` explains each field.

        `last_used` of a loaded model is ISO 8601 in UTC, such as "2024-01-15T10:30:00Z".
        """
        return await self._ask(calls.get_status())

    async def models(self, model: str | None = None) -> list[dict[str, Any]]:
        """Every registered model, or this one alone, and what keeps it from being served, if anything.

        `labels` are the names of its classes in the order of their numbers, as the model says them once it was loaded,
        until then as its files do. [] for one without; None while only a load can tell, and for more than
        some 2,000 unless it is asked for alone. `docs/protocol.md` explains each field.

        Raises:
            ModelNotFound: with a suggestion.
        """
        return await self._ask(calls.models(model))

    async def processes(self) -> list[dict[str, Any]]:
        """One row per living worker: charged and used memory, process id, leases, queue. `last_used`: as above."""
        return await self._ask(calls.processes())

    async def explain(self, model_or_request: str | int | None = None) -> list[str]:
        """Why: the last decisions, one line each, with the arithmetic.

        Args:
            model_or_request: a model: what concerns it, and its last requests that had to wait or were refused. A
                request, by its number (the `request` of an error, or from a line): when it came in, what it waited
                for, where it went, how it ended. None: everything.

        Raises:
            ModelNotFound: with a suggestion.
            InvalidInput: the request is neither under way nor one of the last.
        """
        return await self._ask(calls.explain(model_or_request))

    async def overview(self, *, since: int = 0) -> dict[str, Any]:
        """What was decided (a page, as of `logs`), what waits, how long inferences took; see `docs/protocol.md`."""
        return await self._ask(calls.overview(since))

    async def logs(self, model: str | None = None, *, since: int = 0) -> dict[str, Any]:
        """A page of the broker's log, from the oldest line that it keeps, or from where a page ended.

        Gives `lines` (as of `--log-format json`), `next` (the `since` of the next page), `more` (there is one already)
        and `boot` (another one: another broker, whose lines begin at 0).

        Raises:
            AccessDenied: it is for operators. ModelNotFound.
        """
        return await self._ask(calls.logs(model, since))

    async def record(self, what: str = "status", *, since: int = 0) -> dict[str, Any]:
        """Starts or stops the recording of requests for `zoo advise`, or gives a page of it (`docs/protocol.md`).

        Args:
            what: "start", "stop", "status" or "fetch". since: of a page, where the one before ended.

        Raises:
            AccessDenied: it is for operators. ProtocolMismatch: the broker is of a release that does not know this.
        """
        return await self._ask(calls.record(what, since))

    async def _ask(self, call: calls.Call[T]) -> T:
        return await run(self._calls.ask(call))

    # ------------------------------------------------------------ its end

    async def close(self) -> None:
        """Gives leases, slots and memory back. Results stay as they are; their memory goes with their arrays."""
        self._tasks.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
