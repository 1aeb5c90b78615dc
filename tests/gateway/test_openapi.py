"""The OpenAPI document: what it says is what the gateway does, whatever is sent to it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.serving import RunningGateway

# What no schema says (which names there are, which numbers fit which shapes), and the framework's answer to OPTIONS,
# which names one of two handlers of a path.
EXCLUDED = "positive_data_acceptance,allow_header_conformance"
DEEPSTACK = r"^/v1/(vision|image)/"  # which answers what is wrong with status 200 and `success: false`


@pytest.mark.slow
@pytest.mark.parametrize(
    ("which", "excluded"),
    [("--exclude-path-regex", EXCLUDED), ("--include-path-regex", f"{EXCLUDED},negative_data_rejection")],
)
def test_requests_made_from_the_document_are_answered_as_it_says(
    broker: Any, gateway_of: Callable[..., RunningGateway], tmp_path: Path, which: str, excluded: str
) -> None:
    gateway = gateway_of(broker(), shared_memory=True)
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("schemathesis")), "run", f"http://{gateway.address}/openapi.json",
            "--checks", "all", "--exclude-checks", excluded, which, DEEPSTACK, "--max-examples", "25", "--seed", "1",
            "--request-timeout", "10", "--no-color", "--warnings", "off",
        ],
        cwd=tmp_path, capture_output=True, text=True, timeout=110,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert gateway.process.poll() is None


def test_the_document_names_every_call_and_its_errors(broker: Any, gateway_of: Callable[..., RunningGateway]) -> None:
    gateway = gateway_of(broker())
    document = gateway.ask("GET", "/openapi.json").json
    infer = document["paths"]["/v2/models/{model}/infer"]["post"]
    assert {"200", "400", "401", "404", "413", "429", "503", "504", "507"} <= {*infer["responses"]}
    assert {"application/json", "application/octet-stream"} == {*infer["requestBody"]["content"]}
    detection = document["paths"]["/v1/vision/detection"]["post"]
    (form,) = detection["requestBody"]["content"].values()
    assert {*form["schema"]["properties"]} == {"image", "min_confidence", "api_key"}
    refused = gateway.ask("DELETE", "/v2/models/toy/infer")
    assert (refused.status, refused.json["code"]) == (405, "method_not_allowed")
    assert "POST" in refused.headers["allow"]
