"""Device files of NVIDIA's driver, made before they are needed by processes that may not make them.

On a machine where nothing has used CUDA since it was started, libcuda has `nvidia-modprobe`, a set-uid program, load a
module and make its device files. Workers cannot gain privileges, so that would fail in them; the broker may ask for it.
"""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

UNIFIED = Path("/dev/nvidia-uvm")
PROGRAM = "nvidia-modprobe"
LIMIT_S = 10.0


def make_device_files() -> None:
    """Waits for it. Without that program, or where it fails, what is missing stays so: loads say what CUDA says."""
    if UNIFIED.exists():
        return
    import shutil  # with the compressors that it brings along, only here

    program = shutil.which(PROGRAM) or shutil.which(PROGRAM, path="/usr/bin:/usr/sbin:/sbin:/bin")
    if program is not None:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            quiet = subprocess.DEVNULL
            subprocess.run(
                [program, "-u", "-c", "0"], stdin=quiet, stdout=quiet, stderr=quiet, timeout=LIMIT_S, check=False
            )
