"""`python -m benchmarks.peers.serving PEER FOLDER`: a peer's server, in the peer's environment, until it is killed."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

if __name__ == "__main__":
    os.environ["PEERS_FOLDER"] = sys.argv[2]
    importlib.import_module(sys.argv[1]).serve(Path(sys.argv[2]))
