"""Which models answer, by the configuration, and on what."""

from __future__ import annotations

from zoo.config.rules import Rule
from zoo.config.schema import ModelConfig, ZooConfig
from zoo.errors import ModelNotFound, ZooError
from zoo.gateway.gateway import Gateway


def model_of(config: ZooConfig, role: str) -> ModelConfig:
    """The model that says `deepstack = role`. Raises ModelNotFound."""
    for model in config.models:
        if model.deepstack == role and model.enabled:
            return model
    raise ModelNotFound(
        f'no model of config.toml says deepstack = "{role}"; give one that line, and restart the gateway'
    )


def reading_rule(config: ZooConfig, detector: str) -> tuple[Rule, str]:
    """How plates are read: the rule of the enrichment table that comes after their detector, and its model of texts.

    Raises:
        ModelNotFound: there is none.
    """
    texts = {model.name for model in config.models if model.category == "ocr"}
    for rule in config.enrich.rules:
        if rule.after == detector:
            return rule, next((name for name in rule.models if name in texts), rule.models[0])
    raise ModelNotFound(f'no model reads what {detector} finds: [[enrich.rules]] has none with after = "{detector}"')


def least_asked(model: ModelConfig | None, least: float) -> dict[str, float]:
    """The options for a model to answer from this confidence on, where it has a limit of its own above it."""
    limit = model.options.get("conf") if model is not None else None
    return {"conf": least} if isinstance(limit, int | float) and least < limit else {}


class Provider:
    """What kind of device the broker has. It is asked once: devices do not change while it runs."""

    def __init__(self) -> None:
        self._kinds: set[str] | None = None

    async def name(self, gateway: Gateway) -> str:
        """ "CUDA" or "CPU"; "" while the broker has not said so."""
        if self._kinds is None:
            try:
                self._kinds = {device["kind"] for device in (await gateway.own.get_status())["devices"]}
            except ZooError:
                return ""
        return "CUDA" if "cuda" in self._kinds else "CPU"
