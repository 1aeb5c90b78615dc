"""`zoo init`: a configuration to begin with, and the folders that it names."""

from __future__ import annotations

import os
from pathlib import Path

from zoo.errors import ConfigError

FOLDERS = ("weights", "state")
TEXT = Path(__file__).with_name("init.toml").read_text(encoding="utf-8")


def write(folder: Path) -> Path:
    """Writes config.toml into `folder`, which is made if need be, and makes its folders. Gives the file's path.

    Raises:
        ConfigError: there is a config.toml, which stays as it is, or the folder cannot be written.
    """
    file = folder / "config.toml"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(file, "x", encoding="utf-8") as made:
            made.write(TEXT)
        for name in FOLDERS:
            (folder / name).mkdir(mode=0o700 if name == "state" else 0o777, exist_ok=True)
    except FileExistsError as e:
        at = os.fspath(e.filename or file)
        raise ConfigError(
            f"{at} is there already, and was left as it is; name another folder: `zoo init FOLDER`"
        ) from None
    except OSError as e:
        raise ConfigError(f"{e.filename or file} cannot be written: {e.strerror or e}") from None
    return file
