"""To be preloaded: does to the nursery what the machine around it may. Each by a file in its working directory.

refuse: forks are refused, as by a limit of processes. die: it dies after its next fork, before it can say so (the file
goes with it). unnamed: no descriptor is left for a pidfd.
"""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

HERE = Path.cwd()
_fork, _pidfd_open = os.fork, os.pidfd_open


def fork() -> int:
    if (HERE / "refuse").exists():
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    pid = _fork()
    if pid and (HERE / "die").exists():
        (HERE / "die").unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    return pid


def pidfd_open(pid: int, flags: int = 0) -> int:
    if (HERE / "unnamed").exists():
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    return _pidfd_open(pid, flags)


os.fork, os.pidfd_open = fork, pidfd_open
