"""All models that tests serve: those of config.toml, and the examples of docs/models.md that are not in it."""

from __future__ import annotations

from tests.cli.test_examples import examples
from tests.support import ROOT
from zoo.config import reading

CONFIG = (ROOT / "config.toml").read_text()
DOCUMENTED = "\n".join(
    e.text for e in examples("toml") if e.page == "docs/models.md" and e.text.startswith("[[models]]")
)
TABLES = f"{CONFIG[CONFIG.index('[[models]]') :]}\n{DOCUMENTED}"
MODELS = reading.parse_config(f"{CONFIG}\n{DOCUMENTED}").models
EXAMPLES = [model.name for model in reading.parse_config(DOCUMENTED).models]
TENSORS = {"onnx-tensors"}  # they take no frames
NAMES = [model.name for model in MODELS if model.name not in TENSORS]
