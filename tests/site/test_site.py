"""`make docs`: the site has every page, and its reference is what the code says."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

import zoo
from broker.metrics import BY_MODEL
from docs.site import __main__ as site
from docs.site import api, configuration, mistakes
from tests.support import ROOT
from zoo.cli.parser import COMMANDS
from zoo.config.schema import ZooConfig
from zoo.errors import BY_CODE


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "docs.site", str(folder)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)


def shown(page: Path) -> str:
    """The text of a page as a reader sees it."""
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text()))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(folder)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return folder / "html"


@pytest.mark.slow
def test_every_page_is_in_the_site_and_in_its_menu(built: Path) -> None:
    menu = (built / "index.html").read_text()
    for page in site.pages()[1:]:
        made = page.with_suffix(".html")
        assert (built / made).exists()
        assert f'href="{made}"' in menu
    assert not re.search(r"(src|href)=\"https?://[^\"]+\.(js|css|woff2?)\"", menu)  # it is whole without a network


@pytest.mark.slow
def test_the_reference_says_what_the_code_does(built: Path) -> None:
    reference = {page.stem: shown(page) for page in (built / "docs" / "reference").glob("*.html")}
    for command in COMMANDS:
        assert f"usage: zoo {command} " in reference["commands"]
    assert "--gateway" in reference["commands"]
    for name, kind in configuration.TABLES:
        assert name in reference["configuration"]
        for field in msgspec.structs.fields(kind):
            assert field.name in configuration.AT_RUN_TIME or field.encode_name in reference["configuration"]
    for code in {*BY_CODE} - {"zoo_error"}:
        assert code in reference["errors"]
    for method in (name for name in vars(zoo.Client) if not name.startswith("_")):
        assert re.search(rf"\b{method}\(", reference["python"]), method
    for _, name, meaning, _ in BY_MODEL:
        assert name in reference["metrics"]
        assert meaning in reference["metrics"]
    rows = reference["metrics"].splitlines()
    labels = rows[rows.index("enrichment_model_evictions_total") + 2]
    assert "model_name" in labels
    assert "/v2/models/{model}/infer" in reference["http"]


@pytest.mark.slow
def test_a_link_that_leads_nowhere_fails_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "docs" / "site", tmp_path / "docs" / "site")
    (tmp_path / "README.md").write_text("# The zoo\n\n[more](docs/gone.md)\n")
    monkeypatch.setattr(site, "ROOT", tmp_path)
    monkeypatch.setattr(site, "MENU", {})
    assert site.build(tmp_path / "out") != 0
    (tmp_path / "README.md").write_text("# The zoo\n")
    assert site.build(tmp_path / "out") == 0


def test_the_reference_leaves_nothing_out() -> None:
    errors = {name for name in zoo.__all__ if name.lower() in {kind.__name__.lower() for kind in BY_CODE.values()}}
    assert {name for names in api.CHAPTERS.values() for name in names} | errors == {*zoo.__all__}
    assert {name.strip("[]").split(".")[0] for name, _ in configuration.TABLES} | {"file"} == {
        *ZooConfig.__struct_fields__
    }
    for _, kind in configuration.TABLES:
        keys = {field.name for field in msgspec.structs.fields(kind)} - configuration.AT_RUN_TIME
        assert keys <= configuration.meanings(kind).keys() | configuration.ELSEWHERE
    assert "| `QueueFull` | `queue_full` | yes | 429 |" in mistakes.page()
