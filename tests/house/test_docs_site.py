"""The docs site, without building it: every page has its place, every public name its reference."""

import re
from collections import Counter
from pathlib import Path

import pact_lightning

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


def test_every_page_stands_in_the_navigation_once():
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    listed = Counter(re.findall(r"([\w/]+\.md)$", nav, re.MULTILINE))
    assert listed == Counter(page.relative_to(DOCS).as_posix() for page in PAGES)


def test_every_public_name_has_its_reference_once():
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    names = re.findall(r"^::: pact_lightning\.(\w+)$", text, re.MULTILINE)
    assert Counter(names) == Counter(pact_lightning.__all__)


def test_no_page_is_longer_than_four_hundred_lines():
    pages = [ROOT / "README.md", *PAGES]
    assert {page.name: n for page in pages if (n := len(page.read_text().splitlines())) > 400} == {}


def test_links_of_pages_stay_among_the_pages():
    """A link out of `docs/` leads nowhere on the site."""
    found = [(page, link) for page in PAGES for link in re.findall(r"\]\((\.\.[^)#]*)", page.read_text())]
    assert [link for page, link in found if not (page.parent / link).resolve().is_relative_to(DOCS)] == []
