"""A reader of a page: types its commands, runs its Python, word for word and in order, in a folder of its own.

What is typed reaches a broker that runs already, and the gateway beside it: `zoo serve` and `zoo gateway` only have
their arguments read, and `localhost:8000` becomes that gateway's address. Commands that would take the terminal, or go
into the network, have their arguments read too. A block with a line `<!-- not run: REASON -->` before it is left out.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.cli.test_examples import PROGRAMS, Example, alternatives
from tests.support import ROOT

SERVED, APART = "localhost:8000", '"localhost", 8000'
# `zoo`: this checkout's. Of those that are only read: the broker runs, there is no terminal, no hub, no such
# request and nothing recorded (tests/advise has that), and what `zoo doctor` finds is this machine's.
ZOO = """#!/bin/sh
case "$1 $2" in
"serve "* | "gateway "* | "top "* | "doctor "* | "pull "* | "standins "* | \\
"record "* | "advise "* | "logs -f" | "explain 1742")
    exec "$PYTHON" -m tests.models.reader "$@" ;;
esac
exec "$PYTHON" -m zoo.cli "$@"
"""
MAKE = f"""#!/bin/sh
exec "$(PATH=/usr/bin:/bin command -v make)" --dry-run -C {ROOT} "$@" > made
"""
PIP = """#!/bin/sh
echo "$@" >> installed
"""


class Reader:
    """Of one page. `folder`: where. `printed`: what its Python has written so far."""

    def __init__(self, folder: Path, endpoint: str, served: str, **names: Any) -> None:
        self.folder, self.printed = folder, ""
        self._at, self._served, self._names = folder, served, names
        programs = folder / ".programs"
        programs.mkdir()
        for name, text in {"zoo": ZOO, "make": MAKE, "pip": PIP}.items():
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        (folder / ".venv" / "bin").mkdir(parents=True)
        (folder / ".venv" / "bin" / "activate").touch()
        self._environment = {
            "PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(folder), "PYTHON": sys.executable,
            "PYTHONPATH": str(ROOT), "ZOO_ENDPOINT": endpoint,
        }  # fmt: skip

    def read(self, example: Example) -> None:
        host, _, port = self._served.partition(":")
        text = example.text.replace(SERVED, self._served).replace(APART, f'"{host}", {port}')
        if example.language == "python":
            self._run(example, text)
        elif example.language == "sh":
            self._type(example, text)

    def _run(self, example: Example, text: str) -> None:
        written = io.StringIO()
        with contextlib.redirect_stdout(written), contextlib.chdir(self._at):
            exec(compile("\n" * example.line + text, str(ROOT / example.page), "exec"), self._names)
        self.printed += written.getvalue()

    def _type(self, example: Example, text: str) -> None:
        script = f"set -e\n{alternatives(text)}\npwd > {self.folder}/.at\n"
        done = subprocess.run(
            ["bash", "--norc", "-c", script], cwd=self._at, env=self._environment, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, f"{example}\n{done.stdout}\n{done.stderr}"
        self._at = Path((self.folder / ".at").read_text().strip())


def only_read(words: list[str]) -> None:
    """What the page's `zoo` does with those."""
    from zoo.cli import parser

    parser.build(PROGRAMS).parse_args(words)


if __name__ == "__main__":
    only_read(sys.argv[1:])
