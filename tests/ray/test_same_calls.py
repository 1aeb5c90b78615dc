"""The calls of a cluster's client are those of a zoo's: read from the text, for the engine need not be installed."""

from __future__ import annotations

import ast

import pytest

from tests.support import ROOT

DIFFERENT = {"close"}


def calls_of(file: str, name: str) -> dict[str, ast.arguments]:
    tree = ast.parse((ROOT / file).read_text())
    (found,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    return {
        one.name: one.args
        for one in found.body
        if isinstance(one, ast.FunctionDef) and not one.name.startswith("_") and one.name not in DIFFERENT
    }


ZOO = calls_of("zoo/client/client.py", "Client")
CLUSTER = calls_of("zoo/ray/client.py", "ClusterClient")


def test_they_have_the_same_names() -> None:
    assert CLUSTER.keys() == ZOO.keys()


@pytest.mark.parametrize("name", ZOO)
def test_they_take_the_same_arguments(name: str) -> None:
    assert ast.unparse(CLUSTER[name]) == ast.unparse(ZOO[name])
