"""What a service manager is told: that this process serves, lives and ends.

systemd's protocol (sd_notify): datagrams of text to the socket that `$NOTIFY_SOCKET` names, for units of
`Type=notify`. Where the unit says `WatchdogSec=`, a process that is silent for so long is ended and started again.
Without that variable nothing is ever sent.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import MutableMapping

SEND_S = 0.5  # a manager that does not read for so long misses the message


class Notifier:
    """Made of the environment, which loses the variables: a child process is not to answer in this one's place.

    Attributes:
        watched: `alive` is expected, once in each half of `WatchdogSec` at least.
    """

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        address = environment.pop("NOTIFY_SOCKET", "")
        period, pid = environment.pop("WATCHDOG_USEC", "0"), environment.pop("WATCHDOG_PID", "")
        self._sock = _connect(address) if address else None
        ours = pid in ("", str(os.getpid()))
        self.watched = self._sock is not None and ours and period.isascii() and period.isdecimal() and int(period) > 0

    def ready(self, status: str) -> None:
        """It serves, or serves again after `reloading`. `status`: a line for `systemctl status`."""
        self._say("READY=1", f"STATUS={status}")

    def alive(self) -> None:
        if self.watched:
            self._say("WATCHDOG=1")

    def reloading(self) -> None:
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._say("RELOADING=1", f"MONOTONIC_USEC={now}")

    def stopping(self) -> None:
        self._say("STOPPING=1", "STATUS=ending")

    def _say(self, *lines: str) -> None:
        if self._sock is not None:
            with contextlib.suppress(OSError):  # the manager is gone, or reads nothing now
                self._sock.send("\n".join(lines).encode())


def _connect(address: str) -> socket.socket | None:
    """None: there is no such socket. A name that begins with "@" is an abstract one."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.settimeout(SEND_S)
    try:
        sock.connect("\0" + address[1:] if address.startswith("@") else address)
    except OSError:
        sock.close()
        return None
    return sock
