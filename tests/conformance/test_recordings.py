"""The recordings: that they parse, that there is one for every scenario, and that the server still does the same."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from restate_steps._protocol import wire as _wire
from tests.conformance.drive import SCENARIOS, VARIANTS
from tests.conformance.record import recorder
from tests.conformance.recording import load, names

RECORDED = [(name, variant) for variant in VARIANTS for name in names(variant)]

# Together they have a step, a retry, a suspension on several things, a cancellation, state, and a call.
AGAIN = (
    "step_retried_by_policy",
    "awakeables_gathered",
    "cancel_in_call",
    "lazy_state_over_a_wait",
    "promise_resolved",
)


@pytest.fixture
def quiet() -> Iterator[None]:
    """The handlers fail on purpose, and the SDK logs each failure."""
    logger = logging.getLogger("restate")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


def messages(recording: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for invocation in recording["invocations"]:
        for events in invocation["attempts"]:
            for event in events:
                yield from event.items()


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_scenario_is_recorded(variant: str) -> None:
    """There is a recording of each scenario in each variant it has, and no other."""
    assert sorted(one.name for one in SCENARIOS.values() if variant in one.variants()) == names(variant)


def test_recordings_can_be_read() -> None:
    """Each message is one of the protocol: it comes back as it was from bytes."""
    assert RECORDED
    for name, variant in RECORDED:
        recording = load(name, variant)
        assert recording["note"]["scenario"] == name
        assert recording["note"]["variant"] == variant
        for side, message in messages(recording):
            assert side in ("server", "app")
            if isinstance(message, dict):
                plain = {field: value for field, value in message.items() if not str(value).startswith("<")}
                again = _wire.as_json(_wire.from_json(plain))
                assert plain == again, (name, variant)
            else:
                assert message in ("closed", "cut")


def test_attempts_begin_with_what_the_server_knows() -> None:
    """An attempt begins with Start, and then with as many entries of the journal as it says."""
    for name, variant in RECORDED:
        for invocation in load(name, variant)["invocations"]:
            for attempt in invocation["attempts"]:
                first = attempt[0]["server"]
                assert first["type"] == "START"
                known = attempt[1 : 1 + first["known_entries"]]
                assert all("type" in event.get("server", ()) for event in known), (name, variant)
                assert known[0]["server"]["type"] == "INPUT"


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("variant", ["v6-normal", "v6-replay", "v7-normal", "v7-replay"])
def test_the_server_still_does_the_same(variant: str) -> None:
    """Recorded once more, a few scenarios come out as they are kept."""

    async def again() -> None:
        async with recorder(variant) as found:
            for name in AGAIN:
                recording = await found.record(SCENARIOS[name])
                kept = load(name, variant)
                assert kept["client"] == recording["client"], name
                assert kept["invocations"] == recording["invocations"], name
                # When this fails, record everything anew: `python -m tests.conformance.record`.
                assert kept["note"] == recording["note"], name

    asyncio.run(again())
