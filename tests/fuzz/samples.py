"""One valid message of each kind, to be damaged."""

from __future__ import annotations

import numpy as np

from zoo import results
from zoo.timings import Timings
from zoo.wire import payload, protocol

FROM_CLIENT: list[protocol.Message] = [
    protocol.Infer(7, "toy", 900, 2, ()),
    protocol.Infer(8, "toy", 900, 0, (1, 2)),
    protocol.Load(9, "toy", 900, True, 1.5),
    protocol.Load(10, "toy", 900),
    protocol.Release(11, 3),
    protocol.Unload(12, "toy", 900),
    protocol.Pin(13, "toy", False),
    protocol.CleanupIdle(14, 1.0),
    protocol.Query(15, "explain", "toy"),
    protocol.Query(16, "status"),
    protocol.Query(17, "models"),
    protocol.Query(18, "ps"),
    protocol.Query(19, "enrich"),
    protocol.Query(20, "logs", "toy", 5),
    protocol.Reload(20),
    protocol.Footprint(21, "toy", True),
    protocol.Record(22, "start"),
    protocol.Record(23, "fetch", 5),
    protocol.Bye(),
    protocol.Cancel(7),
    protocol.Ping(),
]
HELLO = protocol.Hello(b"8 bytes!", 1, "fuzz")
FROM_BROKER: list[protocol.Message] = [
    protocol.Welcome("/run/handoff", 1 << 20, "boot"),
    protocol.Result(7, 1),
    protocol.Result(7, 1, 99, Timings(0.1, 0.2, 0.3, 0.7, 0.01, 0.02)),
    protocol.Error(7, "invalid_input", "no", False, 1.0, True, 9),
    protocol.Value(7, {"a": [1, "b"]}),
]
TO_WORKER: list[protocol.Message] = [
    protocol.Dispatch((protocol.Job(1, (1,), False, 1), protocol.Job(2, (), True, 2)), True, (b"digest",))
]
FROM_WORKER: list[protocol.Message] = [
    protocol.Loaded(0.5, 1.0, False, 4, True),
    protocol.LoadError("load_failed", "no", protocol.Shortage(1.0, 2.0)),
    protocol.Done((), False, False),
    protocol.Done((protocol.Outcome(1, (0, 4096)), protocol.Outcome(2, (), "invalid_input", "no")), True, True),
    protocol.Done((protocol.Outcome(1),), seconds=(0.1, 0.2, float("nan"))),
]
LIFELINE: list[protocol.Message] = [
    protocol.LifelineAttach("client", b"8 bytes!"),
    protocol.LifelineAttach("worker", b"w-1"),
    protocol.LifelineArena(1),
    protocol.LifelineAccepted(1),
    protocol.LifelineRefused("access_denied", "no"),
    protocol.LifelineGone(1),
    protocol.LifelineReleased(1, 4096),
    protocol.LifelineSettled(7),
    protocol.LifelineFingerprint(7, b"digest"),
    protocol.LifelineChannel(),
    protocol.LifelineCopy("why"),
]
REQUESTS = [
    payload.InferBody((payload.FrameRef(-1, 0, (4, 4, 3), "|u1"),), None, {"nonce": 1}),
    payload.InferBody(
        (payload.FrameRef(-1, 0, (4, 4, 3), "|u1", "bgr"),), ((0.0, 0.0, 2.0, 2.0), (1.0, 1.0, 4.0, 4.0))
    ),
    payload.InferBody((payload.FrameRef(1, 64, (2, 2), "<f4"), payload.FrameRef(-1, 1, (48,), "|u1", "encoded"))),
    payload.InferBody((payload.FrameRef(-1, 1, (6, 8), "|u1", "nv12", (7, 3)),), ((1.0, 0.0, 6.5, 3.0),)),
    payload.InferBody((payload.FrameRef(1, 32, (47,), "|u1", "i420", (5, 5), 5),)),
    payload.InferBody((payload.FrameRef(1, 8, (60,), "<u2", "gray16", (4, 5), 24, (10.0, 4095.0)),), ((0, 0, 2, 2),)),
    payload.InferBody((payload.FrameRef(1, 8, (2, 4, 3), ">u2", "bgr16", None, None, (0.0, 99.0)),)),
]
RESULTS = [
    payload.ResultBody([{"a": 1, "map": np.ones((3, 4), np.float32)}]),
    payload.ResultBody(
        [results.Detections(np.ones((1, 4), np.float32), np.ones(1, np.float32), np.zeros(1, np.int32), ["cat"])], True
    ),
]
