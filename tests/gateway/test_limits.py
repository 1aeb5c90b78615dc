"""Bodies and callers of every bad kind: each gets its answer, and neither the gateway nor other callers notice."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import http.client
import json
import socket
import struct
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from uvicorn.server import ServerState

from tests import support
from tests.gateway.serving import RunningGateway, served_alone
from tests.support import Running, wait_until
from zoo import errors
from zoo.config.gateway import GatewayConfig
from zoo.gateway import refusals, serving
from zoo.gateway import sessions as sessions_module
from zoo.gateway.sessions import Sessions

Start = Callable[..., RunningGateway]
PATH = "/v2/models/toy/infer"
HEAD = "Inference-Header-Content-Length"
FRAME = np.full((8, 8, 3), 3, np.uint8)
TOKENS = "porch caller 0123456789abcdef\nyard caller fedcba9876543210\n"
PORCH, YARD = ({"Authorization": f"Bearer {token}"} for token in ("0123456789abcdef", "fedcba9876543210"))


def request(raw: bytes = FRAME.tobytes(), /, **changed: Any) -> tuple[bytes, dict[str, str]]:
    """Body and headers of an inference; `changed`: keys of its one input, and `parameters` of the request."""
    parameters = changed.pop("parameters", {})
    tensor = {
        "name": "image", "datatype": "UINT8", "shape": list(FRAME.shape),
        "parameters": {"binary_data_size": len(raw)}, **changed,
    }  # fmt: skip
    head = json.dumps({"inputs": [tensor], "parameters": parameters}).encode()
    return head + raw, {HEAD: str(len(head))}


# ---------------------------------------------------------------- bodies


@pytest.fixture(scope="module")
def served() -> Iterator[RunningGateway]:
    with served_alone([support.toy()], max_body_mb=1, body_seconds=1.0, arena_mb=2) as gateway:
        yield gateway


def test_a_body_that_says_it_is_too_large_is_refused_unread(served: RunningGateway) -> None:
    with socket.create_connection(("127.0.0.1", served.port), 10) as sock:
        sock.sendall(f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n".encode())
        answer = http.client.HTTPResponse(sock)
        answer.begin()
        assert (answer.status, json.loads(answer.read())["code"]) == (413, "body_too_large")


def test_a_body_without_a_length_may_be_as_large_and_no_larger(served: RunningGateway) -> None:
    body, headers = request()
    pieces = [body[i : i + 7] for i in range(0, len(body), 7)]
    assert served.ask("POST", PATH, iter(pieces), headers).status == 200
    data = bytes(1 << 20)
    body, headers = request(data, shape=[len(data)])
    assert served.ask("POST", PATH, iter([body[:1000], body[1000:]]), headers).status == 413
    body, headers = request(bytes(1 << 20))
    assert served.ask("POST", PATH, gzip.compress(body), {**headers, "Content-Encoding": "gzip"}).status == 400
    body, headers = request()
    packed = gzip.compress(body)
    headers["Content-Encoding"] = "gzip"
    assert served.ask("POST", PATH, packed, headers).status == 200
    assert served.ask("POST", PATH, packed[:-1], headers).status == 400
    assert served.ask("POST", PATH, packed + b"more", headers).status == 400
    assert served.ask("POST", PATH, iter([packed, b"more"]), headers).status == 400
    nothing = b"\x78\x9c" + b"\0\0\0\xff\xff" * 300_000  # blocks without a byte in them
    assert served.ask("POST", PATH, iter([nothing]), {"Content-Encoding": "deflate"}).status == 413
    bomb = gzip.compress(bytes(50 << 20))
    assert served.ask("POST", PATH, bomb, {"Content-Encoding": "gzip"}).status == 413


def test_a_body_that_does_not_come_ends_in_time(served: RunningGateway) -> None:
    body, headers = request()
    given = {"Host": "localhost", "Content-Length": str(len(body)), **headers}
    lines = "".join(f"{name}: {value}\r\n" for name, value in given.items())
    with socket.create_connection(("127.0.0.1", served.port), 10) as sock:
        sock.sendall(f"POST {PATH} HTTP/1.1\r\n{lines}\r\n".encode() + body[:-1])
        answer = http.client.HTTPResponse(sock)
        answer.begin()
        assert (answer.status, json.loads(answer.read())["code"]) == (408, "body_too_slow")


@pytest.mark.parametrize(
    ("body", "headers", "says"),
    [
        (b"", {}, "body"),
        (b"[]", {}, "body"),
        (b"{" * 100_000, {}, "body"),
        (b'{"inputs": []}', {}, "inputs"),
        (b'{"inputs": [{"name": "image"}]}', {}, "body"),
        (b"\xff\xfe", {}, "body"),
        (*request(b""), "image"),
        (*request(FRAME.tobytes()[:-1]), "image: 191 bytes of data"),
        (*request(FRAME.tobytes() + b"x"), "image: 193 bytes"),
        (*request(parameters={"timeout": -1}), "parameters: timeout"),
        (*request(parameters={"timeout": "soon"}), "parameters: timeout"),
        (*request(parameters={"priority": 1.5}), "parameters: priority"),
        (*request(parameters={"frame": 1}), "parameters: frame"),
        (*request(parameters={"boxes": [[0, 0, 1]]}), "boxes"),
        (*request(parameters={"boxes": "all"}), "boxes"),
        (*request(shape=[8, 8, -3]), "image: shape"),
        (*request(shape=[1 << 62, 1 << 62]), "image: shape"),
        (*request(shape=[1 << 39, 1 << 39]), "image: a tensor"),
        (*request(shape=[1] * 40), "image: shape"),
        (*request(datatype="FP8"), "image: datatype"),
        (*request(datatype="BF16"), "image: datatype"),
        (*request(parameters={}, parameters_=0)[:1], {HEAD: "999999"}, "body: it ends"),
        (request()[0], {HEAD: "-1"}, HEAD),
        (request()[0], {HEAD: "1e3"}, HEAD),
        (request()[0], {HEAD: "99999999999999999999"}, HEAD),
        (request()[0], {}, "body"),
        (*request(b"", data=[1, 2]), "image: it has data"),
        (*request(struct.pack("<I", 1 << 31) + b"x", datatype="BYTES", shape=[1]), "image: the lengths"),
        (*request(struct.pack("<I", 0), datatype="BYTES", shape=[1]), "image: the lengths"),
        (*request(b"abc", datatype="BYTES", shape=[1]), "image: the lengths"),
        (*request(struct.pack("<I", 1) + b"xy", datatype="BYTES", shape=[1]), "image: 1 bytes are left"),
        (*request(struct.pack("<I", 4) + b"jpeg", datatype="BYTES", shape=[1]), "frame: not an image"),
        (*request(b"", datatype="BYTES", shape=[0]), "image: 0 pictures"),
        (*request(b"", datatype="BYTES", shape=[1 << 30]), "image: 1073741824 pictures"),
        (*request(b"", shape=[0, 8, 8, 3]), "image: a video of 0"),
        (*request(b"", shape=[0]), "frame: it is empty"),
        (*request(name="boxes"), "boxes"),
        (*request(name="other", datatype="BYTES"), "other: BYTES"),
    ],
)  # fmt: skip
def test_a_body_that_is_wrong_is_told_which_part(
    served: RunningGateway, body: bytes, headers: dict[str, str], says: str
) -> None:
    answer = served.ask("POST", PATH, body, headers)
    assert (answer.status, answer.json["code"]) == (400, "invalid_input"), answer.body
    assert says in answer.json["error"]


@pytest.mark.parametrize(
    ("data", "datatype", "says"),
    [
        ([300], "UINT8", "beyond UINT8"), ([-1], "UINT8", "beyond UINT8"), ([1.5], "INT32", "no INT32"),
        (["1"], "FP32", "no FP32"),
        ([True], "UINT8", "no UINT8"), ([1], "BOOL", "no BOOL"), ([None], "FP32", "no FP32"),
        ([1 << 70], "INT64", "no INT64"),
        ([[1], [2, 3]], "UINT8", "data"), ([1, 2], "UINT8", "data"), ({}, "UINT8", "data"),
        (["not base64!"], "BYTES", "base64"),
        (["", ""], "BYTES", "expected 1 texts"), ("abcd", "BYTES", "expected 1 texts"),
    ],
)  # fmt: skip
def test_numbers_in_json_that_are_none(served: RunningGateway, data: Any, datatype: str, says: str) -> None:
    tensor = {"name": "image", "shape": [1], "datatype": datatype, "data": data}
    answer = served.ask("POST", PATH, {"inputs": [tensor]})
    assert answer.status == 400
    assert says in answer.json["error"]


def test_a_picture_in_json_is_base64(served: RunningGateway) -> None:
    import base64

    from tests.gateway.test_kserve import jpeg

    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [base64.b64encode(jpeg()).decode()]}
    answer = served.ask("POST", PATH, {"inputs": [tensor]}).json
    assert next(one for one in answer["outputs"] if one["name"] == "mean")["data"] == [3.0]


def test_what_goes_wrong_keeps_no_memory(served: RunningGateway) -> None:
    """The arena has 2 MB, and each of these takes most of one."""
    data = bytes(900_000)
    body, headers = request(data, shape=[len(data)])
    cut = body[:-5]
    for _ in range(12):
        assert served.ask("POST", PATH, cut, headers).status == 400
        assert served.ask("POST", PATH, body + b"more", headers).status == 400
    assert served.ask("POST", PATH, body, headers).status == 200


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats() | st.text(max_size=4)
    | st.sampled_from(["UINT8", "BYTES", "FP32", "image", "boxes", 192, 8, 3]),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.sampled_from(["binary_data_size", "x"]), inner, max_size=2),
    max_leaves=6,
)  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(st.sampled_from(["name", "datatype", "shape", "parameters", "data"]), anything, max_size=3),
    st.dictionaries(st.sampled_from(["timeout", "priority", "boxes", "color", "size", "do"]), anything, max_size=2),
    st.lists(anything, max_size=2),
    st.binary(max_size=40) | st.just(FRAME.tobytes()),
    st.integers(-3, 3),
)  # fmt: skip
def test_no_body_is_answered_with_an_error_of_the_gateways_own(
    served: RunningGateway,
    tensor: dict[str, Any],
    parameters: dict[str, Any],
    outputs: list[Any],
    data: bytes,
    off: int,
) -> None:
    body, headers = request(data)
    head = json.loads(body[: int(headers[HEAD])])
    head["inputs"][0] |= tensor
    head |= {"parameters": parameters, **({"outputs": outputs} if outputs else {})}
    raw = json.dumps(head).encode()
    answer = served.ask("POST", PATH, raw + data, {HEAD: str(len(raw) + off)})
    assert answer.status in (200, 400, 408, 413, 504), answer.body
    assert served.process.poll() is None
    assert "of the gateway's own" not in served.log()


# ---------------------------------------------------------------- callers


def ask(gateway: RunningGateway, headers: dict[str, str], **parameters: Any) -> http.client.HTTPConnection:
    """Sends an inference and does not wait for its answer."""
    body, own = request(parameters=parameters)
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=30)
    connection.request("POST", PATH, body, {**own, **headers})
    return connection


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    file = tmp_path / "tokens"
    file.write_text(TOKENS)
    return file


def test_the_limits_of_a_caller_are_its_own(broker: Any, gateway_of: Start, tokens: Path) -> None:
    running = broker([support.toy(), support.toy("toy2")], max_queue_per_client=1)
    gateway = gateway_of(running, tokens=tokens)
    with running.client() as client:
        busy = ask(gateway, PORCH, do="sleep", seconds=1.5)
        wait_until(lambda: client.get_status()["running"] == 1)
        body, own = request()
        refused = gateway.ask("POST", PATH.replace("toy", "toy2"), body, {**own, **PORCH})
        assert (refused.status, refused.json["code"], refused.json["retryable"]) == (429, "queue_full", True)
        assert int(refused.headers["retry-after"]) >= 1
        assert gateway.ask("POST", PATH.replace("toy", "toy2"), body, {**own, **YARD}).status == 200
        assert busy.getresponse().status == 200
        busy.close()


def test_as_many_callers_as_there_may_be(broker: Any, gateway_of: Start, tokens: Path) -> None:
    running = broker()
    gateway = gateway_of(running, tokens=tokens, max_callers=1)
    body, own = request()
    with running.client() as client:
        wait_until(lambda: client.get_status()["sessions"] == 2, what="this test's and the gateway's own")
        busy = ask(gateway, PORCH, do="sleep", seconds=1.5)
        wait_until(lambda: client.get_status()["running"] == 1)
        refused = gateway.ask("POST", PATH, body, {**own, **YARD})
        assert (refused.status, "retry-after" in refused.headers) == (429, True)
        assert busy.getresponse().status == 200
        busy.close()
        assert gateway.ask("POST", PATH, body, {**own, **YARD}).status == 200  # it takes the unused one's place
        wait_until(lambda: client.get_status()["sessions"] == 3, what="the unused one's session is ended")


def test_a_request_whose_caller_has_gone_is_withdrawn(broker: Any, gateway_of: Start) -> None:
    running = broker()
    gateway = gateway_of(running)
    with running.client() as client:
        first = ask(gateway, {}, do="sleep", seconds=3)
        wait_until(lambda: client.get_status()["running"] == 1)
        second = ask(gateway, {}, do="sleep", seconds=3)
        wait_until(lambda: client.get_status()["requests"] == 2)
        gone = time.monotonic()
        second.close()
        wait_until(lambda: client.get_status()["requests"] == 1, 2.5)
        assert time.monotonic() - gone < 3
        assert first.getresponse().status == 200
        first.close()
    assert b'zoo_gateway_requests_total{door="kserve",status="499"} 1.0' in gateway.ask("GET", "/metrics").body
    assert "ERROR" not in gateway.log()


def test_connections_are_limited(broker: Any, gateway_of: Start) -> None:
    gateway = gateway_of(broker(), max_connections=3)
    opened = [http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=10) for _ in range(4)]
    statuses = []
    for connection in opened:
        connection.request("GET", "/v2/health/live")
        answer = connection.getresponse()
        answer.read()
        statuses.append(answer.status)
    assert statuses[:2] == [200, 200]
    assert statuses[-1] == 503
    for connection in opened:
        connection.close()
    wait_until(lambda: gateway.ask("GET", "/v2/health/live").status == 200)


def test_many_callers_at_once_get_their_own_answers(broker: Any, gateway_of: Start) -> None:
    gateway = gateway_of(broker())

    def one(value: int) -> float:
        frame = np.full((64, 64, 3), value, np.uint8)
        body, own = request(frame.tobytes(), shape=list(frame.shape))
        answer = gateway.ask("POST", PATH, body, own).json
        mean: float = next(tensor for tensor in answer["outputs"] if tensor["name"] == "mean")["data"][0]
        return mean

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(one, range(64))) == [float(i) for i in range(64)]


Scenario = Callable[[int, ServerState], Coroutine[Any, Any, None]]


def with_connections(scenario: Scenario, body: bytes = b"") -> None:
    """Runs it with the port of a server whose application answers with `body`, and the server's state."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        length = str(len(body)).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
        await send({"type": "http.response.body", "body": body})

    async def run() -> None:
        config = uvicorn.Config(app, log_config=None, lifespan="off")
        config.load()
        state = ServerState()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: serving.PatientHttp(config, state, {}), "127.0.0.1", 0)
        await scenario(server.sockets[0].getsockname()[1], state)
        server.close()

    asyncio.run(run())


def test_a_connection_that_says_nothing_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "HEAD_S", 0.1)

    async def scenario(port: int, state: ServerState) -> None:
        for beginning in (b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: localhost\r\nX: "):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(beginning)
            assert await asyncio.wait_for(_end(reader), 5)
            writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(3):
            writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
            await asyncio.sleep(0.15)  # longer than a head may take: between requests a connection may rest
        writer.close()

    with_connections(scenario)


def test_a_head_without_end_is_cut_off() -> None:
    async def scenario(port: int, state: ServerState) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
        with contextlib.suppress(ConnectionError):
            for _ in range(2 * serving.HEAD_BYTES // 10_000):
                writer.write(b"X: " + b"x" * 9_995 + b"\r\n")
                await writer.drain()
        assert await asyncio.wait_for(_end(reader), 5)
        writer.close()

    with_connections(scenario)


def test_an_answer_that_is_not_taken_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "ANSWER_S", 0.2)

    async def scenario(port: int, state: ServerState) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        async with asyncio.timeout(5):
            while not state.connections:
                await asyncio.sleep(0.001)
            while state.connections:
                await asyncio.sleep(0.001)
        writer.close()

    with_connections(scenario, bytes(64 << 20))


async def _end(reader: asyncio.StreamReader) -> bool:
    """Whether the other side closes the connection without a word."""
    try:
        return not await reader.read(100)
    except ConnectionError:
        return True


# ---------------------------------------------------------------- the table of errors


def test_every_error_has_its_status() -> None:
    assert {*errors.BY_CODE.values()} - {errors.ZooError} <= {*refusals.STATUS}
    for error, status, after in (
        (errors.InvalidInput("x"), 400, None), (errors.ModelNotFound("x"), 404, None),
        (errors.QueueFull("x"), 429, "1"),
        (errors.LoadFailed("x", retry_after=2.5), 503, "3"), (errors.BrokerUnreachable("x"), 503, "1"),
        (errors.DeadlineExceeded("x"), 504, None), (errors.OutOfMemory("x"), 507, None), (ValueError("x"), 500, None),
        (errors.ModelUnavailable("x"), 503, None), (refusals.Unauthorized("x"), 401, None),
    ):  # fmt: skip
        refusal = refusals.describe(error)
        assert refusal.status == status
        assert refusals.headers(refusal).get("Retry-After") == after
    assert "ValueError" not in refusals.describe(ValueError("secret")).text
    assert "secret" not in refusals.describe(ValueError("secret")).text


# ---------------------------------------------------------------- sessions


def test_requests_of_one_new_caller_share_the_session_that_makes_room(shared_broker: Running) -> None:
    """However long closing the replaced one takes."""

    async def scenario() -> None:
        sessions = Sessions(GatewayConfig(max_callers=1), shared_broker.endpoint)
        async with sessions.of("first") as first:
            pass
        closed = asyncio.Event()
        close = first.close

        async def close_slowly() -> None:
            await closed.wait()
            await close()

        first.close = close_slowly  # type: ignore[method-assign]
        given = []

        async def use() -> None:
            async with sessions.of("second") as client:
                given.append(client)
                await client.get_status()

        users = [asyncio.create_task(use()) for _ in range(3)]
        while len(given) < 2:  # those that do not wait for the replaced one's end
            await asyncio.sleep(0)
        assert len(sessions) == 1
        closed.set()
        await asyncio.gather(*users)
        assert len(given) == 3
        assert len({*map(id, given)}) == 1
        with pytest.raises(errors.QueueFull):
            async with sessions.of("second"), sessions.of("third"):
                pass
        await sessions.close()
        assert len(sessions) == 0

    asyncio.run(scenario())


def test_unused_sessions_are_closed_and_those_in_use_are_not(
    shared_broker: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions_module, "UNUSED_S", 0.0)
    monkeypatch.setattr(sessions_module, "LOOK_S", 0.005)

    async def scenario() -> None:
        sessions = Sessions(GatewayConfig(), shared_broker.endpoint)
        tidying = asyncio.create_task(sessions.tidy())
        async with sessions.of("used") as used:
            async with sessions.of("unused") as unused:
                await unused.get_status()
            while len(sessions) > 1:
                await asyncio.sleep(0.001)
            await used.get_status()
            with pytest.raises(errors.BrokerUnreachable, match="closed"):
                await unused.get_status()
        assert not tidying.done()
        tidying.cancel()
        await sessions.close()

    asyncio.run(scenario())
