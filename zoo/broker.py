"""`python -m zoo.broker`: runs the broker in the foreground. Only the entry point; the broker is in `broker/`."""

from __future__ import annotations

from zoo.system import program

if __name__ == "__main__":
    program.put_ours_first()

import argparse
import contextlib
import gc
import logging
import os
import sys

from zoo.system import notify


def parser() -> argparse.ArgumentParser:
    """Of the arguments of `zoo serve`."""
    made = argparse.ArgumentParser(prog="zoo serve", description="Run the broker in the foreground.")
    program.add_arguments(made, endpoint="ipc://PATH or tcp://HOST:PORT, instead of the configured one")
    made.add_argument("--debug", action="store_true", help="check every invariant of the scheduler after each event")
    made.add_argument("--gateway", action="store_true", help="run the gateway too, and again when it ends")
    return made


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 after SIGTERM or SIGINT, 2 when configuration, endpoint or machine cannot be used.

    1: an error of the broker's own, such as books that it found to be wrong; its log says which.
    """
    args = parser().parse_args(argv)
    program.open_streams()
    notifier = notify.Notifier()  # before any child is started

    from broker import logs

    log = logs.Log(args.log_format)
    log.install(args.log_level)
    try:
        return _serve(args, notifier)
    except KeyboardInterrupt:
        return 130
    except Exception:
        logging.getLogger("zoo.broker").critical("the broker ends", exc_info=True)
        return 1
    finally:
        log.end()


def _serve(args: argparse.Namespace, notifier: notify.Notifier) -> int:
    gc.disable()  # one collection when all is made, instead of some forty on the way
    from broker.service import Service
    from zoo.config.endpoint import endpoint_problem
    from zoo.config.reading import load_config
    from zoo.errors import ConfigError

    try:
        config = load_config(args.config)
        if args.endpoint:
            problem = endpoint_problem(args.endpoint)
            if problem is None and args.endpoint.startswith("tcp://") and not config.broker.curve_dir:
                problem = "tcp:// needs curve_dir in config.toml; make keys with `python -m zoo.curve DIR`"
            if problem:
                raise ConfigError(f"--endpoint: {problem}")
        if args.gateway:
            _start_gateway(args)
        service = Service(config, args.endpoint or "", notifier, checks=args.debug)
    except (ConfigError, OSError) as e:
        print(e if isinstance(e, ConfigError) else f"the broker cannot be started: {e}", file=sys.stderr)
        return 2
    gc.collect()
    gc.freeze()
    gc.enable()
    return service.run()


def _start_gateway(args: argparse.Namespace) -> None:
    """Raises ConfigError: what it needs is not installed."""
    from zoo.gateway import keeper

    given = (
        ("--config", args.config), ("--endpoint", args.endpoint), ("--log-level", args.log_level),
        ("--log-format", args.log_format),
    )  # fmt: skip
    keeper.start([word for name, value in given if value for word in (name, value)])


if __name__ == "__main__":
    status = main()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(status)  # the log's thread may wait for its reader for ever
