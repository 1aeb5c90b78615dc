"""One adapter family per file. The only place that imports torch, ultralytics, transformers and their kin.

Some of them look for the network or install packages when they are imported, unless the environment says otherwise.
It is said here, before any of them can be.
"""

import os

for _key, _value in {
    "YOLO_AUTOINSTALL": "false",
    "YOLO_OFFLINE": "true",
    "YOLO_VERBOSE": "false",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}.items():
    os.environ.setdefault(_key, _value)
