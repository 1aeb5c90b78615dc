"""The Python of the README and of docs/, word for word, against a broker with every model, on stand-ins.

The working directory has what the examples name: a `photo.jpg`, and what `make demo` leaves.
"""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.cli.test_examples import Example, examples
from tests.gateway.serving import beside
from tests.support import ROOT, Running


@pytest.fixture
def reader(zoo_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a reader who has run the demo."""
    from zoo.demo.scenes import photograph, street_scene

    Image.fromarray(photograph("bus.jpg")).resize((1080, 1080)).save(zoo_dir / "photo.jpg")
    (zoo_dir / "demo-out").mkdir()
    Image.fromarray(street_scene()[0]).save(zoo_dir / "demo-out" / "street.png")
    monkeypatch.chdir(zoo_dir)
    return zoo_dir


class Camera:
    def read(self) -> np.ndarray:
        return np.zeros((64, 64, 3), np.uint8)


def run(texts: list[Example], names: dict[str, Any]) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for example in texts:
            code = compile("\n" * example.line + example.text, str(ROOT / example.page), "exec")
            exec(code, names)
    return printed.getvalue()


@pytest.mark.models
@pytest.mark.timeout(300)
def test_the_examples_of_the_readme_run(whole_zoo: Running, reader: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_ENDPOINT", whole_zoo.endpoint)
    names: dict[str, Any] = {"picture": np.zeros((1080, 1920, 3), np.uint8)}
    blocks = [e for e in examples("python") if e.page == "README.md" and not e.text.startswith("# brightness.py")]
    with whole_zoo.client() as client:
        client.load("paddleocr", timeout=60)
        # The second example is called with the client of the first, which its `with` has closed.
        run(blocks[:1], names)
        names["zoo"] = client
        with contextlib.contextmanager(beside)(whole_zoo) as gateway:
            run([e._replace(text=e.text.replace("localhost:8000", gateway.address)) for e in blocks[1:]], names)


@pytest.mark.models
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", ["docs/enrich.md", "docs/models.md"])
def test_the_examples_of_a_page_run(
    page: str, whole_zoo: Running, standin: Callable[[str], Path], reader: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_ENDPOINT", whole_zoo.endpoint)
    encoder = standin("yolo-world-s").parent / "text_encoder"
    (reader / "weights" / "yolo-world-s").mkdir(parents=True)
    shutil.copytree(encoder, reader / "clip-vit-base-patch32")
    run([e for e in examples("python") if e.page == page], {"camera": Camera()})
