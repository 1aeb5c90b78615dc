"""Rules and dashboard: checked by Prometheus's own tool, and asked of a Prometheus that watches a live zoo."""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import math
import re
import shutil
import subprocess
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml

from tests.gateway.serving import RunningGateway, gateway_of
from tests.support import ROOT, Running, free_port, toy, wait_until
from zoo import Client, InferenceFailed, InvalidInput, ModelNotFound

PROMETHEUS = ROOT / "deploy" / "prometheus"
DASHBOARD = ROOT / "deploy" / "grafana" / "zoo.json"
FRAME = np.full((8, 8, 3), 7, np.uint8)

__all__ = ["gateway_of"]  # a fixture


def promtool(*arguments: str) -> str:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, cwd=PROMETHEUS, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / "zoo.rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return found


# ---------------------------------------------------------------- by themselves


def test_prometheus_takes_the_configuration_and_the_rules() -> None:
    promtool("check", "config", "prometheus.yml")
    promtool("check", "rules", "zoo.rules.yml")


def test_each_alert_fires_where_it_should_and_nowhere_else() -> None:
    promtool("test", "rules", "zoo.rules.test.yml")


def test_each_alert_is_tested_both_ways_and_says_what_to_do() -> None:
    cases: dict[str, list[bool]] = {}
    for test in yaml.safe_load((PROMETHEUS / "zoo.rules.test.yml").read_text())["tests"]:
        for case in test.get("alert_rule_test", ()):
            cases.setdefault(case["alertname"], []).append(bool(case["exp_alerts"]))
    alerts = {rule["alert"]: rule for rule in rules() if "alert" in rule}
    assert {name: sorted(found) for name, found in cases.items()} == {name: [False, True] for name in alerts}
    for rule in alerts.values():
        assert rule["annotations"].keys() == {"summary", "description"}
        assert rule["labels"]["severity"] in ("critical", "warning", "info")


def test_the_panels_of_the_dashboard_fit_and_use_its_variables_alone() -> None:
    """Grafana's grid is 24 wide; panels over one another are moved by it, and look different each time."""
    found = dashboard()
    panels, variables = found["panels"], {one["name"] for one in found["templating"]["list"]}
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in panels}) == len(panels)
    used = set(re.findall(r"\$\{?(\w+)", DASHBOARD.read_text())) - {"__all", "__rate_interval"}
    assert used == variables


# ---------------------------------------------------------------- with a zoo


class Prometheus:
    """A real one, that scrapes every half second."""

    def __init__(self, folder: Path, targets: dict[str, str]) -> None:
        config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "500ms", "evaluation_interval": "500ms"}
        for job in config["scrape_configs"]:
            job["static_configs"] = [{"targets": [targets.pop(job["job_name"])]}]
        assert not targets
        shutil.copy(PROMETHEUS / "zoo.rules.yml", folder)
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self.port = free_port()
        command = [
            "prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address=127.0.0.1:{self.port}", "--log.level=warn",
        ]  # fmt: skip
        self._log = folder / "prometheus.log"
        with open(self._log, "wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder)

    def get(self, path: str, **query: str) -> Any:
        """What its API answers; None: it does not serve yet."""
        assert self.process.poll() is None, self._log.read_text()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10.0)
        try:
            connection.request("GET", f"/api/v1/{path}?{urllib.parse.urlencode(query)}")
            answer = connection.getresponse()
            said = answer.read()
        except ConnectionError:
            return None
        finally:
            connection.close()
        if answer.status == 503:
            return None
        assert answer.status == 200, f"{query}: {said!r}"
        return json.loads(said)["data"]

    def values(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Of the series that an expression gives now, but for those without a number."""
        found = (self.get("query", query=expression) or {"result": []})["result"]
        pairs = [(one["metric"], float(one["value"][1])) for one in found]
        return [(labels, value) for labels, value in pairs if not math.isnan(value)]

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=30.0)


class Watched(NamedTuple):
    prometheus: Prometheus
    running: Running
    work: Callable[[], None]  # a little of everything that a zoo does


def work(zoo: Client, gateway: RunningGateway) -> None:
    """Serves by both ways, evicts (the two models do not fit together), and refuses."""
    for name in ("toy", "toy2"):
        zoo.infer(name, FRAME)
    for what in ("refuse", "raise"):
        with contextlib.suppress(InvalidInput, InferenceFailed):
            zoo.infer("toy2", FRAME, do=what)
    with contextlib.suppress(ModelNotFound):
        zoo.infer("nothing", FRAME)
    assert gateway.ask("GET", "/v2/health/ready").status == 200
    assert gateway.ask("POST", "/v1/vision/custom/toy2", "no form").status == 200
    assert gateway.ask("GET", "/v2/models/nothing").status == 404


@pytest.fixture
def watched(broker: Callable[..., Running], gateway_of: Any, tmp_path: Path) -> Iterator[Watched]:
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed (Debian: apt-get install prometheus)")
    address = f"127.0.0.1:{free_port()}"
    large = {"vram_mb": 60, "options": {"ballast_mb": 60}}
    models = [toy(**large), toy("toy2", **large), toy("broken", options={"load": "raise"})]
    running = broker(models, vram_budget_gb=0.12, footprint="measured", metrics=address)
    gateway = gateway_of(running)
    zoo = running.client()
    prometheus = Prometheus(tmp_path, {"zoo": address, "zoo-gateway": gateway.address})
    try:
        yield Watched(prometheus, running, functools.partial(work, zoo, gateway))
    finally:
        prometheus.close()


def expressions(prometheus: Prometheus) -> dict[str, str]:
    """Of every panel, by its title, as Grafana sends them: with All chosen everywhere."""
    found = dashboard()
    chosen = {one["name"]: ".*" for one in found["templating"]["list"]} | {"__rate_interval": "10s"}
    made = {}
    for panel in found["panels"]:
        for target in panel.get("targets", ()):
            text = re.sub(r"\$(\w+)", lambda name: chosen[name[1]], target["expr"])
            made[f"{panel['title']}, {target['refId']}: {text}"] = text
    return made


@pytest.mark.slow
def test_a_prometheus_that_watches_a_zoo_has_data_for_each_panel_and_each_rule(watched: Watched) -> None:
    prometheus, _, work = watched
    wait_until(lambda: prometheus.values("sum(up) == 2"), what="both are scraped")
    missing = expressions(prometheus) | {rule["record"]: rule["record"] for rule in rules() if "record" in rule}
    assert len(missing) > 50

    def all_have_data() -> bool:
        work()
        for title in [title for title, text in missing.items() if prometheus.values(text)]:
            del missing[title]
        return not missing

    try:
        wait_until(all_have_data, 60.0)
    except AssertionError:
        pytest.fail("no data for\n" + "\n".join(missing))
    chosen = {one["name"]: one["query"] for one in dashboard()["templating"]["list"] if one["type"] == "query"}
    for name, query in chosen.items():
        series, label = re.fullmatch(r"label_values\((.*), (\w+)\)", query["query"]).groups()  # type: ignore[union-attr]
        series = series.replace("$instance", ".*")
        assert prometheus.get(f"label/{label}/values", **{"match[]": series}), name
    known = set(prometheus.get("label/__name__/values"))
    for rule in rules():
        named = set(re.findall(r"\b(?:zoo|enrichment)_[a-z_]+", re.sub(r'"[^"]*"', "", rule["expr"])))
        assert named <= known, rule


@pytest.mark.slow
def test_alerts_of_a_live_zoo_come_and_go(watched: Watched) -> None:
    """`for` of minutes is what promtool's tests are about: here, that what a zoo really says begins an alert."""
    prometheus, running, work = watched

    def alerts() -> set[str]:
        return {one["labels"]["alertname"] for one in (prometheus.get("alerts") or {"alerts": []})["alerts"]}

    wait_until(lambda: prometheus.values("sum(up) == 2"), what="both are scraped")
    work()
    assert "ZooModelFailed" not in alerts()
    with contextlib.suppress(Exception):
        running.client(timeout=2.0).infer("broken", FRAME)
    wait_until(lambda: "ZooModelFailed" in alerts())
    running.stop()
    wait_until(lambda: alerts() & {"ZooDown", "ZooModelFailed"} == {"ZooDown"})
