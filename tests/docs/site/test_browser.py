"""The built site in headless Chromium, from the disk: no errors, no requests elsewhere, a phone's width, both palettes, search.

Chromium is that of ``$LNB_CHROMIUM``, of the system, or playwright's own; without one these tests are skipped.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

SITE = Path(os.environ.get("LNB_SITE", "")).resolve()
PAGES = sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html")) if "LNB_SITE" in os.environ else []
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")

pytestmark = pytest.mark.skipif("LNB_SITE" not in os.environ, reason="no site was built: make docs-test")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = os.environ.get("LNB_CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    with playwright.sync_playwright() as started:
        if found is None and not Path(started.chromium.executable_path).exists():
            pytest.skip(
                "no Chromium: install the system's (chromium-headless-shell), or run `playwright install chromium`"
            )
        running = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield running
        running.close()


class Visit:
    """A page that notes what goes wrong."""

    def __init__(self, browser: Any, viewport: dict[str, int], scheme: str) -> None:
        self.context = browser.new_context(viewport=viewport, color_scheme=scheme)
        self.page = self.context.new_page()
        self.wrong: list[str] = []
        self.page.on("console", lambda message: message.type == "error" and self.wrong.append(message.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("requestfailed", lambda request: self.wrong.append(f"failed: {request.url}"))
        self.page.on("request", self._noted)

    def _noted(self, request: Any) -> None:
        if not request.url.startswith(("file:", "data:", "blob:", "about:")):
            self.wrong.append(f"elsewhere: {request.url}")

    def open(self, name: str) -> Any:
        self.page.goto((SITE / name).as_uri(), wait_until="load")
        return self.page


def test_every_page_on_a_phone(browser: Any) -> None:
    """No page is wider than the screen: tables and code scroll by themselves."""
    visit = Visit(browser, PHONE, "light")
    wide = {}
    for name in PAGES:
        if name == "404.html":
            continue
        width = visit.open(name).evaluate("document.documentElement.scrollWidth")
        if width > PHONE["width"]:
            wide[name] = width
        assert not visit.wrong, name
        empty = "[...document.images].filter(i => i.getClientRects().length && !i.naturalWidth).map(i => i.src)"
        assert visit.page.evaluate(empty) == [], name
    visit.context.close()
    assert not wide


CONTRAST = """() => {
  const parse = (c) => (c.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * (top[3] ?? 1) + below[i] * (1 - (top[3] ?? 1)));
  const light = (c) => {
    const [r, g, b] = c.slice(0, 3).map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const least = {};
  for (const at of ["p", "td", "h1", "h2", "a:not(.headerlink, .md-content__button)", "code"]) {
    for (const element of document.querySelectorAll(`.md-content ${at}`)) {
      let ground = [255, 255, 255], chain = [];
      for (let e = element; e; e = e.parentElement) chain.unshift(parse(getComputedStyle(e).backgroundColor));
      for (const c of chain) ground = over(c, ground);
      const ink = over(parse(getComputedStyle(element).color), ground);
      const [a, b] = [light(ink), light(ground)].sort((x, y) => y - x);
      least[at] = Math.min(least[at] ?? 99, (a + 0.05) / (b + 0.05));
    }
  }
  return least;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_palettes(browser: Any, scheme: str) -> None:
    """The palette of the system is taken, text can be read on it, and of each picture one form is shown."""
    visit = Visit(browser, DESK, scheme)
    for name in ("index.html", "gallery.html", "how-it-works.html", "presets.html", "reference/lnb.html"):
        page = visit.open(name)
        page.wait_for_timeout(300)  # colours fade
        shown = page.evaluate("document.body.getAttribute('data-md-color-scheme')")
        assert shown == {"light": "default", "dark": "slate"}[scheme]
        contrast = page.evaluate(CONTRAST)
        assert min(contrast[kind] for kind in contrast if kind in ("p", "td")) >= 7, (name, contrast)
        assert min(contrast.values()) >= 3, (name, contrast)
    page = visit.open("how-it-works.html")
    pictures = page.evaluate("[...document.images].filter(i => i.getClientRects().length).map(i => i.src)")
    assert len(pictures) == 3
    assert all(("-dark.svg" in source) == (scheme == "dark") for source in pictures)
    assert not visit.wrong
    visit.context.close()


@pytest.mark.parametrize("words", ["weight decay", "graphed_step"])
def test_search(browser: Any, words: str) -> None:
    """Typing finds pages, and the first result leads to one that has the words."""
    visit = Visit(browser, DESK, "light")
    page = visit.open("recipes/ddp.html")
    page.click("input.md-search__input")
    page.keyboard.type(words)
    page.wait_for_selector(".md-search-result__item a", timeout=20_000)
    page.click(".md-search-result__item a")
    page.wait_for_load_state("load")
    assert "/recipes/ddp.html" not in page.url
    assert words.split()[0] in page.inner_text("article").lower()
    assert not visit.wrong
    visit.context.close()
