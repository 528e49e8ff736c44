"""Real servers for the tests: one as users run it, and one that makes every handler go on by replay."""

from __future__ import annotations

import gc
import importlib
import os
import secrets
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

import restate_steps
from restate_steps.server import RestateServer
from tests.support.harness import Env, Harness, Serve

pytest_plugins = ["tests.support.explored_total"]


def pytest_configure() -> None:
    """Let programs that tests start be interrupted: in the background SIGINT is ignored, and they inherit that."""
    os.environ.setdefault("PROGRAMS_SEED", str(secrets.randbelow(10**9)))
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Leave out what was imported from every later collection of garbage; it is most of the objects, and stays."""
    # It warns of objects that nothing seems to refer to, and those that do are hidden afterwards.
    importlib.import_module("hypothesis")
    gc.collect()
    gc.freeze()


def pytest_report_header() -> str:
    """Show the seed of the random programs in ``conformance``, which can be set to draw them again."""
    return f"PROGRAMS_SEED={os.environ['PROGRAMS_SEED']}"


@pytest.fixture(scope="session")
def normal_harness() -> Iterator[Harness]:
    """A server that keeps a handler running while it waits."""
    with Harness() as harness:
        yield harness


@pytest.fixture(scope="session")
def replay_harness() -> Iterator[Harness]:
    """A server that suspends a handler at every wait."""
    with Harness(always_replay=True) as harness:
        yield harness


@pytest.fixture(scope="session")
def normal_server(normal_harness: Harness) -> RestateServer:
    """The running server of :func:`normal_harness`."""
    return normal_harness.server


@pytest.fixture(scope="session")
def replay_server(replay_harness: Harness) -> RestateServer:
    """The running server of :func:`replay_harness`."""
    return replay_harness.server


@pytest.fixture(params=["normal", "always-replay"])
def harness(request: pytest.FixtureRequest) -> Harness:
    """Each of the two servers in turn."""
    name = {"normal": "normal_harness", "always-replay": "replay_harness"}[request.param]
    found = request.getfixturevalue(name)
    assert isinstance(found, Harness)
    return found


@pytest.fixture
def env_factory(harness: Harness) -> Iterator[Serve]:
    """A callable that serves services and returns an :class:`Env`, in both modes; all ends with the test."""
    with ExitStack() as stack:
        yield _factory(harness, stack)


@pytest.fixture
def collected() -> Iterator[None]:
    """Collect garbage at the end of the test only, and without a warning of what it leaves open."""
    gc.disable()
    try:
        yield
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()
    finally:
        gc.enable()


def _factory(harness: Harness, stack: ExitStack) -> Callable[..., Env]:
    def serve(*services: Any, http1: bool = False, app: Any = restate_steps.app) -> Env:
        return stack.enter_context(harness.serve(app(services), http1=http1))

    return serve
