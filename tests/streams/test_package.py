"""The package of streams: what it imports, and what is public."""

from __future__ import annotations

import ast
import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from restate_steps import streams
from restate_steps.streams import _fold
from tests.test_packaging import EXTRAS


def test_it_needs_no_extra() -> None:
    """The core's dependencies are enough, and a plain step may stream without pydantic-ai."""
    hidden = f"sys.modules.update(dict.fromkeys({[*EXTRAS, 'starlette', 'sse_starlette', 'aiohttp', 'redis']}))"
    code = f"import sys; {hidden}; from restate_steps.streams import *; MemoryStore()"

    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_fold_is_pure() -> None:
    """F1: it can neither wait, nor read a clock, nor draw a random number."""
    tree = ast.parse(Path(str(_fold.__file__)).read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}

    ours = {f"restate_steps.streams._{name}" for name in ("envelope", "errors", "records")}
    assert {"__future__", "collections.abc", "math", "pydantic", *ours} == imported
    assert not any(isinstance(node, ast.AsyncFunctionDef | ast.Await) for node in ast.walk(tree))


def test_the_order_of_sets_does_not_matter() -> None:
    """F1: the fold asks only whether something is in a set."""
    tree = ast.parse(Path(str(_fold.__file__)).read_text())
    loops = [node.iter for node in ast.walk(tree) if isinstance(node, ast.For | ast.comprehension)]

    assert loops
    assert not any("begun" in ast.unparse(each) for each in loops)


@pytest.mark.parametrize("name", streams.__all__)
def test_a_public_name(name: str) -> None:
    """Each has a docstring, and classes show the path that users import them from."""
    value = getattr(streams, name)
    if isinstance(value, type):
        assert value.__doc__
        assert dataclasses.is_dataclass(value) or value.__module__ == "restate_steps.streams"


def test_all_is_sorted() -> None:
    assert sorted(streams.__all__) == list(streams.__all__)
