"""What a model calls its classes: told by the model once it was loaded, until then by what lies beside its weights."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import support
from tests.support import Running, toy, wait_until
from zoo import AsyncClient, Client, ModelNotFound

Start = Callable[..., Running]
PETS = ["Cats", "dogs", "GUINEA_PIGS"]
MANY = [f"label number {i}" for i in range(5000)]
SAYS: dict[str, tuple[Any, list[str]]] = {  # what an adapter may hold as `labels`, and what is told of it
    "pets": (PETS, PETS),
    "numbered": ({"10": "c", "0": "a", "2": "b"}, ["a", "b", "c"]),
    "named": ({"cat": "a"}, []),
    "nothing": ([], []),
    "word": ("cats", []),
    "figures": ([1, 2, 3], []),
    "switch": (True, []),
    "mixed": (["a", 1], []),
    "many": (MANY, MANY),
    "huge": ([f"{'x' * 100}{i}" for i in range(15_000)], []),
}


def known(zoo: Client, model: str) -> tuple[list[str] | None, str | None]:
    (row,) = zoo.models(model)
    return row["labels"], row["labels_from"]


@pytest.fixture(scope="module")
def served() -> Iterator[Running]:
    """Models that say of themselves what stands in `SAYS`, and one that says nothing."""
    folder = Path(tempfile.mkdtemp(prefix="zoo-t-", dir="/tmp"))
    models = [toy(name, options={"labels": said}) for name, (said, _) in SAYS.items() if name != "huge"]
    (folder / "huge.py").write_text(
        "from tests.toy import Toy\n"
        "class Huge(Toy):\n"
        "    def load(self, spec, device):\n"
        "        super().load(spec, device)\n"
        "        self.labels = ['x' * 100 + str(i) for i in range(15_000)]\n"
    )
    models += [toy("huge", adapter="huge:Huge"), toy("silent"), toy("late"), toy("unfound", path="not/there.pt")]
    models += [toy("unpulled", path="not/here.pt", source="https://example.org/here.pt")]
    models += [toy("fresh", options={"labels": PETS})]
    running = Running(folder, models).start()
    yield running
    try:
        running.close()
    finally:
        support.remove(folder)


@pytest.mark.parametrize("model", [*SAYS, "silent"])
def test_a_loaded_model_tells_its_labels(served: Running, model: str) -> None:
    zoo = served.client()
    zoo.get_model(model)
    assert known(zoo, model) == (SAYS.get(model, (None, []))[1], "model")


def test_of_a_model_that_says_nothing_the_files_count(broker: Start, zoo_dir: Path) -> None:
    (zoo_dir / "pets").mkdir()
    (zoo_dir / "pets" / "classes.txt").write_text("cat\ndog\n")
    zoo = broker([toy("pets", path=str(zoo_dir / "pets"))]).client()
    assert known(zoo, "pets") == (["cat", "dog"], "files")
    zoo.get_model("pets")
    assert known(zoo, "pets") == (["cat", "dog"], "files")


def test_labels_that_are_too_much_to_be_told_are_a_line_in_the_log(served: Running) -> None:
    served.client().get_model("huge")
    wait_until(lambda: "huge: its 15,000 labels are too much to be told" in served.log())


def test_before_its_load_and_after_it(served: Running) -> None:
    zoo = served.client()
    assert known(zoo, "fresh") == (None, None)
    zoo.get_model("fresh")
    assert known(zoo, "fresh") == (PETS, "model")
    zoo.unload("fresh")
    assert known(zoo, "fresh") == (PETS, "earlier load")


def test_long_lists_are_told_of_a_single_model_alone(served: Running) -> None:
    zoo = served.client()
    for model in ("many", "pets"):
        zoo.get_model(model)
    rows = {row["name"]: row for row in zoo.models()}
    assert (rows["many"]["labels"], rows["many"]["labels_from"]) == (None, "model")
    assert (rows["pets"]["labels"], rows["pets"]["labels_from"]) == (PETS, "model")
    assert known(zoo, "many") == (MANY, "model")


def test_what_is_asked_often_holds_no_labels(served: Running) -> None:
    zoo = served.client()
    zoo.get_model("pets")
    for answer in (zoo.get_status(), zoo.processes(), zoo.explain("pets")):
        assert "GUINEA_PIGS" not in json.dumps(answer)


def test_both_clients_ask_for_one_model(served: Running) -> None:
    zoo = served.client()
    zoo.get_model("pets")
    with pytest.raises(ModelNotFound, match="did you mean 'pets'"):
        zoo.models("pest")

    async def ask() -> list[dict[str, Any]]:
        async with AsyncClient(served.endpoint, arena_mb=8) as other:
            return await other.models("pets")

    assert asyncio.run(ask()) == zoo.models("pets")


# ---------------------------------------------------------------- on the command line

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def here(served: Running, monkeypatch: pytest.MonkeyPatch) -> Running:
    monkeypatch.setenv("ZOO_ENDPOINT", served.endpoint)
    return served


@pytest.mark.parametrize("model", ["pets", "many"])
def test_zoo_ls_lists_the_labels_of_a_model(run: Run, here: Running, model: str) -> None:
    here.client().get_model(model)
    labels = SAYS[model][1]
    assert run("ls", "--labels", model) == (0, "\n".join([*labels, ""]), "")
    status, out, err = run("ls", "--labels", model, "--json")
    assert (status, err) == (0, "")
    assert json.loads(out) == {"model": model, "labels": labels, "labels_from": "model"}


def test_labels_that_cannot_be_listed_are_one_line_that_says_why(run: Run, here: Running) -> None:
    here.client().get_model("silent")
    for model, text in (
        ("silent", "invalid input: silent has no labels of its own"),
        ("late", "model unavailable: the labels of late are known after its first load: `zoo load late`"),
        ("unfound", "model unavailable: the labels of unfound are known after its first load: put its weights there"),
        ("unpulled", "model unavailable: the labels of unpulled are known after its first load: `zoo pull unpulled`"),
        ("pest", "model not found: there is no model 'pest'; did you mean 'pets'?"),
    ):
        status, out, err = run("ls", "--labels", model)
        assert (status, out, err.count("\n")) == (1, "", 1)
        assert err.startswith(f"zoo: {text}")
    assert json.loads(run("ls", "--labels", "late", "--json")[2])["retryable"] is False


def test_without_a_broker_files_tell_the_labels(run: Run, zoo_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (zoo_dir / "pets").mkdir()
    (zoo_dir / "pets" / "config.json").write_text(json.dumps({"id2label": dict(enumerate(PETS))}))
    (zoo_dir / "best.pt").touch()
    models = [toy("pets", path=str(zoo_dir / "pets")), toy("single", path=str(zoo_dir / "best.pt"))]
    (zoo_dir / "config.toml").write_text(support.config_text(models, endpoint=f"ipc://{zoo_dir}/b"))
    monkeypatch.setenv("ZOO_CONFIG", str(zoo_dir / "config.toml"))
    ask = ("ls", "--timeout", "0.2", "--labels")
    status, out, err = run(*ask, "pets")
    assert (status, out.split()) == (0, PETS)
    assert "no broker runs" in err
    assert json.loads(run(*ask, "pets", "--json")[1]) == {"model": "pets", "labels": PETS, "labels_from": "files"}
    (zoo_dir / "pets" / "config.json").write_text(json.dumps({"id2label": {"0": "\x1b]0;mine\x07cat", "1": "dog\x9b"}}))
    assert run(*ask, "pets")[1] == "\\x1b]0;mine\\x07cat\ndog\\x9b\n"  # nothing that a terminal obeys
    assert "labels: \\x1b]0;mine\\x07cat, dog" in run("pull", "pets")[1]
    assert run(*ask, "single")[2].startswith("zoo: model unavailable: the labels of single are known after its first")
    assert run(*ask, "pest")[2] == "zoo: model not found: there is no model 'pest'; did you mean 'pets'?\n"


# ---------------------------------------------------------------- kept, and forgotten


def test_labels_are_kept_over_a_restart_until_weights_or_options_change(zoo_dir: Path, broker: Start) -> None:
    weights = zoo_dir / "w.bin"
    weights.write_bytes(b"one")
    models = [
        toy(name, path=str(weights), options={"labels": labels})
        for name, labels in (("pets", PETS), ("many", MANY), ("other", ["a"]))
    ]
    keys = {"footprint": "measured", "state_dir": zoo_dir / "state", "vram_budget_gb": 4}
    running = broker(models, **keys)
    for name in ("pets", "many", "other"):
        running.client().get_model(name)
    running.close()
    assert set(json.loads((zoo_dir / "state/labels.json").read_text())["models"]) == {"pets", "other"}

    models[2]["options"] = {"labels": ["b"]}
    running = broker(models, **keys)
    zoo = running.client()
    assert [known(zoo, name) for name in ("pets", "many", "other")] == [(PETS, "earlier load"), *[(None, None)] * 2]
    weights.write_bytes(b"another")
    assert known(zoo, "pets") == (None, None)
    zoo.get_model("pets")
    weights.write_bytes(b"yet another")
    assert known(zoo, "pets") == (PETS, "model")  # of what runs, whatever lies there now
    zoo.unload("pets")
    assert known(zoo, "pets") == (None, None)


def test_a_model_that_is_made_of_its_copy_tells_them_too(broker: Start) -> None:
    running = broker([toy("pets", options={"labels": PETS})], host_cache_mb=100)
    zoo = running.client()
    zoo.get_model("pets")
    wait_until(lambda: zoo.get_status()["host_cache"]["models"])
    zoo.unload("pets")
    zoo.get_model("pets")
    wait_until(lambda: "pets: made of its copy" in running.log())  # what is logged is written a little later
    assert known(zoo, "pets") == (PETS, "model")
