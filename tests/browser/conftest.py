"""Chromium, and a page that no network reaches."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator["Browser"]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: "Browser") -> Iterator["Page"]:
    """A page that may read files alone, and reports no error."""
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    wanted: list[str] = []
    page.on("request", lambda sent: wanted.append(sent.url))
    page.route(lambda url: not url.startswith("file:"), lambda route: route.abort())
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
    yield page
    page.close()
    assert all(url.startswith(("file:", "data:", "blob:")) for url in wanted)
    assert not errors
