"""The page as a person meets it: in Chromium, over a real broker. Skipped where there is no Chromium."""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Error, Page, expect

from benchmarks import day
from tests.gateway.serving import RunningGateway, both_alone
from tests.gateway.test_kserve import jpeg
from tests.gateway.test_page import TOKENS
from tests.support import Running, toy
from zoo import Client

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(day.CHROMIUM is None, reason="no Chromium here: apt-get install chromium"),
]
EVIL = "<script>window.pressed = 1</script><img src=x onerror='window.pressed = 1'>"
PICTURE = jpeg(np.full((40, 60, 3), 3, np.uint8))
MODELS = [
    toy("first", vram_mb=30, priority="HIGH", category="detection"),
    toy("second", vram_mb=30),
    toy("other", vram_mb=10),
    {"name": "evil", "adapter": "tests.gateway.adapter:Refusing", "vram_mb": 1},
    {"name": "labelled", "adapter": "tests.gateway.adapter:Marked", "vram_mb": 1},
]
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=60_000)
    with contextlib.ExitStack() as opened:
        try:
            made = opened.enter_context(day.chromium())
        except Error as e:
            pytest.skip(f"Chromium does not start here: {e}")
        yield made


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Running, RunningGateway]]:
    with zoo_and_gateway() as made:
        yield made


@contextlib.contextmanager
def zoo_and_gateway(**keys: Any) -> Iterator[tuple[Running, RunningGateway]]:
    with tempfile.TemporaryDirectory(prefix="zoo-t-", dir="/tmp") as folder:
        if "tokens" in keys:
            file = Path(folder) / "tokens"
            file.write_text(keys["tokens"])
            file.chmod(0o600)
            keys["tokens"] = str(file)
        with both_alone(MODELS, {"vram_budget_gb": 50 / 1024}, **keys) as made:
            yield made


@pytest.fixture
def zoo(pair: tuple[Running, RunningGateway]) -> Client:
    client = pair[0].client()
    for model in ("first", "second"):
        client.unpin(model)
    return client


@pytest.fixture
def open_page(browser: Browser, pair: tuple[Running, RunningGateway]) -> Iterator[Open]:
    """`open_page(gateway, **context)`. Nothing may come from elsewhere, nor be refused by the policy."""
    contexts, asked, said = [], [], []
    addresses = [pair[1].address]

    def open_(gateway: RunningGateway = pair[1], **how: Any) -> Page:
        addresses.append(gateway.address)
        contexts.append(browser.new_context(**{"viewport": {"width": 1440, "height": 900}, **how}))
        page = contexts[-1].new_page()
        page.set_default_timeout(60_000)
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.goto(f"http://{gateway.address}/")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert all(url.startswith(("data:", "blob:", *(f"http://{address}/" for address in addresses))) for url in asked)
    assert not [text for text in said if "error:" in text or "Content Security Policy" in text]


def row(page: Page, name: str) -> Any:
    return page.locator(f"tr.row[data-model={name}]")


def cell(page: Page, name: str, kind: str) -> Any:
    return row(page, name).locator(f".c-{kind}")


def names(client: Client) -> set[str]:
    return {one["name"] for one in client.get_status()["loaded_models"]}


# ---------------------------------------------------------------- looking


def test_what_it_shows_is_what_status_says(open_page: Open, zoo: Client) -> None:
    page = open_page()
    zoo.unload("second")
    zoo.get_model("first")
    zoo.pin("first")
    for _ in range(5):
        zoo.infer("other", np.zeros((2, 2, 3), np.uint8))
    with zoo.load("other"):
        expect(cell(page, "first", "state")).to_have_text("loaded")
        expect(cell(page, "first", "name")).to_contain_text("pinned")
        expect(cell(page, "other", "leases")).to_have_text("1")
        expect(cell(page, "second", "state")).to_have_text("unloaded")
        times = zoo.overview()["times"]["other"]
        expect(cell(page, "other", "p50")).to_have_text(f"{times['p50'] * 1000:.1f}")
        status = zoo.get_status()
        for model in status["loaded_models"]:
            expect(cell(page, model["name"], "mb")).to_have_text(f"{model['vram_mb']:.0f}")
            expect(cell(page, model["name"], "priority")).to_have_text(model["priority"].lower())
            piece = page.locator(f".piece.model[data-model={model['name']}]")
            expect(piece).to_have_attribute("data-mb", f"{model['vram_mb']:.0f}")
        used, budget = status["vram_used_mb"], status["vram_budget_mb"]
        expect(page.locator(".device .figure")).to_have_text(
            f"{used:.0f} of {budget:.0f} MB charged, {100 * used / budget:.0f} %"
        )
        loaded = f"{len(status['loaded_models'])} / {len(status['registered_models'])}"
        expect(page.locator("[data-total=loaded] dd")).to_have_text(loaded)
        expect(page.locator("[data-total=leases] dd")).to_have_text("1")
        expect(page.locator(".line")).to_contain_text("budget")
    zoo.unpin("first")
    zoo.get_model("second")
    expect(cell(page, "first", "why")).to_contain_text("second needs 30 MB")
    expect(page.locator(".decisions li[data-kind=evicted]").first).to_contain_text("second needs 30 MB")
    expect(page.locator(".lane[data-model=first] .span[data-end=evicted]").first).to_be_visible()


def test_who_waits_is_shown_with_the_reason(open_page: Open, zoo: Client, pair: Any) -> None:
    page = open_page()
    zoo.get_model("first")
    zoo.pin("first")
    expect(page.locator("#waiting")).to_contain_text("No request waits")
    thread = threading.Thread(target=zoo.get_model, args=("second",))
    thread.start()
    expect(page.locator("#waiting li[data-model=second]")).to_contain_text("first 30 MB (HIGH, pinned)")
    expect(cell(page, "second", "state")).to_have_text("waiting")
    zoo.unpin("first")
    thread.join()
    expect(page.locator("#waiting")).to_contain_text("No request waits")


# ---------------------------------------------------------------- doing


def test_its_buttons_load_unload_and_pin(open_page: Open, zoo: Client) -> None:
    page = open_page()
    zoo.get_model("first")
    expect(cell(page, "second", "state")).to_have_text("unloaded")
    row(page, "second").get_by_role("button", name="Load").click()
    expect(page.locator("#said")).to_have_text("second is loaded")
    assert "second" in names(zoo)
    row(page, "second").get_by_role("button", name="Pin").click()
    expect(cell(page, "second", "name")).to_contain_text("pinned")
    assert [one["pinned"] for one in zoo.models("second")] == [True]
    row(page, "second").get_by_role("button", name="Unload").click()
    page.get_by_role("button", name="Unload", exact=True).click()  # of the question
    expect(page.locator("#said")).to_contain_text("unload second: second is in use (pinned)")
    row(page, "second").get_by_role("button", name="Unpin").click()
    expect(page.locator("#said")).to_have_text("second is unpinned")
    row(page, "second").get_by_role("button", name="Unload").click()
    page.get_by_role("button", name="Cancel").click()
    assert "second" in names(zoo)
    row(page, "second").get_by_role("button", name="Unload").click()
    page.get_by_role("button", name="Unload", exact=True).click()
    expect(page.locator("#said")).to_have_text("second is unloaded")
    assert "second" not in names(zoo)


def test_everything_can_be_done_by_keys(open_page: Open, zoo: Client) -> None:
    zoo.unload("second")
    page = open_page()
    expect(row(page, "first")).to_have_attribute("tabindex", "0")
    while not page.evaluate("document.activeElement.classList.contains('row')"):
        page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")
    expect(row(page, "second")).to_be_focused()
    page.keyboard.press("l")
    expect(cell(page, "second", "state")).to_have_text("loaded")
    page.keyboard.press("p")
    expect(cell(page, "second", "name")).to_contain_text("pinned")
    page.keyboard.press("p")
    expect(cell(page, "second", "name")).not_to_contain_text("pinned")
    page.keyboard.press("Enter")
    expect(page.locator("tr.more:visible")).to_contain_text("loaded in")
    page.keyboard.press("Escape")
    expect(page.locator("tr.more:visible")).to_have_count(0)
    page.keyboard.press("u")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # on Unload: Cancel has the focus first
    expect(cell(page, "second", "state")).to_have_text("unloaded")
    page.keyboard.press("?")
    expect(page.locator("#help")).to_be_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("d")
    page.keyboard.press("d")
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(15, 17, 19)"


def test_a_picture_is_tried_and_what_models_say_is_text(open_page: Open, zoo: Client) -> None:
    page = open_page()
    page.locator("#try-model").select_option("labelled")
    page.locator("#picture").set_input_files({"name": f"{EVIL[:40]}.jpg", "mimeType": "image/jpeg", "buffer": PICTURE})
    expect(page.locator("#answer li").first).to_contain_text(EVIL)
    expect(page.locator("#answer img")).to_have_js_property("naturalWidth", 60)
    page.locator("#try-model").select_option("evil")
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("#answer .failed")).to_contain_text("weights are made of <b>cheese</b>")
    expect(cell(page, "evil", "why")).to_contain_text("<b>cheese</b>")
    assert page.evaluate("window.pressed") is None
    assert page.locator("main script, main img[src=x], main b").count() == 0


# ---------------------------------------------------------------- what may happen to it


def test_it_says_that_the_broker_is_gone_and_goes_on_when_one_is_back(
    open_page: Open, broker: Any, gateway_of: Any
) -> None:
    running = broker()
    gateway = gateway_of(running)
    page = open_page(gateway)
    running.client().get_model("toy")
    expect(cell(page, "toy", "state")).to_have_text("loaded")
    running.kill()
    expect(page.locator("#trouble")).to_contain_text("The broker does not answer")
    expect(page.locator("#link")).to_have_text("no broker")
    expect(cell(page, "toy", "state")).to_have_text("loaded")  # what was seen last
    running.start()
    expect(page.locator("#trouble")).to_be_hidden()
    expect(cell(page, "toy", "state")).to_have_text("unloaded")
    expect(page.locator(".decisions")).to_contain_text("another broker answers")
    gateway.stop()
    expect(page.locator("#link")).to_have_text("not connected")


def test_without_a_token_it_asks_for_one_and_keeps_it_in_the_tab(open_page: Open) -> None:
    with zoo_and_gateway(tokens=TOKENS) as (_, gateway):
        page = open_page(gateway)
        expect(page.locator("#enter")).to_be_visible()
        assert page.locator("tr.row").count() == 0
        page.locator("#token").fill("wrong-0123456789")
        page.keyboard.press("Enter")
        expect(page.locator("#enter-why")).to_contain_text("does not know this token")
        page.locator("#token").fill("viewer-0123456789")
        page.keyboard.press("Enter")
        expect(page.locator("#you")).to_have_text("eye, viewer")
        expect(cell(page, "first", "state")).to_have_text("unloaded")
        expect(row(page, "first").get_by_role("button")).to_have_count(0)
        expect(page.locator("#picture")).to_be_disabled()
        row(page, "first").focus()
        page.keyboard.press("l")
        expect(page.locator("#said")).to_contain_text("for operators")
        kept = page.evaluate("[location.search + location.hash, localStorage.getItem('zoo-token'), document.cookie]")
        assert kept == ["", None, ""]
        page.reload()
        expect(page.locator("#you")).to_have_text("eye, viewer")
        page.locator("#you").click()
        page.locator("#token").fill("operator-0123456789")
        page.keyboard.press("Enter")
        expect(page.locator("#you")).to_have_text("me, operator")
        expect(row(page, "first").get_by_role("button", name="Load")).to_be_visible()
        page.locator("#you").click()
        page.get_by_role("button", name="Cancel").click()
        expect(page.locator("#you")).to_have_text("me, operator")
        page.locator("#you").click()
        page.get_by_role("button", name="Forget the token").click()
        expect(page.locator("#enter-why")).to_contain_text("file of tokens")
        page.keyboard.press("Escape")
        expect(page.locator("#enter")).to_be_visible()  # there is no way round it
        page.close()


@pytest.mark.parametrize("width", [360, 834])
def test_nothing_has_to_be_scrolled_sideways(open_page: Open, zoo: Client, width: int) -> None:
    zoo.get_model("first")
    page = open_page(viewport={"width": width, "height": 740}, has_touch=True)
    expect(cell(page, "first", "state")).to_have_text("loaded")
    row(page, "first").tap()
    expect(page.locator("tr.more:visible")).to_contain_text("loaded in")
    expect(row(page, "first").get_by_role("button", name="Pin")).to_be_visible()
    page.locator("#try-model").select_option("labelled")
    page.locator("#picture").set_input_files({"name": "x" * 80, "mimeType": "image/jpeg", "buffer": PICTURE})
    expect(page.locator("#answer img")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide = page.evaluate(
        "[...document.querySelectorAll('main *')].filter(one => one.getBoundingClientRect().right > innerWidth + 1)"
        ".map(one => one.outerHTML.slice(0, 120))"
    )
    assert wide == []


@pytest.mark.timeout(900)
def test_a_day_of_cameras_leaves_the_page_small(browser: Browser) -> None:
    figures = day.shown(browser, every_s=20.0)
    assert figures["looks"] == 24 * 3600 / 20
    assert figures["heap"] < 50
    assert figures["elements"] < 5000
