"""The examples of the README and of docs/, word for word as a reader would copy them.

`toml` is read as configuration; each `zoo …` line is taken by the command line's own parser. Examples in Python need
the models: tests/models/test_pages.py.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from tests import support
from tests.support import ROOT, Running
from zoo.cli import parser
from zoo.config import reading
from zoo.ray import __main__ as cluster

PAGES = ["README.md", *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md"))]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)


class Example(NamedTuple):
    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def examples(*languages: str) -> list[Example]:
    found: list[Example] = []
    for page in PAGES:
        text = (ROOT / page).read_text()
        blocks = (Example(page, text.count("\n", 0, b.start()) + 1, b[1], b[2]) for b in BLOCK.finditer(text))
        found += [example for example in blocks if example.language in languages]
    return found


def test_every_example_is_of_a_language_that_is_tested() -> None:
    known = {"python", "sh", "toml", "wire", "mermaid", ""}  # wire: test_protocol.py; the others are pictures
    assert {block[1] for page in PAGES for block in BLOCK.finditer((ROOT / page).read_text())} <= known


# ---------------------------------------------------------------- commands

TARGETS = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)


def commands(text: str) -> list[list[str]]:
    lines = [shlex.split(line, comments=True) for line in text.splitlines()]
    made: list[list[str]] = []
    for words in filter(None, lines):
        if "|" in words:  # zoo status | load | …: each by itself
            made += [["zoo", word] for word in words[1:] if word != "|"]
        else:
            made.append(words)
    return made


@pytest.mark.parametrize("example", examples("sh"), ids=str)
def test_commands_are_those_that_there_are(example: Example) -> None:
    for words in commands(example.text):
        match words:
            case ["make", target]:
                assert target in TARGETS
            case [".", ".venv/bin/activate"]:
                pass
            case ["zoo", "serve" | "gateway", *rest] if set(rest) <= {
                "--config",
                "config.toml",
                "--debug",
                "--gateway",
            }:
                pass
            case ["pip", "install", what] if found := re.fullmatch(r"model-zoo\[([\w,]+)\]", what):
                assert set(found[1].split(",")) <= EXTRAS.keys()
            case ["curl", address] | ["curl", "-F", _, address] if address.startswith("localhost:8000/"):
                pass
            case ["zoo", "standins", "weights"] | ["ray", "start", *_]:
                pass
            case ["python", "-m", "zoo.ray", *rest]:
                cluster.parser().parse_args(rest)
            case ["zoo", ("load" | "unload" | "pin" | "unpin") as word]:
                parser.build().parse_args([word, "paddleocr"])
            case ["zoo", *rest]:
                parser.build().parse_args(rest)  # raises SystemExit
            case _:
                pytest.fail(f"{words}: neither zoo nor make")


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


# ---------------------------------------------------------------- an adapter


def test_the_readmes_model_answers(broker: Callable[..., Running], monkeypatch: pytest.MonkeyPatch) -> None:
    """Copied beside schema.toml, class and table, as the README says."""
    (adapter,) = [e for e in examples("python") if e.text.startswith("# brightness.py")]
    (table,) = [e for e in examples("toml") if e.page == "README.md" and "brightness" in e.text]
    running = broker(table.text, start=False)
    (running.folder / "brightness.py").write_text(adapter.text)
    answer = running.start().client().infer("brightness", np.full((4, 4, 3), 10, np.uint8))
    assert answer == {"mean": 5.0}
