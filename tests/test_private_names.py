"""The private names of libraries that the package uses: each is there, is used, and is reported once it is gone."""

from __future__ import annotations

from importlib.metadata import version

import pytest
import restate.server_context as server

from tests.support.private_names import PrivateName, moved, private_names

NAMES = list(private_names())


@pytest.mark.parametrize("name", NAMES, ids=str)
def test_a_private_name_is_there(name: PrivateName) -> None:
    """If not, the message says what uses it, what for, and what happens without it."""
    if name.is_optional:
        pytest.skip("the library is not installed, or this version of Python does not have the name")

    assert name.is_there, name.report


@pytest.mark.parametrize("name", NAMES, ids=str)
def test_a_private_name_is_used(name: PrivateName) -> None:
    """The table has no name that the package does not use."""
    assert name.used_in != []


def test_the_table_is_read() -> None:
    """Every name in its first column is looked up."""
    assert {"restate", "asyncio", "anyio", "pydantic_ai", "pydantic_ai_harness"} == {name.library for name in NAMES}
    assert {"VMWrapper.do_progress", "PyUnresolvedFuture.all_completed", "VMException", "Task._fut_waiter"} <= {
        name.path for name in NAMES
    }
    assert all(name.without.endswith(".") and name.used_for != "As above." for name in NAMES)


def test_a_name_that_is_gone_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line names the version, the name, the files that use it, its use, and the consequence."""
    assert [] == moved()
    monkeypatch.delattr(server.ServerInvocationContext, "take_and_send_output")
    monkeypatch.delattr(server, "ServerSendHandle")

    sending, handles = moved()

    assert (
        f"moved: restate-sdk {version('restate-sdk')} has no ServerInvocationContext.take_and_send_output. "
        "Used in: restate_steps/_sdk/_futures.py, restate_steps/_sdk/_port.py. "
        "Used for: Sending the VM's output in order. Without it: Nothing can be sent from the handler loop."
    ) == sending
    assert "has no ServerSendHandle. Used in: restate_steps/_sdk/_futures.py. Used for: Several tasks" in handles


def test_a_renamed_attribute_of_an_instance_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attributes that a constructor sets are found in its source."""

    class ReceiveChannel:
        def __init__(self) -> None:
            self._events = self._task = self

        def enqueue_restate_event(self) -> None:
            pass

        def notify_shutdown(self) -> None:
            pass

    monkeypatch.setattr("restate.server_types.ReceiveChannel", ReceiveChannel)
    monkeypatch.setattr("restate.server_context.ReceiveChannel", ReceiveChannel)
    monkeypatch.setattr("restate.server.ReceiveChannel", ReceiveChannel)

    assert ["ReceiveChannel._queue"] == [line.split()[5].rstrip(".") for line in moved()]
