"""ultralytics reads the file that it is given, and nothing else.

By itself it interprets the path: quotes and blanks are cut off, `yolov5s.pt` becomes `yolov5su.pt`, what is then
not found is fetched from the network, whatever lies at the path, and a module that a checkpoint names and that is not
there is installed. None of its settings ends all of that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ultralytics.nn.tasks
import ultralytics.utils.downloads

from workers.models.shared.replaced import replaced


def load_checkpoint(path: Path) -> Any:
    """The model in the pickle at `path`, as `ultralytics.nn.tasks.load_checkpoint` makes it of a file that it finds.

    Raises:
        Exception: whatever the library, or the pickle, raises.
    """
    with replaced(
        (ultralytics.utils.downloads, "attempt_download_asset", lambda file, *_, **__: str(file)),
        (ultralytics.utils.downloads, "safe_download", _refuse),
        (ultralytics.nn.tasks, "check_file", _refuse),
        (ultralytics.nn.tasks, "check_suffix", lambda *_, **__: None),
        (ultralytics.nn.tasks, "check_requirements", _refuse),
        # Whatever the environment says: its allow-list would be held up by an unpickler written in Python, which takes
        # as long as the rest of the load, and config.toml has said that the file is trusted.
        (ultralytics.nn.tasks, "SAFE_LOAD", False),
    ):
        # Absolute, so that it is no address either: those begin with a scheme.
        return ultralytics.nn.tasks.load_checkpoint(str(path.absolute()))[0]


def _refuse(what: Any, *_: Any, **__: Any) -> Any:
    raise ModuleNotFoundError(f"the checkpoint wants {what!r}, which is not here; nothing is fetched or installed")
