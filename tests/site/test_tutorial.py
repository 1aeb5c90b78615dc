"""The tutorial, typed word for word and in order: a zoo of the reader's own, its gateway, and the model of the page."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.test_examples import Example, examples
from tests.support import ROOT, free_port

# What surrounds what is typed. `make demo` is looked up and not run: tests/demo does.
BEFORE = f"""set -em
trap 'kill $(jobs -p) 2> /dev/null || true' EXIT
make() {{ command make --dry-run -C {ROOT} "$@" > /dev/null; }}
"""
STARTED = "zoo serve --gateway &"
READY = 'until curl -sf "localhost:$PORT/v2/health/ready"; do sleep 0.1; done'
ENDED = "wait $broker\n"  # with its exit status


def typed(example: Example) -> str:
    """As what a reader does with a block: types it, runs it, or saves it."""
    file = re.match(r"# (\w+\.py)\n", example.text)
    if example.language == "toml":
        return f"cat >> config.toml << 'END'\n\n{example.text}END\n"
    if example.language == "python":
        to = f"cat > {file[1]}" if file else '"$PYTHON" -'
        return f"{to} << 'END'\n{example.text}END\n"
    text = example.text.replace("localhost:8000", "localhost:$PORT").replace(STARTED, f"{STARTED}\nbroker=$!\n{READY}")
    return text.replace("zoo init my-zoo\n", 'zoo init my-zoo\necho "$GATEWAY" >> my-zoo/config.toml\n')


@pytest.fixture
def home(zoo_dir: Path) -> Path:
    """A clone after `make demo`, as far as the tutorial needs it, and `zoo` on the path."""
    for name in ("demo-out", ".venv/bin", "run"):
        (zoo_dir / name).mkdir(mode=0o700, parents=True)
    (zoo_dir / ".venv/bin/activate").write_text('PATH="$PWD/.venv/bin:$PATH"\n')
    (zoo_dir / ".venv/bin/zoo").write_text('#!/bin/sh\nexec "$PYTHON" -m zoo.cli "$@"\n')
    (zoo_dir / ".venv/bin/zoo").chmod(0o755)
    dark = Image.new("RGB", (120, 80), (20, 30, 40))
    dark.paste((250, 250, 250), (30, 20, 90, 60))
    dark.save(zoo_dir / "demo-out/zidane-people.png")
    return zoo_dir


@pytest.mark.slow
def test_the_tutorial_works_as_typed(home: Path) -> None:
    port = free_port()
    blocks = [e for e in examples("sh", "python", "toml") if e.page == "docs/tutorial.md"]
    script = BEFORE + "\n".join(map(typed, blocks)) + ENDED
    env = {
        "PATH": os.environ["PATH"], "HOME": str(home), "XDG_RUNTIME_DIR": str(home / "run"), "PORT": str(port),
        "GATEWAY": f'[gateway]\nhttp = "127.0.0.1:{port}"', "PYTHON": sys.executable, "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    command = ["bash", "--norc", "-c", script]
    done = subprocess.run(
        command, cwd=home, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 1 models are as they should be" in done.stderr
    assert "bright  0.90  x 30 to 90, y 20 to 60" in done.stdout
    assert "[[30. 20. 90. 60.]] ['bright']" in done.stdout
    (predictions,) = re.findall(r'"predictions":(\[.*?\])', done.stdout)
    assert json.loads(predictions)[0]["x_max"] == 90
    assert "bright: loaded in" in done.stdout
    assert (home / "my-zoo/seen.png").is_file()
