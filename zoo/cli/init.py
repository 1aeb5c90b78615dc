"""`zoo init`: a configuration to begin with, and the folders that it names."""

from __future__ import annotations

import os
from pathlib import Path

from zoo.errors import ConfigError

FOLDERS = ("weights", "state")
TEXT = """\
# The zoo's configuration. `zoo check` reads it without serving, `zoo serve` serves it, `zoo reload` reads it again.
# Relative paths begin at this file's folder. Each key is explained in zoo/config/schema.py; unknown keys are errors.

[broker]
device = "auto"                # CUDA where there is one, else host memory
vram_budget_gb = 6.8           # all loaded models together stay within it
weights_dir = "weights"        # where `zoo pull` puts weights
state_dir = "state"            # what was measured of the models' memory
# endpoint = "ipc:///run/zoo/broker"   # default: a socket in a private folder of yours
# idle_seconds = 300           # a model that is unused for so long is unloaded
# metrics = "127.0.0.1:9464"   # for Prometheus

# A model of yours: a file brightness.py beside this one, with
#
#   class Brightness:
#       def load(self, spec, device):
#           pass
#       def predict(self, inputs):
#           return [{"mean": float(x.image.mean())} for x in inputs]
#
# [[models]]
# name = "brightness"
# adapter = "brightness:Brightness"
# vram_mb = 1                  # the most that it may take, until it has been measured
# priority = "MEDIUM"          # CRITICAL, HIGH, MEDIUM or LOW: who stays when room is needed

# A model with published weights: `zoo pull clip-vit-l` fetches them, `zoo ls` says what is missing. It needs the model
# libraries (pip install 'model-zoo[workers]').
#
# [[models]]
# name = "clip-vit-l"
# adapter = "workers.models.clip:ClipEmbedder"
# path = "clip-vit-l"
# source = "hf:openai/clip-vit-large-patch14"
# files = ["config.json", "preprocessor_config.json", "model.safetensors", "tokenizer.json?", "tokenizer_config.json",
#          "special_tokens_map.json?", "vocab.json", "merges.txt"]
# vram_mb = 800
"""


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
