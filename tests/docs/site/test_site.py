"""The built site: links and anchors resolve, nothing is fetched from a network, and every page can be found and read.

``make docs-test`` builds it and names its folder in ``LNB_SITE``.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

SITE = Path(os.environ.get("LNB_SITE", "")).resolve()
DOCS = Path(__file__).resolve().parents[3] / "docs"

pytestmark = pytest.mark.skipif("LNB_SITE" not in os.environ, reason="no site was built: make docs-test")


@dataclass
class Page(HTMLParser):
    """What a page has: anchors, links, what it loads, pictures without a text, its words."""

    path: Path
    anchors: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    metas: dict[str, str] = field(default_factory=dict)
    silent: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    language: str = ""
    article: int = 0

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag == "link" and "href" in values:
            self.loads.append(values["href"])
        elif "src" in values:
            self.loads.append(values["src"])
        if tag == "img" and not values.get("alt"):
            self.silent.append(values.get("src", ""))
        if tag == "meta" and "name" in values:
            self.metas[values["name"]] = values.get("content", "")
        if tag == "html":
            self.language = values.get("lang", "")
        self.article += tag == "article"

    def handle_endtag(self, tag: str) -> None:
        self.article -= tag == "article"

    def handle_data(self, data: str) -> None:
        if self.article:
            self.words.append(data)


@cache
def pages() -> dict[Path, Page]:
    return {path: Page(path) for path in sorted(SITE.rglob("*.html"))}


def test_every_document_became_a_page() -> None:
    sources = {path.relative_to(DOCS).with_suffix(".html") for path in DOCS.rglob("*.md")}
    assert {path.relative_to(SITE) for path in pages()} == {*sources, Path("404.html")}


def test_internal_links_and_anchors_resolve() -> None:
    broken = []
    for path, page in pages().items():
        if path.name == "404.html":
            continue  # its links are made for the root of a server
        for link in [*page.links, *page.loads]:
            parts = urlsplit(link)
            if parts.scheme or link.startswith("//"):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                broken.append((path.name, link))
            elif parts.fragment and target in pages() and parts.fragment != "__codelineno":
                anchor = unquote(parts.fragment)
                if anchor not in pages()[target].anchors and anchor not in ("only-light", "only-dark"):
                    broken.append((path.name, link))
    assert not broken


def test_nothing_comes_from_a_network() -> None:
    outside = re.compile(r"(?:https?:)?//")
    for path, page in pages().items():
        assert not [load for load in page.loads if outside.match(load)], path
    for sheet in SITE.rglob("*.css"):
        assert not re.search(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", sheet.read_text()), sheet


def test_pages_are_made_for_small_screens_and_readers_of_screens() -> None:
    for path, page in pages().items():
        assert "width=device-width" in page.metas.get("viewport", ""), path
        assert page.language == "en", path
        assert not page.silent, path


def test_docstrings_are_rendered() -> None:
    """No role or reference of a docstring is left as it was written."""
    for path, page in pages().items():
        text = "".join(page.words)
        found = re.search(r":(?:class|func|meth|mod|data|attr):|\]\[lnb", text)
        assert found is None, (path, text[max(0, found.start() - 60) : found.end() + 60] if found else "")


def test_every_page_can_be_found() -> None:
    index = json.loads((SITE / "search" / "search_index.json").read_text())
    found = {entry["location"].partition("#")[0] for entry in index["docs"]}
    listed = {path.relative_to(SITE).as_posix() for path in pages()} - {"404.html"}
    assert listed <= {location or "index.html" for location in found}
    assert (SITE / "search" / "search_index.js").is_file()  # for pages that are read from the disk


def test_both_palettes_are_offered() -> None:
    text = (SITE / "index.html").read_text()
    for wanted in ('data-md-color-scheme="default"', 'data-md-color-scheme="slate"', "prefers-color-scheme: dark"):
        assert wanted in text
