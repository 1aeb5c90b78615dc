"""`python -m zoo.gateway`, `zoo gateway`: runs the gateway in the foreground."""

from __future__ import annotations

from zoo.system import program

if __name__ == "__main__":
    program.put_ours_first()

import argparse
import asyncio
import gc
import logging
import sys

from zoo.config.reading import load_config
from zoo.errors import ConfigError
from zoo.gateway import keeper
from zoo.system import kernel, log_lines, notify

log = logging.getLogger("zoo.gateway")


def parser() -> argparse.ArgumentParser:
    """Of the arguments of `zoo gateway`."""
    made = argparse.ArgumentParser(prog="zoo gateway", description="Run the gateway in the foreground.")
    program.add_arguments(made, endpoint="the broker's, instead of the configured one")
    return made


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 after SIGTERM or SIGINT, 2 when the configuration cannot be served, 1: an error of its own."""
    args = parser().parse_args(argv)
    program.open_streams()
    notifier = notify.Notifier()
    kernel.set_name("zoo-gateway")
    log_lines.install(args.log_format, args.log_level)
    logging.getLogger("uvicorn.error").setLevel(max(logging.WARNING, logging.getLogger().level))
    try:
        config = load_config(args.config)
        keeper.check_libraries()
        gc.disable()  # of what is imported nothing is garbage
        import uvloop

        from zoo.gateway import serving

        gc.freeze()
        gc.enable()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serving.serve(config, args.endpoint, notifier))
    except ConfigError as e:
        if args.log_format == "json":
            log.critical("%s", e)
        else:
            print(e, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except Exception:
        log.critical("the gateway ends", exc_info=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
