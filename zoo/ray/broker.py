"""`python -m zoo.ray.broker PARENT ARGUMENTS`: a broker that ends with the process that started it.

Not by a call between fork and exec: a process of the engine has threads that do not take a fork well.
"""

from __future__ import annotations

from zoo.system import program

if __name__ == "__main__":
    program.put_ours_first()

import os
import sys

from zoo.broker import main
from zoo.system import kernel

if __name__ == "__main__":
    kernel.die_with_parent()
    if os.getppid() == int(sys.argv[1]):
        sys.exit(main(sys.argv[2:]))
