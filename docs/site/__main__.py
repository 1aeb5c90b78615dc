"""`python -m docs.site [FOLDER]`: the site, from the pages of docs/ and the README, into `.site/html`.

The pages are copied first, as they lie in the repository, so that their links are the same here and on GitHub. In the
pages of docs/reference a line `<!-- generated: NAME -->` becomes what `docs.site.NAME` makes of the code. A link that
leads nowhere, like any other warning, fails the build.
"""

from __future__ import annotations

import importlib
import re
import shutil
import sys
from pathlib import Path

from sphinx.cmd.build import main as sphinx

ROOT = Path(__file__).resolve().parent.parent.parent
GENERATED = re.compile(r"^<!-- generated: (\w+) -->$", re.M)
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")
ANCHOR = re.compile(r'^<a id="([\w-]+)"></a>$', re.M)
MENU = {  # pages by chapter; a folder is all of it
    "Begin": ("tutorial", "models", "enrich", "eviction", "gateway", "security"),
    "How to": ("how-to/*",),
    "Reference": ("reference/*", "protocol"),
    "Within": ("design", "performance", "contributing"),  # and every other page
}


def pages() -> list[Path]:
    """The README and every page of docs/, relative to the repository."""
    return [Path("README.md"), *sorted(p.relative_to(ROOT) for p in (ROOT / "docs").rglob("*.md"))]


def stage(folder: Path) -> None:
    """Writes the sources of the site to `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    for page in pages():
        text = GENERATED.sub(lambda m: importlib.import_module(f"docs.site.{m[1]}").page(), (ROOT / page).read_text())
        text = ANCHOR.sub(r"(\1)=", text)
        text = LINK.sub(lambda m, page=page: _linked(page, *m.groups()), text)
        target = folder / ("index.md" if page.name == "README.md" else page)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text + (_menu() if page.name == "README.md" else ""))
    for picture in (ROOT / "docs").rglob("*.png"):
        target = folder / picture.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(picture, target)


def _menu() -> str:
    named = {name for names in MENU.values() for name in names}
    others = [page.stem for page in pages() if page.parent.name == "docs" and page.stem not in named]
    parts = []
    for caption, names in MENU.items():
        lines = [f"docs/{name}" for name in (*names, *(others if caption == "Within" else ()))]
        parts.append("\n".join(("\n\n```{toctree}", ":hidden:", ":glob:", f":caption: {caption}", *lines, "```")))
    return "\n".join(parts)


def _linked(page: Path, words: str, target: str) -> str:
    """A link of a page as it is in the site, of which the README is the first page, and code is no part."""
    file, hash_, anchor = target.partition("#")
    to = ROOT / page.parent / file
    if file and "://" not in file and to.is_file() and to.suffix not in (".md", ".png"):
        return words
    if file and "://" not in file and to.resolve() == ROOT / "README.md":
        target = f"{file.removesuffix('README.md')}index.md{hash_}{anchor}"
    return f"[{words}]({target})"


def build(folder: Path) -> int:
    """The site in `folder`/html; gives Sphinx's exit status."""
    stage(folder / "source")
    here = str(Path(__file__).parent)
    quiet = ["-q", "--fail-on-warning", "--keep-going", "-E"]
    return sphinx(["-b", "html", "-c", here, "-d", str(folder / "cache"), *quiet, str(folder / "source"),
                   str(folder / "html")])  # fmt: skip


if __name__ == "__main__":
    at = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / ".site"
    status = build(at)
    if status == 0:
        print(f"built {at / 'html' / 'index.html'}")
    sys.exit(status)
