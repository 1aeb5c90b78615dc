"""What a process that runs adapters is from its first moment: bound to its broker, without privileges, first to go.

Each worker leads its own session and process group, so that whatever an adapter starts is killed with it. It holds
the read end of a pipe whose only writer is the broker, set so that the kernel kills the group when that writer is
gone, whatever the worker is doing. Signals that ask to end (SIGTERM, SIGINT, SIGHUP) are the broker's to handle, also
when they are sent to every process of a service: nursery and workers ignore them. When memory runs out the kernel
takes a worker first: `oom_score_adj` is raised by 500. No capabilities, none to be gained (`no_new_privs`), no core
dumps, which would hold frames.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import os
import resource
import select
import signal
import sys
from types import FrameType
from typing import NoReturn

from zoo.system import kernel

OOM_SCORE_RAISED = 500  # of 1000: the kernel takes a worker before it takes the nursery or the broker
ASKED_TO_END = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def die_with(pipe: int, *, group: bool) -> None:
    """SIGKILL by the kernel when the last writer of `pipe` is gone, whatever this process is doing at that moment.

    The only writer is the broker. It needs no thread of ours, nor the interpreter's lock.

    Args:
        group: for the whole process group, which this process leads.
    """
    fcntl.fcntl(pipe, fcntl.F_SETOWN, -os.getpgrp() if group else os.getpid())
    fcntl.fcntl(pipe, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)
    poll = select.poll()
    poll.register(pipe, 0)
    if poll.poll(0):  # it was gone before
        os._exit(0)


def show_device(uuid: str) -> None:
    """Has CUDA, which reads this when it is first used, show this process one device only, or none for ""."""
    os.environ["CUDA_VISIBLE_DEVICES"] = uuid
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # what an adapter or its child may show itself beside that


def confine() -> None:
    """Neither this process nor a descendant ever has a privilege, or leaves frames in a core dump."""
    kernel.give_up_privileges()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError), open("/proc/self/coredump_filter", "w") as file:
        file.write("0")  # for handlers that get a dump through a pipe, whatever the limit


def volunteer() -> None:
    """When memory runs out, the kernel takes this process before those that it cannot be made again without."""
    with contextlib.suppress(OSError, ValueError), open("/proc/self/oom_score_adj", "r+") as file:
        score = min(1000, int(file.read()) + OOM_SCORE_RAISED)
        file.seek(0)
        file.write(str(score))


def outlive_drain() -> None:
    """Signals that ask to end are for the broker, also where they are sent to every process of a service.

    With a handler that does nothing, not ignored: what is ignored stays so in every program that an adapter runs.
    A SIGQUIT has the stacks of all threads written to standard error, also while one holds the interpreter's lock.
    """
    for number in ASKED_TO_END:
        signal.signal(number, _nothing)
        signal.siginterrupt(number, False)
    faulthandler.register(signal.SIGQUIT, all_threads=True)
    os.register_at_fork(before=_hold, after_in_parent=_let_come, after_in_child=_end_when_asked)


def _nothing(_number: int, _frame: FrameType | None) -> None:
    pass


def _hold() -> None:
    """Before a fork: a signal that comes to the child at once waits until that has its own way with it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, ASKED_TO_END)


def _let_come() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKED_TO_END)


def _end_when_asked() -> None:
    """What an adapter forks ends by SIGTERM, as the adapter may expect of it."""
    for number in ASKED_TO_END:
        if signal.getsignal(number) is _nothing:
            signal.signal(number, signal.SIG_DFL)
    faulthandler.unregister(signal.SIGQUIT)
    _let_come()


def exit_now(status: int) -> NoReturn:
    """Ends the process, whatever its other threads are doing."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(status)
