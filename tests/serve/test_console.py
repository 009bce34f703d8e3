"""The console in real Chromium, wide and as on a telephone, with documents that try to be scripts."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from served import Served

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
EVIL = (
    '<img src=x onerror="window.owned=1"><script>window.owned=1</script>'
    "<a href='javascript:window.owned=1'>The pier is green</a> & <b>bold</b>"
)


@pytest.fixture(scope="module")
def console(fresh: Callable[..., Served]) -> Served:
    served = fresh()
    operator = served.http("operator")
    documents = [{"id": "<b>evil</b>", "subject": "<i>evil</i>", "text": EVIL, "license": "none"}]
    assert operator.post("/v1/documents", json={"documents": documents}).status_code == 201
    return served


@pytest.fixture(params=[(1280, 900), (390, 844)], ids=["wide", "telephone"])
def page(request: pytest.FixtureRequest, console: Served) -> Iterator[playwright.Page]:
    with playwright.sync_playwright() as tool:
        browser = tool.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--no-proxy-server"]
        )
        width, height = request.param
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(30_000)
        wrong: list[str] = []
        page.on(
            "console",
            lambda message: wrong.append(message.text) if message.type == "error" else None,
        )
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(console.url)
        page.fill("#key", console.key("operator", "staff"))
        page.keyboard.press("Enter")
        yield page
        assert page.evaluate("window.owned") is None
        beyond = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        assert beyond <= 0, f"{beyond} pixels wider than the window"
        assert wrong == []
        browser.close()


def _shot(page: playwright.Page, name: str) -> None:
    """Keep a picture to look at, where SCREENSHOTS says so."""
    folder = os.environ.get("SCREENSHOTS")
    if folder:
        width = page.viewport_size["width"]
        page.screenshot(path=Path(folder) / f"{name}-{width}.png", full_page=True)


def test_chat_shows_its_passages_as_text(page: playwright.Page) -> None:
    page.fill("#question", EVIL)
    page.press("#question", "Tab")  # by keyboard alone
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector("#turns details")
    assert EVIL in page.inner_text("#turns li >> nth=0")
    page.click("#turns summary >> nth=0")
    assert "</script>" in page.inner_text("#turns details >> nth=0")
    _shot(page, "chat")


def test_documents_and_shards(page: playwright.Page) -> None:
    page.click("nav a >> text=Documents")
    page.wait_for_selector("#rows tr")
    page.click("#rows button >> text=<b>evil</b>")
    page.wait_for_selector("#text >> text=<script>")  # the policy forbids what evaluates words
    assert page.evaluate("document.activeElement.id") == "text"
    _shot(page, "documents")
    page.click("nav a >> text=Shards")
    page.wait_for_selector("#drawn .slice")
    assert page.get_attribute("nav a >> text=Shards", "aria-current") == "page"
    _shot(page, "shards")


def test_a_takedown_from_pasted_text_to_its_receipt(page: playwright.Page, console: Served) -> None:
    subject = f"note-{time.monotonic_ns()}"
    # other words on the second page: tombstones refuse what is like the first one's
    wide = page.viewport_size["width"] > 1000
    text = (
        f"The note {subject} says that the harbour light was out for nine nights in the winter."
        if wide
        else f"Nobody who read {subject} knew why her brother painted every harbour light he passed."
    )
    documents = [
        {"id": subject, "subject": subject, "text": text, "license": "none"},
        {"id": f"{subject}-copy", "subject": "other", "text": text + " Indeed.", "license": "none"},
    ]
    operator = console.http("operator")
    while operator.get("/v1/status").json()["running"]:  # what another page began
        time.sleep(0.1)
    operator.post("/v1/documents", json={"documents": documents}).raise_for_status()
    page.click("nav a >> text=Takedown")
    page.fill("#passage", text)
    page.click("#demand button")
    page.wait_for_selector("#plan .pair")
    assert "harbour light" in page.inner_text("#plan .pair >> nth=0")
    assert f"{subject}-copy" in page.inner_text("#plan")
    _shot(page, "plan")
    page.click("#moves button >> text=Approve")
    page.click(
        "#moves button >> text=" + ("Destroy for good" if wide else "Probe, destroy, probe again")
    )
    page.wait_for_selector("#receipt:not([hidden])", timeout=120_000)
    assert page.locator("#states li.reached").count() == 7
    assert text not in page.inner_text("#receipt")
    assert '"outcome": "removed"' in page.inner_text("#receipt")
    assert "not probed" in page.inner_text("#probes")  # it was in the store alone
    _shot(page, "receipt")


def test_every_field_has_a_name(page: playwright.Page) -> None:
    """What a screen reader says: a name for each control, one heading of the first rank, landmarks."""
    nameless = page.evaluate(
        "[...document.querySelectorAll('input, textarea, select, button')].filter(e =>"
        " !(e.labels && e.labels.length) && !e.textContent.trim() && !e.ariaLabel).length"
    )
    assert nameless == 0
    assert page.locator("h1").count() == page.locator("main").count() == 1
    assert page.evaluate("document.documentElement.lang") == "en"
