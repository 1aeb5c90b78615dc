"""One adapter family per file. The only place that imports torch, ultralytics, transformers and their kin.

Some of them look for the network or install packages when they are imported, unless the environment says otherwise.
It is said here, before any of them can be; of ultralytics whatever was said before, for it would install what a
checkpoint names.
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
    if _key.startswith("YOLO_"):
        os.environ[_key] = _value
    os.environ.setdefault(_key, _value)
