"""`python -m tests.hurried` for `python -m zoo.broker`: one that soon loses patience with its nursery."""

from __future__ import annotations

import sys

from broker.fleet import pool
from zoo import broker

if __name__ == "__main__":
    pool.IMPORT_LIMIT_S = 3.0
    pool.ANSWER_LIMIT_S = 1.0
    sys.exit(broker.main())
