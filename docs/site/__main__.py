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
LINK = re.compile(r"(\]\()([^)\s]+)\)")
ANCHOR = re.compile(r'^<a id="([\w-]+)"></a>$', re.M)
MENU = """

```{toctree}
:hidden:
:caption: Begin
docs/tutorial
docs/models
docs/enrich
docs/eviction
docs/gateway
docs/security
```

```{toctree}
:hidden:
:glob:
:caption: How to
docs/how-to/*
```

```{toctree}
:hidden:
:glob:
:caption: Reference
docs/reference/*
docs/protocol
```

```{toctree}
:hidden:
:caption: Within
docs/design
docs/performance
docs/contributing
```
"""


def pages() -> list[Path]:
    """The README and every page of docs/, relative to the repository."""
    return [Path("README.md"), *sorted(p.relative_to(ROOT) for p in (ROOT / "docs").rglob("*.md"))]


def stage(folder: Path) -> None:
    """Writes the sources of the site to `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    for page in pages():
        text = GENERATED.sub(lambda m: importlib.import_module(f"docs.site.{m[1]}").page(), (ROOT / page).read_text())
        text = ANCHOR.sub(r"(\1)=", text)
        text = LINK.sub(lambda m, page=page: f"{m[1]}{_linked(page, m[2])})", text)
        target = folder / ("index.md" if page.name == "README.md" else page)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text + (MENU if page.name == "README.md" else ""))
    for picture in (ROOT / "docs").rglob("*.png"):
        target = folder / picture.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(picture, target)


def _linked(page: Path, target: str) -> str:
    """Where a link of a page leads in the site: the README is its first page."""
    file, hash_, anchor = target.partition("#")
    if "://" in file or (ROOT / page.parent / file).resolve() != ROOT / "README.md" or not file:
        return target
    return f"{file.removesuffix('README.md')}index.md{hash_}{anchor}"


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
