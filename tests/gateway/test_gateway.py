"""The gateway as a process: who may call, from where, and what becomes of it when it or the broker ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gateway.serving import RunningGateway
from tests.support import ROOT, alive, wait_until
from zoo.config.gateway import GatewayConfig
from zoo.config.reading import parse_config
from zoo.errors import ConfigError
from zoo.gateway.access import Callers, KnownCaller, Rights
from zoo.gateway.refusals import NotAllowed, Unauthorized

TOKENS = (
    "# one a line\nporch viewer 0123456789abcdef\nyard caller fedcba9876543210\n\nme operator 00112233445566778899\n"
)

# ---------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ('http = "0.0.0.0:8000"', "http: 0.0.0.0:8000 can be reached from other machines"),
        ('http = "zoo.lan:8000"', "http: zoo.lan:8000 can be reached"),
        ('http = "[::]:8000"', "can be reached"),
        ('http = "8000"', 'http: expected "HOST:PORT" or false'),
        ("http = true", "http:"),
        ('trusted_networks = ["10.0.0.1/8"]', "trusted_networks: 10.0.0.1/8 has host bits set"),
        ("max_body_mb = 0", "max_body_mb:"),
        ('colour = "red"', "colour: unknown key"),
        ('[[gateway.frigate]]\nendpoint = "tcp://0.0.0.0:1"\nmodels = {"x.onnx" = "toy"}', "only ipc:// and loopback"),
        (
            '[[gateway.frigate]]\nendpoint = "ipc:///a"\nmodels = {"x.onnx" = "none"}',
            "models: there is no model 'none'",
        ),
        (
            '[[gateway.frigate]]\nendpoint = "ipc:///a"\nmodels = {"x.onnx" = "toy"}\nlabels = "coco"',
            "labels: expected",
        ),
    ],
)
def test_what_cannot_be_served_is_refused_with_its_line(table: str, says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_config(f'[[models]]\nname = "toy"\n[gateway]\n{table}\n')
    assert says in str(refused.value)
    assert re.match(r"config:[3-7]: gateway", str(refused.value))


@pytest.mark.parametrize(
    "table", ["http = false", 'http = "[::1]:0"', 'http = "0.0.0.0:80"\ntokens = "t"', 'http = "localhost:1"',
              'http = "0.0.0.0:80"\ntrusted_networks = ["10.0.0.0/8", "fd00::/8"]']
)  # fmt: skip
def test_loopback_needs_nothing_and_the_rest_tokens_or_networks(table: str) -> None:
    parse_config(f"[gateway]\n{table}\n")


# ---------------------------------------------------------------- callers


def callers(tmp_path: Path, text: str | None = TOKENS, networks: tuple[str, ...] = ()) -> Callers:
    file = None
    if text is not None:
        file = tmp_path / "tokens"
        file.write_text(text)
        file.chmod(0o600)
    return Callers(GatewayConfig(trusted_networks=list(networks)), file)


def test_a_token_names_its_caller_and_a_wrong_one_is_refused_from_everywhere(tmp_path: Path) -> None:
    found = callers(tmp_path, networks=("127.0.0.0/8",))
    assert found.find("10.1.2.3", "fedcba9876543210") == KnownCaller("yard", Rights.CALLER)
    for wrong in ("fedcba987654321", "fedcba98765432100", "x", "yard"):
        with pytest.raises(Unauthorized):
            found.find("127.0.0.1", wrong)


def test_a_trusted_network_needs_no_token_and_may_infer(tmp_path: Path) -> None:
    found = callers(tmp_path, None, networks=("192.168.1.0/24", "fd00::/8"))
    assert found.find("192.168.1.7", "") == KnownCaller("address 192.168.1.7", Rights.CALLER)
    assert found.find("::ffff:192.168.1.7", None).name == "address 192.168.1.7"
    assert found.find("fd00::1%eth0", None).rights == Rights.CALLER
    for other in ("192.168.2.7", "127.0.0.1", "::1", None):
        with pytest.raises(Unauthorized):
            found.find(other, None)


def test_loopback_is_the_operator_only_where_nothing_is_configured(tmp_path: Path) -> None:
    assert callers(tmp_path, None).find("127.0.0.1", None).rights == Rights.OPERATOR
    with pytest.raises(Unauthorized):
        callers(tmp_path, None).find("10.0.0.1", None)
    with pytest.raises(Unauthorized):
        callers(tmp_path).find("127.0.0.1", None)


def test_each_right_includes_those_below(tmp_path: Path) -> None:
    caller = callers(tmp_path).find(None, "fedcba9876543210")
    caller.need(Rights.VIEWER)
    caller.need(Rights.CALLER)
    with pytest.raises(NotAllowed, match="yard is a caller; this takes the role operator"):
        caller.need(Rights.OPERATOR)


def test_a_token_that_was_taken_out_of_the_file_ends_at_once(tmp_path: Path) -> None:
    found = callers(tmp_path)
    assert found.find(None, "0123456789abcdef").rights == Rights.VIEWER
    (tmp_path / "tokens").write_text("yard caller fedcba9876543210\n")
    with pytest.raises(Unauthorized):
        found.find(None, "0123456789abcdef")
    (tmp_path / "tokens").write_text("this is no token\n")
    assert found.find(None, "fedcba9876543210").name == "yard"


@pytest.mark.parametrize(
    "line", ["yard caller short", "yard king 0123456789abcdef", "caller 0123456789abcdef", "a b c d"]
)
def test_a_line_that_is_no_token_is_named(tmp_path: Path, line: str) -> None:
    with pytest.raises(ConfigError, match=r"tokens:2: expected NAME ROLE TOKEN"):
        callers(tmp_path, f"# tokens\n{line}\n")


# ---------------------------------------------------------------- the process


def test_it_says_whether_the_broker_answers(broker, gateway_of) -> None:
    running = broker()
    gateway: RunningGateway = gateway_of(running)
    assert gateway.ask("GET", "/v2/health/ready").status == 200
    running.kill()
    answer = gateway.ask("GET", "/v2/health/ready")
    assert answer.status == 503
    assert b"broker" in answer.body
    assert gateway.ask("GET", "/v2/health/live").status == 200
    running.start()
    wait_until(lambda: gateway.ask("GET", "/v2/health/ready").status == 200)


def test_a_page_elsewhere_reaches_nothing(broker, gateway_of) -> None:
    gateway: RunningGateway = gateway_of(broker(), hosts=["zoo.lan"])
    path = "/v2/health/live"
    for host in ("zoo.lan", "ZOO.lan:8000", "localhost", "127.0.0.1:9", "[::1]:80", "10.0.0.1"):
        assert gateway.ask("GET", path, headers={"Host": host}).status == 200
    for host in ("evil.example", "zoo.lan.evil.example", "", "127.0.0.1.evil.example"):
        assert gateway.ask("GET", path, headers={"Host": host}).status == 403
    with socket.create_connection(("127.0.0.1", gateway.port), 10) as sock:
        sock.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        assert b" 200 OK" in sock.recv(100)
    own = {"Host": "zoo.lan:8000"}
    assert gateway.ask("GET", path, headers={**own, "Origin": "http://zoo.lan:8000"}).status == 200
    for origin in ("http://evil.example", "null", "http://zoo.lan", "http://zoo.lan:8001"):
        answer = gateway.ask("GET", path, headers={**own, "Origin": origin})
        assert answer.status == 403
        assert "access-control-allow-origin" not in answer.headers


def test_answers_carry_a_policy_and_an_id(broker, gateway_of) -> None:
    gateway: RunningGateway = gateway_of(broker())
    answer = gateway.ask("GET", "/nothing/here")
    assert (answer.status, answer.json["code"]) == (404, "not_found")
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert re.fullmatch("[0-9a-f]{16}", answer.headers["x-request-id"])
    named = gateway.ask("GET", "/v2/health/live", headers={"X-Request-ID": "camera-7"})
    assert named.headers["x-request-id"] == "camera-7"
    assert "\\n" not in gateway.ask("GET", "/", headers={"X-Request-ID": "a b"}).headers["x-request-id"]


def test_answers_are_counted_by_door(broker, gateway_of) -> None:
    gateway: RunningGateway = gateway_of(broker())
    gateway.ask("GET", "/v2/models/toy")
    gateway.ask("GET", "/v2/models/unknown")
    gateway.ask("GET", "/" + "x" * 100)
    answer = gateway.ask("GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    text = answer.body.decode()
    assert 'zoo_gateway_requests_total{door="kserve",status="200"} 1.0' in text
    assert 'zoo_gateway_requests_total{door="kserve",status="404"} 1.0' in text
    assert 'zoo_gateway_requests_total{door="none",status="404"} 1.0' in text
    assert 'zoo_gateway_request_seconds_bucket{door="kserve",le="+Inf"} 2.0' in text
    assert "zoo_gateway_sessions 1.0" in text
    assert "xxxx" not in text


def test_it_goes_on_when_the_broker_was_started_again(broker, gateway_of) -> None:
    running = broker()
    gateway: RunningGateway = gateway_of(running)
    image = {"name": "image", "shape": [1, 1, 3], "datatype": "UINT8", "data": [[[1, 2, 3]]]}

    def infer(seconds: int = 20) -> tuple[int, str]:
        body = {"inputs": [image], "parameters": {"timeout": seconds * 1_000_000}}
        answer = gateway.ask("POST", "/v2/models/toy/infer", body)
        return answer.status, answer.json.get("code", "")

    assert infer() == (200, "")
    running.kill()
    status, code = infer(1)
    assert (status, code) in ((503, "broker_unreachable"), (504, "deadline_exceeded"))
    running.start()
    wait_until(lambda: infer() == (200, ""))


def test_an_address_that_is_taken_is_told(broker) -> None:
    running = broker()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        gateway = RunningGateway(running.folder, running.endpoint, http=address).start(wait=False)
        assert gateway.process.wait(20) == 2
        wait_until(lambda: f"gateway.http: {address} cannot be listened on" in gateway.log())


def test_serve_keeps_the_gateway_alive_and_ends_it_with_the_broker(broker) -> None:
    running = broker(start=False, arguments=["--gateway", "--log-format", "json"])
    with open(running.config_path, "a") as file:
        file.write('[gateway]\nhttp = "127.0.0.1:0"\n')
    running.start()

    def served() -> list[str]:
        return re.findall(r"gateway is serving on http://127.0.0.1:(\d+)", running.log())

    def process(module: str) -> int:
        """The last one of them."""
        found = [pid for pid in running.processes() if f"\0{module}\0" in Path(f"/proc/{pid}/cmdline").read_text()]
        return max(found, default=0)

    wait_until(lambda: len(served()) == 1, 20)
    first = process("zoo.gateway")
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: len(served()) == 2, 20, "it is started again")
    second = process("zoo.gateway")
    assert second not in (0, first)
    os.kill(process("zoo.gateway.keeper"), signal.SIGKILL)
    wait_until(lambda: len(served()) == 3, 20, "it and its keeper are started again")
    wait_until(lambda: not alive(second))
    third = process("zoo.gateway")
    assert alive(running.pid)
    lines = [json.loads(line) for line in running.log().splitlines()]
    said = {(line["logger"], line["level"], line["message"].partition(";")[0]) for line in lines}
    assert ("zoo.gateway.keeper", "WARNING", "the gateway ended with status -9") in said
    assert ("zoo.gateway.keeper", "WARNING", "the gateway's keeper ended with status -9") in said
    running.kill()  # waits for the end of all that it had started
    assert not alive(third)


def test_a_gateway_alone_says_in_json_why_it_cannot_serve(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('[gateway]\nhttp = "127.0.0.1:0"\ntokens = "none"\n')
    command = [sys.executable, "-m", "zoo.gateway", "--config", str(tmp_path / "config.toml"), "--log-format", "json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    (line,) = map(json.loads, done.stderr.splitlines())
    assert (done.returncode, line["level"]) == (2, "CRITICAL")
    assert "gateway.tokens" in line["message"]


@pytest.mark.parametrize(
    "main", ["zoo.gateway.__main__ import main; a = []", "zoo.broker import main; a = ['--gateway']"]
)
def test_without_the_extra_it_says_what_to_install(tmp_path: Path, main: str) -> None:
    code = f"import sys; sys.modules['litestar'] = None; from {main}; sys.exit(main(a))"
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30, env=environment
    )
    assert (done.returncode, done.stderr) == (2, "the gateway needs litestar: pip install 'model-zoo[gateway]'\n")


def test_without_http_it_serves_the_other_doors_alone(broker) -> None:
    running = broker()
    gateway = RunningGateway(running.folder, running.endpoint, http=False).start(wait=False)
    try:
        wait_until(lambda: "no HTTP" in gateway.log())
        gateway.stop()
    finally:
        gateway.kill()
