"""config.toml: the `[cluster]` table and its `[[cluster.nodes]]` ones, for several machines (`zoo/ray/`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated

import msgspec

from zoo.config.endpoint import endpoint_problem


class NodeConfig(msgspec.Struct, kw_only=True):
    """One `[[cluster.nodes]]` table: what differs on nodes with these labels. The first that matches a node counts.

    Attributes:
        labels: of the node, as the engine has them; all must match. {} matches every node.
        vram_budget_gb: takes the place of the one in `[broker]`; None leaves it.
        models: the only ones that these nodes serve; [] for all.
        endpoint: of a broker that runs there anyway; "": one is started with the node, and ends with it.
    """

    labels: dict[str, str] = {}
    vram_budget_gb: Annotated[float, msgspec.Meta(gt=0)] | None = None
    models: list[str] = []
    endpoint: str = ""


class ClusterConfig(msgspec.Struct, kw_only=True):
    """The `[cluster]` table.

    Attributes:
        copies: how many nodes may have one model loaded for its requests at a time.
        copy_at: a further node loads a model, into free room, when each that has it has so many requests of it.
        models: labels that a model needs of a node, by its name.
        nodes: see `NodeConfig`.
    """

    copies: Annotated[int, msgspec.Meta(ge=1)] = 2
    copy_at: Annotated[int, msgspec.Meta(ge=1)] = 16
    models: dict[str, dict[str, str]] = {}
    nodes: list[NodeConfig] = []

    def node(self, labels: Mapping[str, str]) -> NodeConfig:
        """What holds for a node with these labels."""
        return next((one for one in self.nodes if _match(one.labels, labels)), NodeConfig())

    def serves(self, model: str, labels: Mapping[str, str]) -> bool:
        """Whether a node with these labels may load the model."""
        models = self.node(labels).models
        return (not models or model in models) and _match(self.models.get(model, {}), labels)


def _match(wanted: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    return all(labels.get(name) == value for name, value in wanted.items())


def mistakes(config: ClusterConfig, known: set[str]) -> Iterator[tuple[int | None, str, str]]:
    """Number of the `[[cluster.nodes]]` table (None: `[cluster]` itself), key, and what is wrong. `known`: models."""
    named: list[tuple[int | None, Iterable[str]]] = [(None, config.models)]
    for number, models in [*named, *((i, node.models) for i, node in enumerate(config.nodes))]:
        for name in sorted({*models} - known):
            yield number, "models", f"there is no model {name!r} in this file"
    for i, node in enumerate(config.nodes):
        if node.endpoint and (problem := endpoint_problem(node.endpoint)):
            yield i, "endpoint", problem
