"""`python -m zoo.broker`: runs the broker in the foreground. Only the entry point; the broker is in `broker/`."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import resource
import sys


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 after SIGTERM or SIGINT, 2 when the configuration or the endpoint cannot be used."""
    parser = argparse.ArgumentParser(prog="zoo serve", description="Run the broker in the foreground.")
    parser.add_argument("--config", help="config.toml (default: $ZOO_CONFIG, ./config.toml, the shipped one)")
    parser.add_argument("--endpoint", help="ipc://PATH or tcp://HOST:PORT, instead of the configured one")
    parser.add_argument("--log-level", default="INFO", choices=["DEBUG", "INFO", "WARNING", "ERROR"])
    parser.add_argument("--log-format", default="text", choices=["text", "json"], help="json: one object per line")
    parser.add_argument("--debug", action="store_true", help="check every invariant of the scheduler after each event")
    args = parser.parse_args(argv)

    from broker import logs
    from broker.service import Service
    from zoo.config import endpoint_problem, load_config
    from zoo.errors import ConfigError

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logs.formatter(args.log_format))
    logging.basicConfig(level=args.log_level, handlers=[handler])
    try:
        config = load_config(args.config)
        if args.endpoint:
            problem = endpoint_problem(args.endpoint)
            if problem is None and args.endpoint.startswith("tcp://") and not config.broker.curve_dir:
                problem = "tcp:// needs curve_dir in config.toml; make keys with `python -m zoo.curve DIR`"
            if problem:
                raise ConfigError(f"--endpoint: {problem}")
        service = Service(config, args.endpoint or "")
        service.checks = args.debug
    except ConfigError as e:
        print(e, file=sys.stderr)
        return 2
    _allow_many_clients()
    gc.collect()
    gc.freeze()
    service.run()
    return 0


def _allow_many_clients() -> None:
    """Each client takes about three descriptors; the usual soft limit of 1024 would do for some 300."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    status = main()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # nothing of the forkserver's atexit machinery is ours to wait for
