"""`python -m workers.models.standins DIR [NAME…]`: what `zoo standins` runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from workers.models.standins import STANDINS, make
from zoo.errors import ZooError


def parser() -> argparse.ArgumentParser:
    """Of the arguments of `zoo standins`."""
    made = argparse.ArgumentParser(
        prog="zoo standins",
        description="Write small checkpoints with random weights, in the form and place of the published ones. "
        "Everything works with them, and their answers mean nothing.",
    )
    made.add_argument("directory", metavar="DIR", help="the weights folder (weights_dir in config.toml)")
    made.add_argument("names", nargs="*", metavar="NAME", help="models as named in config.toml; none means all")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        for name in args.names or STANDINS:
            print(f"{name}: {make(name, args.directory)}", flush=True)
    except (ZooError, OSError) as e:
        print(f"zoo: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
