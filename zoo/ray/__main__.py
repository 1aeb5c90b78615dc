"""`python -m zoo.ray deploy CONFIG`, `… undeploy`, `… status`: from any node of the cluster."""

from __future__ import annotations

import argparse
import sys

from zoo.errors import ZooError


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m zoo.ray", description="A zoo on each node of a Ray cluster.")
    commands = made.add_subparsers(dest="command", required=True)
    start = commands.add_parser("deploy", help="start it, or bring a changed config.toml to the nodes")
    start.add_argument("config", help="config.toml")
    commands.add_parser("undeploy", help="end it on all nodes")
    commands.add_parser("status", help="what is loaded where")
    return made


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0, or 1 when it cannot be done."""
    args = parser().parse_args(argv)
    try:
        return _run(args)
    except ModuleNotFoundError as e:
        if e.name not in ("ray", "tomli_w"):
            raise
        print("this needs the extra: pip install 'model-zoo[ray]'", file=sys.stderr)
    except ZooError as e:
        print(f"{e.code}: {e}", file=sys.stderr)
    return 1


def _run(args: argparse.Namespace) -> int:
    from zoo.ray import Client, deploy, undeploy

    if args.command == "deploy":
        deploy(args.config)
    elif args.command == "undeploy":
        undeploy()
    else:
        with Client() as client:
            for node, one in client.get_status()["nodes"].items():
                names = ", ".join(row["name"] for row in one["loaded_models"]) or "-"
                print(f"{node}  {one['vram_used_mb']:.0f} of {one['vram_budget_mb']:.0f} MB  {names}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
