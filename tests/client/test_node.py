"""The wire as docs/protocol.md has it, spoken by a client in another language: `tests/node/client.mjs`.

`make node` (and CI) brings the client's two packages into `.node`; without them, or without Node.js, this is skipped.
What Node.js cannot do by itself, packets with descriptors and writable mappings, a helper does for it
(`tests/node/descriptors.py`); it knows nothing of the zoo.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.support import ROOT, Running, wait_until

NODE = shutil.which("node")
MODULES = ROOT / ".node"


@pytest.mark.skipif(NODE is None, reason="there is no node")
@pytest.mark.skipif(not (MODULES / "node_modules" / "zeromq").is_dir(), reason="its packages are missing: make node")
def test_a_client_written_from_the_document_gets_what_it_promises(broker: Callable[..., Running]) -> None:
    assert NODE is not None
    running = broker()
    command = [NODE, str(ROOT / "tests/node/client.mjs"), running.endpoint, sys.executable, str(MODULES)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "as docs/protocol.md says" in ran.stdout
    client = running.client()
    wait_until(lambda: client.get_status()["sessions"] == 1, what="nothing of its sessions is left")
