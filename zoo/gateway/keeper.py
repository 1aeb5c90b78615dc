"""`python -m zoo.gateway.keeper BROKER ARGUMENTS`: starts the gateway, and again whenever it ends.

`zoo serve --gateway` has this process between broker and gateway, so that the broker has nothing to do with it: it
watches the broker by a descriptor of its process, and ends, with the gateway, when that is gone. Should it be killed
itself, the gateway ends with it, and a thread of the broker's, which does nothing else, starts both again.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time

from zoo.errors import ConfigError
from zoo.system import kernel, log_lines, program

FIRST_S, MOST_S = 0.5, 30.0  # before the gateway is started again: doubled each time
STEADY_S = 60.0  # after so long at work it starts again as the first time
END_S = 10.0
LIBRARIES = ("litestar", "multipart", "uvicorn", "httptools", "uvloop")  # of the extra `gateway`, as imported

log = logging.getLogger("zoo.gateway.keeper")


def start(arguments: list[str]) -> None:
    """Keeps the gateway beside this process, the broker's, until that ends. Raises ConfigError: `check_libraries`."""
    check_libraries()
    threading.Thread(target=_keep, args=(arguments,), name="zoo-keeper", daemon=True).start()


def _keep(arguments: list[str]) -> None:
    command = [sys.executable, "-P", "-m", "zoo.gateway.keeper", str(os.getpid()), *arguments]
    while True:
        try:
            status = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=program.environment()).wait()
        except OSError as e:
            log.warning("the gateway's keeper cannot be started: %s", e)
        else:
            if status == 0:  # it was asked to end
                return
            log.warning("the gateway's keeper ended with status %d; it is started again", status)
        time.sleep(FIRST_S)


def check_libraries() -> None:
    """Raises ConfigError where the extra is not installed. Imports nothing: that takes half a second."""
    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"the gateway needs {', '.join(missing)}: pip install 'model-zoo[gateway]'")


class Keeper:
    """See the module's docstring. `broker`: a pidfd of it."""

    def __init__(self, broker: int, arguments: list[str]) -> None:
        self._broker = broker
        self._arguments = arguments
        self._wake, self._woken = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def run(self) -> None:
        signal.set_wakeup_fd(self._woken)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        wait = FIRST_S
        while True:
            began = time.monotonic()
            gateway = subprocess.Popen(
                [sys.executable, "-P", "-m", "zoo.gateway", *self._arguments], preexec_fn=kernel.die_with_parent
            )
            if self._is_over(gateway.pid, None):
                self._end(gateway)
                return
            status = gateway.wait()
            if time.monotonic() - began > STEADY_S:
                wait = FIRST_S
            log.warning("the gateway ended with status %d; it is started again in %g s", status, wait)
            if self._is_over(None, wait):
                return
            wait = min(MOST_S, 2 * wait)

    def _is_over(self, pid: int | None, seconds: float | None) -> bool:
        """Waits for the end of the process, or so long. True: the broker has ended, or this process is to."""
        poll = select.poll()
        poll.register(self._broker, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        process = os.pidfd_open(pid) if pid is not None else None
        if process is not None:
            poll.register(process, select.POLLIN)
        try:
            ready = {fd for fd, _ in poll.poll(None if seconds is None else seconds * 1000)}
        finally:
            if process is not None:
                os.close(process)
        return bool(ready & {self._broker, self._wake})

    def _end(self, gateway: subprocess.Popen[bytes]) -> None:
        gateway.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            gateway.wait(END_S)
            return
        gateway.kill()
        gateway.wait()


def main() -> None:
    arguments = sys.argv[2:]
    log_lines.install("json" if "json" in arguments else "text", "INFO")
    kernel.set_name("zoo-keeper")
    try:
        broker = os.pidfd_open(int(sys.argv[1]))
    except ProcessLookupError:
        return
    if os.getppid() == int(sys.argv[1]):
        Keeper(broker, arguments).run()


if __name__ == "__main__":
    main()
