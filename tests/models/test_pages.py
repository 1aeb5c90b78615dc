"""What runs of the README and of docs/, word for word, against a zoo with every model, on stand-ins.

The working directory has what the examples name: what `make demo` leaves, and pictures of the reader's. The tutorial
has a broker of its own: tests/site/test_tutorial.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.test_examples import PAGES, examples
from tests.gateway.serving import RunningGateway, beside
from tests.models.reader import Reader
from tests.models.served import TABLES
from tests.support import Running, config_text

RUN = [e for e in examples("python", "sh") if not e.reason and e.page != "docs/tutorial.md"]


class Camera:
    def read(self) -> np.ndarray:
        return np.zeros((64, 64, 3), np.uint8)


@pytest.fixture(scope="module")
def gateway(whole_zoo: Running) -> Iterator[RunningGateway]:
    yield from beside(whole_zoo, TABLES)


@pytest.fixture
def home(zoo_dir: Path) -> Path:
    """The working directory of a reader who has run the demo."""
    from zoo.demo.scenes import photograph, street_scene

    street = Image.fromarray(street_scene()[0])
    (zoo_dir / "demo-out").mkdir()
    for name in ("demo-out/street.png", "street.jpg"):
        street.save(zoo_dir / name)
    photo = Image.fromarray(photograph("bus.jpg")).resize((1080, 1080))
    for name in ("photo.jpg", "one.jpg", "two.jpg", "three.jpg"):
        photo.save(zoo_dir / name)
    quality = {"name": "brisque-quality", "adapter": "workers.models.quality:Brisque"}
    (zoo_dir / "config.toml").write_text(config_text([quality]))
    return zoo_dir


@pytest.mark.models
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", [page for page in PAGES if any(e.page == page for e in RUN)])
def test_what_a_page_says_works(
    page: str, whole_zoo: Running, gateway: RunningGateway, standin: Callable[[str], Path], home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("ZOO_ENDPOINT", whole_zoo.endpoint)
    if page == "docs/models.md":
        encoder = standin("yolo-world-s").parent / "text_encoder"
        (home / "weights" / "yolo-world-s").mkdir(parents=True)
        shutil.copytree(encoder, home / "clip-vit-base-patch32")
    reader = Reader(home, whole_zoo.endpoint, gateway.address, camera=Camera())
    for example in RUN:
        if example.page == page:
            reader.read(example)
