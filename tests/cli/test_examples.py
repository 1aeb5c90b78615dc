"""The examples of the README and of docs/, word for word as a reader would copy them.

`toml` is read as configuration, and of `yaml`, which is for other programs, the keys are known ones; each `zoo …` line
is taken by the command line's own parser. What runs (shell, Python) needs a zoo: tests/models/test_pages.py, and
tests/site/test_tutorial.py.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml

import zoo.broker
from tests import support
from tests.support import ROOT, Running
from workers.models.standins import __main__ as standins
from zoo.cli import parser
from zoo.config import reading
from zoo.gateway import __main__ as gateway
from zoo.ray import __main__ as cluster

PAGES = ["README.md", *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md"))]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
BLOCK = re.compile(r"^(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
PROGRAMS = {"serve": zoo.broker.parser(), "gateway": gateway.parser(), "standins": standins.parser()}


class Example(NamedTuple):
    """`reason`: why it cannot run in a test, or ""."""

    page: str
    line: int
    language: str
    text: str
    reason: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def examples(*languages: str) -> list[Example]:
    found: list[Example] = []
    for page in PAGES:
        text = (ROOT / page).read_text()
        blocks = [
            Example(page, text.count("\n", 0, b.start("text")), b["language"], b["text"], b["reason"] or "")
            for b in BLOCK.finditer(text)
        ]
        found += [example for example in blocks if example.language in languages]
    return found


def test_every_example_is_of_a_language_that_is_tested() -> None:
    known = {
        "python",
        "sh",
        "toml",
        "yaml",
        "wire",
        "mermaid",
        "text",
        "",
    }  # wire: test_protocol.py; the rest: pictures
    found = examples(*known)
    assert len(found) == sum((ROOT / page).read_text().count("\n```") // 2 for page in PAGES)
    assert [str(e) for e in found if not e.language and e.page.startswith(("docs/how-to/", "docs/tutorial"))] == []


# ---------------------------------------------------------------- commands

TARGETS = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
ALTERNATIVES = re.compile(r"^zoo (\w+(?: \| \w+)+)", re.M)  # `zoo load | unload`: any of them


def alternatives(text: str) -> str:
    """With a line for each command of such a line."""
    return ALTERNATIVES.sub(lambda m: "\n".join(f"zoo {word} {_of(word)}" for word in m[1].split(" | ")), text)


def _of(word: str) -> str:
    return "" if word == "status" else "brisque-quality"


@pytest.mark.parametrize("example", examples("sh"), ids=str)
def test_commands_are_those_that_there_are(example: Example) -> None:
    for line in alternatives(example.text).splitlines():
        if not line.startswith(("zoo ", "make ", "pip ", "python -m zoo.ray ")):
            continue
        match shlex.split(line, comments=True):
            case ["make", target]:
                assert target in TARGETS
            case ["pip", "install", what]:
                found = re.fullmatch(r"(?:model-zoo|\.)(?:\[([\w,]+)\])?|tritonclient\[http\]", what)
                assert found, what
                assert set((found[1] or "dev").split(",")) <= EXTRAS.keys()
            case ["python", "-m", "zoo.ray", *rest]:
                cluster.parser().parse_args(rest)
            case ["zoo", *rest]:
                words = [word for word in rest if word != "&"]
                parser.build(PROGRAMS).parse_args(words)  # raises WrongUsage, SystemExit


# ---------------------------------------------------------------- configuration

# What stands for a part of a table, and the line that goes before it.
PARTS = {
    'source = "hf:Marqo/marqo-fashionCLIP"': '[[models]]\nname = "fashion-clip"\nvram_mb = 1\npath = "fashion-clip"\n'
}


@pytest.mark.parametrize("example", examples("toml"), ids=str)
def test_configuration_can_be_read(example: Example, zoo_dir: Path) -> None:
    text = next((head for start, head in PARTS.items() if example.text.startswith(start)), "") + example.text
    named = re.findall(r'"([\w.-]+)"', " ".join(re.findall(r"^(?:models|after) = .*$", text, re.M)))
    if "models" not in tomllib.loads(text):
        text += support.tables("models", [support.toy(name) for name in dict.fromkeys(named)])
    (zoo_dir / "config.toml").write_text(text)
    reading.load_config(zoo_dir / "config.toml")


# ---------------------------------------------------------------- configuration of other programs

FRIGATE_MODEL = {"path", "model_type", "width", "height", "input_tensor", "input_dtype", "input_pixel_format",
                 "labelmap_path"}  # fmt: skip
FRIGATE_DETECTOR = {"zmq": {"type", "endpoint"}, "deepstack": {"type", "api_url", "api_timeout", "api_key"}}
SERVICE = {"image", "build", "command", "volumes", "environment", "ports", "user", "group_add", "deploy", "restart",
           "depends_on", "network_mode", "shm_size", "healthcheck"}  # fmt: skip
HASS_OBJECT = {
    "platform",
    "ip_address",
    "port",
    "api_key",
    "custom_model",
    "confidence",
    "targets",
    "source",
    "timeout",
}


def check_frigate(read: dict[str, Any]) -> None:
    assert read.keys() <= {"detectors", "model"}
    for detector in read["detectors"].values():
        assert detector.keys() <= FRIGATE_DETECTOR[detector["type"]]
    assert read.get("model", {}).keys() <= FRIGATE_MODEL


@pytest.mark.parametrize("example", examples("yaml"), ids=str)
def test_configuration_of_other_programs_has_keys_that_they_know(example: Example) -> None:
    match yaml.safe_load(example.text):
        case {"detectors": _} as read:
            check_frigate(read)
        case {"services": services, **rest}:
            assert rest.keys() <= {"volumes"}
            assert all(service.keys() <= SERVICE for service in services.values())
        case {"image_processing": entries}:
            assert all(entry.keys() <= HASS_OBJECT for entry in entries)
        case {"scrape_configs": jobs}:
            assert all(job.keys() <= {"job_name", "static_configs", "authorization"} for job in jobs)
        case other:
            pytest.fail(f"of no program that is known here: {other}")


def test_what_the_pages_say_to_frigate_is_what_they_say_to_the_zoo() -> None:
    """Socket and file name of a page's detector are those of its `[[gateway.frigate]]`."""
    told = [e for e in examples("yaml") if "type: zmq" in e.text]
    assert {e.page for e in told} >= {"README.md", "docs/gateway.md", "docs/how-to/frigate.md"}
    for example in told:
        theirs = yaml.safe_load(example.text)
        (table,) = (t for e in examples("toml") if e.page == example.page for t in frigate_tables(e.text))
        assert theirs["detectors"]["zoo"]["endpoint"] == table["endpoint"]
        assert Path(theirs["model"]["path"]).name in table["models"]


def frigate_tables(text: str) -> list[dict[str, Any]]:
    tables: list[dict[str, Any]] = tomllib.loads(text).get("gateway", {}).get("frigate", [])
    return tables


# ---------------------------------------------------------------- an adapter


def test_the_readmes_model_answers(broker: Callable[..., Running], monkeypatch: pytest.MonkeyPatch) -> None:
    """Copied beside schema.toml, class and table, as the README says."""
    (adapter,) = [e for e in examples("python") if e.text.startswith("# brightness.py")]
    (table,) = [e for e in examples("toml") if e.page == "README.md" and "brightness" in e.text]
    running = broker(table.text, start=False)
    (running.folder / "brightness.py").write_text(adapter.text)
    answer = running.start().client().infer("brightness", np.full((4, 4, 3), 10, np.uint8))
    assert answer == {"mean": 5.0}
