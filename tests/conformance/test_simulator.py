"""The simulator against the recordings of the real server: the same messages, in the same order."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.conformance.drive import SCENARIOS, VARIANTS
from tests.conformance.recording import dump, load, names
from tests.conformance.simulated import SimulatedServer

NOT_SIMULATED = {
    "call_unknown_service": "the server tries until the service is registered; the simulator says what is missing",
    "call_unknown_handler": "the same",
    "send_unknown_service": "the same",
}

BY_CHANCE = {
    "cancel_child_by_parent": "whether the child is cancelled before or after its first command is stored",
}
"""Scenarios in which two invocations race; for these each attempt is compared as a set of messages."""


def comparable(recording: dict[str, Any], name: str) -> str:
    """Return a recording as text, without what no simulator could say in the same words."""
    recording = {**recording, "note": {}}
    text = re.sub(r"17\d{8}\.\d+", "<now>", dump(recording))
    # With flow control, the server makes up a key for a client's call without one.
    text = text.replace(', "idempotency_key": "<ulid>"', "")
    # What the ingress says about a mistake of the client; that it does, and with which status, is compared.
    recording = json.loads(text)
    for asked in recording["client"]:
        answer = asked.get("answer")
        if isinstance(answer, dict) and '"ingress"' in answer["body"]:
            answer["body"] = "<complaint of the ingress>"
    if name in BY_CHANCE:
        for invocation in recording["invocations"]:
            invocation["attempts"] = [sorted(events, key=json.dumps) for events in invocation["attempts"]]
    return dump(recording)


@pytest.mark.parametrize("variant", VARIANTS)
async def test_simulator_does_what_the_server_does(variant: str, caplog: pytest.LogCaptureFixture) -> None:
    """Each attempt has the messages that were recorded, and each client the answers."""
    caplog.set_level("CRITICAL", "restate")
    different: dict[str, str] = {}
    for name in names(variant):
        if name in NOT_SIMULATED:
            continue
        recorded = comparable(load(name, variant), name)
        simulated = comparable(await SimulatedServer(variant).record(SCENARIOS[name]), name)
        if simulated != recorded:
            different[name] = f"recorded:\n{recorded}\nsimulated:\n{simulated}"

    assert {} == different


def test_enough_is_compared() -> None:
    """The recordings are there, for both versions of the protocol in all three modes, and for flow control."""
    compared = sum(name not in NOT_SIMULATED for variant in VARIANTS for name in names(variant))

    assert len(VARIANTS) == 7
    assert compared >= 650
