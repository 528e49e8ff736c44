"""What every test of concurrency does."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def garbage() -> Iterator[None]:
    """Collect what the test leaves behind while it is still the one to blame for a warning."""
    yield
    gc.collect()
