"""The words of this project: docstrings, comments, messages and pages use those that Python developers know.

Each pattern has the better word. The list has what reads as if translated and is easily written again; a new use of
one of them fails with its place.
"""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support import ROOT

PATTERNS: Final[dict[str, str]] = {
    r"(?<![Tt]here )\b(is|are|was|were) no (?!longer|more\b|less\b|different|other|one\b|such)[a-z]+": "is not a …",
    r"\b[Mm]end(s|ed|ing)?\b": "fix",
    r"\banew\b": "again, from scratch",
    r"\b(for ever)\b": "forever",
    r"\b[Nn]obody\b": "no caller, nothing",
    r"\bof one's own\b": "its own",
    r"\bso far as\b": "as far as",
    r"\b[Gg]oes on\b|\bgo on\b|\bwent on\b": "continues",
    r"\bunder way\b": "in flight, in progress",
    r"\bcomes? to rest\b": "stops",
    r"\bgo(es)? wrong\b|\bwent wrong\b|\bgoing wrong\b": "fails",
    r"\b(is|are|was|were) (told|asked|looked at) (?!to\b)": "say who acts",
    r"\bsuch that\b": "so that",
    r"\bas (they are|what they are|it is|it comes)\b": "unchanged",
    r"\bhas to do with\b": "concerns",
    r"\bplugin of pytest\b": "pytest plugin",
    r"\bagents of pydantic-ai\b": "pydantic-ai agents",
    r"\bhandler of events\b": "event handler",
}

HEADLESS: Final = re.compile(r"^(What|Whether|Who|Whoever|Whose|Those|Where|Whatever|How) ")
"""Docstrings open with a verb or a noun phrase, as PEP 257 asks for."""

SOURCES: Final = [*sorted((ROOT / "restate_steps").rglob("*.py")), *sorted((ROOT / "examples").rglob("*.py"))]
PAGES: Final = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def _texts(path: Path) -> Iterator[tuple[int, str, bool]]:
    """Yield the comments and strings of a module: the line, the text, and whether it is a docstring."""
    before = tokenize.INDENT
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string, False
        elif tokenize.tok_name[token.type] in ("STRING", "FSTRING_MIDDLE"):
            is_docstring = before in (tokenize.INDENT, tokenize.NEWLINE, tokenize.ENCODING)
            yield token.start[0], token.string, is_docstring
        if token.type not in (tokenize.NL, tokenize.COMMENT):
            before = token.type


def _faults(path: Path) -> list[str]:
    found: list[str] = []
    if path.suffix == ".md":
        texts = [(number, line, False) for number, line in enumerate(path.read_text().splitlines(), 1)]
    else:
        texts = list(_texts(path))
    for start, text, is_docstring in texts:
        for pattern, better in PATTERNS.items():
            for match in re.finditer(pattern, text):
                line = start + text.count("\n", 0, match.start())
                found.append(f"{path.relative_to(ROOT)}:{line}: {match.group()!r}: {better}")
        if is_docstring and HEADLESS.match(opening := text.lstrip("rbfRBF").strip("\"'").lstrip()):
            found.append(
                f"{path.relative_to(ROOT)}:{start}: {opening.split()[0]!r} opens a docstring: a verb or a noun"
            )
    return found


@pytest.mark.parametrize("path", [*SOURCES, *PAGES], ids=lambda path: str(path.relative_to(ROOT)))
def test_the_words(path: Path) -> None:
    assert [] == _faults(path)
