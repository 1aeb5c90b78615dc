"""The pages: their links lead somewhere, and the files that they and the docstrings name exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SOURCES = [p for folder in ("zoo", "broker", "workers", "benchmarks", "tests") for p in (ROOT / folder).rglob("*.py")]
# A path of this repository as a text names it: `broker/scheduler/`, `zoo/wire/arena.py`, tests/gpu.
NAMED = re.compile(r"(?<![\w./~-])(?:zoo|broker|workers|benchmarks|tests|docs)/[\w./-]*\w(?:\.py|\.md|\.json|\.mjs|/)?")
MODULE = re.compile(r"`((?:zoo|broker|workers|benchmarks)(?:\.[a-z_]\w*)+)`")


def anchors(page: Path) -> set[str]:
    """What a link into the page may name, by GitHub's rule."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M)
    titles = re.findall(r"^#+ (.*)$", text, re.M)
    made = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    return made | set(re.findall(r'<a id="(.*?)">', text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        to = page.parent / file if file else page
        assert to.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(to), f"{page.name} links to {target}"


@cache
def texts() -> list[tuple[Path, str]]:
    """Pages, config.toml, and what docstrings and comments say."""
    return list(_texts())


def _texts() -> Iterator[tuple[Path, str]]:
    yield from ((page, page.read_text()) for page in [*PAGES, ROOT / "config.toml"])
    for file in SOURCES:
        source = file.read_text()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield file, ast.get_docstring(node) or ""
        yield file, "\n".join(line for line in source.splitlines() if line.lstrip().startswith("#"))


def test_every_file_that_is_named_exists() -> None:
    wrong = {
        f"{file.relative_to(ROOT)}: {name}"
        for file, text in texts()
        for name in NAMED.findall(text)
        if not any(ROOT.glob(name.rstrip("/.")))
    }
    assert not wrong, "\n".join(sorted(wrong))


def test_every_module_that_is_named_exists() -> None:
    """`broker.scheduler.events` as a module, or as a module and a name in it."""
    wrong = set()
    for file, text in texts():
        for name in MODULE.findall(text):
            parts = name.split(".")
            base = next(
                (ROOT.joinpath(*parts[:n]) for n in range(len(parts), 0, -1) if _is_module(ROOT.joinpath(*parts[:n]))),
                ROOT,
            )
            if len(parts) - len(base.relative_to(ROOT).parts) > 2 or base == ROOT:
                wrong.add(f"{file.relative_to(ROOT)}: {name}")
    assert not wrong, "\n".join(sorted(wrong))


def _is_module(path: Path) -> bool:
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()
