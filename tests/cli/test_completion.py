"""`zoo completion`: its script, sourced by a bash, completes what a reader types."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT, Running
from zoo.cli.parser import COMMANDS

# What bash does on TAB. `zoo` itself, which names models, is this checkout's.
ASK = """
zoo() { "$PYTHON" -m zoo.cli "$@"; }
source ./script
complete -p zoo > said
read -ra said < said
for i in "${!said[@]}"; do if [ "${said[i]}" = -F ]; then function="${said[i+1]}"; fi; done
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
"$function" zoo "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def completed(folder: Path, endpoint: str, *words: str) -> set[str]:
    env = {"PATH": os.environ["PATH"], "PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "ZOO_ENDPOINT": endpoint}
    done = subprocess.run(
        ["bash", "--norc", "-c", ASK, "bash", *words], cwd=folder, env=env, capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""
    return set(done.stdout.split())


def test_bash_completes_commands_options_files_and_models(run, shared_broker: Running, tmp_path: Path) -> None:
    status, script, _ = run("completion", "bash")
    assert status == 0
    (tmp_path / "script").write_text(script)
    (tmp_path / "photo.jpg").touch()
    endpoint = shared_broker.endpoint
    assert {*COMMANDS} <= completed(tmp_path, endpoint, "zoo", "")
    assert completed(tmp_path, endpoint, "zoo", "unp") == {"unpin"}
    assert completed(tmp_path, endpoint, "zoo", "serve", "--ga") == {"--gateway"}
    assert "nv12" in completed(tmp_path, endpoint, "zoo", "infer", "--color", "n")
    assert completed(tmp_path, endpoint, "zoo", "load", "to") == {"toy", "toy2"}
    assert completed(tmp_path, endpoint, "zoo", "check", "--config", "ph") == {"photo.jpg"}


def test_the_script_for_zsh_can_be_read_by_one(run, tmp_path: Path) -> None:
    status, script, _ = run("completion", "zsh")
    assert status == 0
    assert script.startswith("#compdef zoo")
    assert "_zoo_models" in script
    if not shutil.which("zsh"):
        pytest.skip("there is no zsh")
    subprocess.run(["zsh", "-n", "-c", script], check=True, timeout=30)


def test_other_shells_are_refused_by_name(run) -> None:
    status, _, error = run("completion", "fish")
    assert status == 2
    assert "bash" in error
