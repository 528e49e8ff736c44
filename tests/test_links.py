"""Links between the documents lead somewhere; those to other sites are well formed (tests have no network)."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from tests.support import ROOT

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


def _tokens(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text())


def _text(token: Token) -> str:
    """What a reader sees of an inline token."""
    return "".join(child.content for child in token.children or () if child.type in ("text", "code_inline"))


def anchors(page: Path) -> set[str]:
    """The fragments that a link to the page may end with: those of its headings, and the explicit ones."""
    found: set[str] = set()
    counts: dict[str, int] = {}
    tokens = _tokens(page)
    for before, token in itertools.pairwise(tokens):
        if before.type == "heading_open":
            # The rule of both GitHub and MyST.
            slug = re.sub(r"[^\w\- ]", "", _text(token).strip().lower()).replace(" ", "-")
            found.add(f"{slug}-{counts[slug]}" if slug in counts else slug)
            counts[slug] = counts.get(slug, 0) + 1
    text = page.read_text()
    found.update(re.findall(r"^\(([\w-]+)\)=$", text, re.MULTILINE))
    found.update(re.findall(r"""<a (?:id|name)=["']([^"']+)["']""", text))
    return found


def links(page: Path) -> list[tuple[int, str]]:
    """The targets of a page's links and images, each with the line of its paragraph."""
    found: list[tuple[int, str]] = []
    for token in _tokens(page):
        line = token.map[0] + 1 if token.map else 0
        for child in token.children or ():
            target = child.attrs.get("href", child.attrs.get("src"))
            if target is not None:
                found.append((line, str(target)))
    return found


def problem(page: Path, target: str) -> str | None:
    """Say what is wrong with a link, if anything is."""
    url = urlsplit(target)
    if url.scheme or url.netloc:
        if url.scheme == "mailto":
            return None if "@" in url.path else "no address"
        if url.scheme not in ("http", "https") or not url.hostname or re.search(r"\s|%20", target):
            return "not a well-formed address"
        local = url.hostname in ("localhost", "127.0.0.1")
        return None if local or (url.scheme == "https" and "." in url.hostname) else "not an https address"
    if url.path.startswith("/"):
        return "an absolute path leads elsewhere on every host"
    path = (page.parent / unquote(url.path)).resolve() if url.path else page
    if not path.exists():
        return "no such file"
    if url.fragment and path.suffix == ".md":
        return None if unquote(url.fragment) in anchors(path) else "no such heading"
    if url.fragment:
        line = re.fullmatch(r"L(\d+)(-L\d+)?", url.fragment)
        return None if line and int(line[1]) <= len(path.read_text().splitlines()) else "no such line"
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every link of the page has a target."""
    found = [(line, target, problem(page, target)) for line, target in links(page)]

    assert [] == [f"{page.name}:{line}: {target}: {reason}" for line, target, reason in found if reason]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_references_are_defined(page: Path) -> None:
    """`[text][label]` with an unknown label would stay as it is, brackets and all."""
    left = [_text(token) for token in _tokens(page) if token.type == "inline"]

    assert [] == [text for text in left if re.search(r"\]\[[\w .-]*\]", re.sub(r"`[^`]*`", "", text))]


class TestChecker:
    """The checker finds what it should."""

    @pytest.fixture
    def page(self, tmp_path: Path) -> Path:
        (tmp_path / "other.md").write_text("# A `name`, and more!\n\n## Twice\n\n## Twice\n\n(label)=\n")
        (tmp_path / "code.py").write_text("1\n2\n")
        (tmp_path / "a b.txt").write_text("")
        return tmp_path / "page.md"

    @pytest.mark.parametrize(
        "target",
        [
            "other.md",
            "other.md#a-name-and-more",
            "other.md#twice",
            "other.md#twice-1",
            "other.md#label",
            "#here-we-are",
            "a%20b.txt",
            "code.py#L2",
            "https://restate.dev/a?b=c#d",
            "http://localhost:9070",
            "mailto:someone@example.org",
        ],
    )
    def test_right(self, page: Path, target: str) -> None:
        """Files, headings, explicit anchors, lines of code and well-formed addresses pass."""
        page.write_text(f"# Here we are\n\n[text]({target})\n")

        assert [None] == [problem(page, found) for _, found in links(page)]

    @pytest.mark.parametrize(
        ("target", "reason"),
        [
            ("missing.md", "no such file"),
            ("other.md#twice-2", "no such heading"),
            ("#nowhere", "no such heading"),
            ("code.py#L3", "no such line"),
            ("code.py#name", "no such line"),
            ("/other.md", "an absolute path leads elsewhere on every host"),
            ("http://restate.dev", "not an https address"),
            ("https:/restate.dev", "not a well-formed address"),
            ("htps://restate.dev", "not a well-formed address"),
            ("https://restate.dev/a%20b", "not a well-formed address"),
            ("mailto:someone", "no address"),
        ],
    )
    def test_wrong(self, page: Path, target: str, reason: str) -> None:
        """Everything else is reported, with a reason."""
        page.write_text(f"# Here\n\n![text]({target})\n\n[text][label]\n\n[label]: {target}\n")

        assert [(3, target, reason), (5, target, reason)] == [
            (line, found, problem(page, found)) for line, found in links(page)
        ]
