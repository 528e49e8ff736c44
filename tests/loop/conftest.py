"""Fixtures of the tests of the handler loop."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture
def log() -> list[Any]:
    """A list of events, in the order in which they happened."""
    return []


@pytest.fixture(autouse=True, scope="module")
def garbage() -> Iterator[None]:
    """Collect garbage while these tests are still the ones to blame for a warning."""
    yield
    gc.collect()
