"""What processes of ours ask of the Linux kernel that Python has no call for."""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 15, 36, 38
_PR_CAPBSET_DROP, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 24, 47, 4
_CAPABILITY_VERSION_3 = 0x20080522
_MOST_CAPABILITIES = 64

libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int = 0) -> bool:
    zero = ctypes.c_ulong(0)
    return bool(libc.prctl(option, ctypes.c_ulong(value), zero, zero, zero) == 0)


def set_name(name: str) -> None:
    """The name that `ps` and `top` show (15 bytes)."""
    libc.prctl(_PR_SET_NAME, name.encode("utf-8", "replace")[:15])


def become_subreaper() -> bool:
    """Orphans among this process's descendants become its children. False where the kernel refuses."""
    return _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent() -> None:
    """SIGTERM for this process when its parent ends; to be called between fork and exec."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def give_up_privileges() -> None:
    """No capability for this process from here on, and no new ones by any program that it or a descendant runs."""
    for capability in range(_MOST_CAPABILITIES):  # the kernel refuses those that it does not know, or all of them
        _prctl(_PR_CAPBSET_DROP, capability)
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    libc.capset(header, (ctypes.c_uint32 * 6)())
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def children() -> list[int]:
    """The processes whose parent this process is, adopted ones included.

    Raises:
        OSError: /proc cannot be read now (no descriptors left).
    """
    found: list[int] = []
    try:
        for task in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{task}/children", "rb") as file:
                found += map(int, file.read().split())
    except FileNotFoundError:  # a kernel that does not list them, or a thread that has just ended
        return _children_of(os.getpid())
    return found


def _children_of(parent: int) -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", "rb") as file:
                    if int(file.read().rpartition(b")")[2].split()[1]) == parent:
                        found.append(int(entry))
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found
