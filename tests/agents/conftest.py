"""What every test of agents does."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator

import pytest

# By then the event loop of the app is closed, and the transport of the process says so.
_TRANSPORT = "Exception ignored in. <function BaseSubprocessTransport.__del__"


@pytest.fixture(autouse=True)
def garbage() -> Iterator[None]:
    """Collect what is left of MCP servers on stdio, or a later test would be blamed.

    When an app is stopped in the middle of a run, pydantic-ai's session with such a server is closed by the garbage
    collector, which warns of the pipes and of the process.
    """
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the collector come by during a test as well."""
    for item in items:
        if "agents" in item.path.parts:
            item.add_marker(pytest.mark.filterwarnings("ignore::ResourceWarning"))
            item.add_marker(pytest.mark.filterwarnings(f"ignore:{_TRANSPORT}:pytest.PytestUnraisableExceptionWarning"))
