"""Write the journals that are missing: ``python -m tests.journals.write [--server]``.

A journal that is there is never written again: it is what a version of the past has left behind. A new version of
this package gets a folder beside the old ones.

With ``--server`` they are taken from a real restate-server, with both versions of the protocol.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import httpx

from restate_steps import __version__
from restate_steps.server import AppServer, JournalEntry, RestateServer
from restate_steps.testing import RecordedJournal, Simulator, export_journal, record, simulate
from restate_steps.testing._recording.recorded import as_recorded
from tests.journals.handlers import app

FOLDER = Path(__file__).parent
WITHIN = 30.0
QUIET = 0.3


class Run(Protocol):
    """An invocation, in the simulator or on a server."""

    def told(self, count: int = 1) -> list[str]:
        """Wait until it has told so much, and return what."""
        ...

    def resolve(self, awakeable: str, value: Any) -> None: ...

    def reject(self, awakeable: str, reason: str) -> None: ...

    def cancel(self) -> None: ...

    def call(self, target: str, arg: Any, key: str) -> None: ...

    def wait(self) -> None:
        """Wait until it has ended."""
        ...

    def settle(self) -> None:
        """Wait until it waits."""
        ...

    def recorded(self) -> RecordedJournal: ...


def ends(run: Run) -> None:
    run.wait()


def waits(run: Run) -> None:
    run.settle()


def answers(run: Run) -> None:
    first, second = run.told(2)
    run.resolve(second, "two")
    run.resolve(first, "one")
    run.wait()


def rejects(run: Run) -> None:
    first, _ = run.told(2)
    run.reject(first, "nobody there")
    run.wait()


def resolves_one(run: Run) -> None:
    first, _ = run.told(2)
    run.resolve(first, "one")
    run.settle()


def cancels(run: Run) -> None:
    run.told()
    run.settle()
    run.cancel()
    run.wait()


def decides(run: Run) -> None:
    run.settle()
    run.call("KeptApproval/say", "yes", "in time")
    run.wait()


@dataclass(frozen=True)
class Case:
    """What leads to a journal."""

    name: str
    handler: str
    arg: Any = ...
    key: str | None = None
    drive: Callable[[Run], None] = ends

    @property
    def target(self) -> str:
        return self.handler if "/" in self.handler else f"Kept/{self.handler}"


CASES: Sequence[Case] = [
    *(
        Case(name, name)
        for name in (
            "nothing",
            "retried",
            "codec",
            "gathered",
            "gathered_failure",
            "raced",
            "completed_one_by_one",
            "grouped",
            "group_that_fails",
            "in_time",
            "too_late",
            "nested",
            "compensated",
            "slept",
            "signalled",
            "random_and_time",
            "asyncio_gathered",
            "asyncio_group",
            "asyncio_too_late",
            "anyio_scopes",
        )
    ),
    Case("values", "values", 4),
    Case("failures", "failures", "no funds"),
    Case("uncaught", "uncaught", "no funds"),
    Case("names", "names", ["a", "b"]),
    Case("mapped", "mapped", [1, 2, 3, 4, 5]),
    Case("cancelled", "cancelled", drive=cancels),
    Case("cancelled_in_flight", "cancelled", drive=waits),
    Case("awakeables_untouched", "awakeables", drive=waits),
    Case("awakeables", "awakeables", drive=answers),
    Case("awakeables_rejected", "awakeables", drive=rejects),
    Case("awakeables_in_flight", "awakeables", drive=resolves_one),
    Case("state", "KeptCounter/add", 3, "state"),
    Case("state_again", "KeptCounter/add", 4, "state"),
    Case("state_lazy", "KeptCounter/look", key="state"),
    Case("state_cleared", "KeptCounter/forget", key="state"),
    Case("called", "called", 2),
    Case("sent", "sent", 2),
    Case("promise", "KeptApproval/decide", "trip", "in time", decides),
    Case("promise_in_flight", "KeptApproval/decide", "trip", "waiting", waits),
    Case("promise_resolved", "KeptApproval/say", "no", "nobody asks"),
    Case("agent", "agent", "How is the weather?"),
    Case("agent_with_durable_tools", "agent_with_durable_tools", "What shall I do?"),
]


# --- the simulator ----------------------------------------------------------------------------------------------


class SimulatedRun:
    def __init__(self, simulator: Simulator, case: Case) -> None:
        given = () if case.arg is ... else (case.arg,)
        self._simulator = simulator
        self._invocation = asyncio.run(simulator.send(case.target, *given, key=case.key))

    def told(self, count: int = 1) -> list[str]:
        found = told_by(list(self._invocation.journal))
        assert len(found) >= count
        return found

    def resolve(self, awakeable: str, value: Any) -> None:
        asyncio.run(self._simulator.resolve_awakeable(awakeable, value))

    def reject(self, awakeable: str, reason: str) -> None:
        asyncio.run(self._simulator.reject_awakeable(awakeable, reason))

    def cancel(self) -> None:
        asyncio.run(self._invocation.cancel())

    def call(self, target: str, arg: Any, key: str) -> None:
        asyncio.run(self._simulator.send(target, arg, key=key))

    def wait(self) -> None:
        self._simulator.run(self._simulator.run_until_idle())
        assert "completed" == self._invocation.status, self._simulator.timeline()[-2000:]

    def settle(self) -> None:
        self._simulator.run(self._simulator.settle())
        assert "completed" != self._invocation.status, self._simulator.timeline()

    def recorded(self) -> RecordedJournal:
        return as_recorded(self._invocation)


def simulate_cases(folder: Path, version: int) -> None:
    with simulate(app, version=version) as simulator:
        write(folder, lambda case: SimulatedRun(simulator, case))


# --- a real server ----------------------------------------------------------------------------------------------


class ServerRun:
    def __init__(self, server: RestateServer, client: httpx.Client, case: Case) -> None:
        self._server, self._client = server, client
        self._id = self._send(case.target, case.arg, case.key)

    def _send(self, target: str, arg: Any, key: str | None) -> str:
        service, _, handler = target.partition("/")
        path = f"/{service}/{quote(key)}/{handler}/send" if key is not None else f"/{service}/{handler}/send"
        given = {} if arg is ... else {"json": arg}
        return str(self._client.post(path, **given).raise_for_status().json()["invocationId"])

    def _until(self, seen: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + WITHIN
        while not (found := seen()):
            assert time.monotonic() < deadline, self._server.admin.invocation(self._id)
            time.sleep(0.02)
        return found

    def told(self, count: int = 1) -> list[str]:
        def enough() -> list[str]:
            found = told_by(self._server.admin.journal(self._id))
            return found if len(found) >= count else []

        return list(self._until(enough))

    def resolve(self, awakeable: str, value: Any) -> None:
        self._client.post(f"/restate/awakeables/{awakeable}/resolve", json=value).raise_for_status()

    def reject(self, awakeable: str, reason: str) -> None:
        self._client.post(f"/restate/awakeables/{awakeable}/reject", content=reason).raise_for_status()

    def cancel(self) -> None:
        self._server.admin.cancel(self._id)

    def call(self, target: str, arg: Any, key: str) -> None:
        self._send(target, arg, key)

    def wait(self) -> None:
        self._until(lambda: self._server.admin.invocation(self._id)["status"] == "completed")

    def settle(self) -> None:
        size, since = -1, 0.0

        def quiet() -> bool:
            nonlocal size, since
            now = len(self._server.admin.journal(self._id))
            if now != size or now < 2:
                size, since = now, time.monotonic()
            return time.monotonic() - since > QUIET

        self._until(quiet)

    def recorded(self) -> RecordedJournal:
        return export_journal(self._server, self._id)


def export_cases(folder: Path, version: int) -> None:
    env = {"RESTATE_EXPERIMENTAL_ENABLE_PROTOCOL_V7": "true"} if version == 7 else None
    with ExitStack() as stack:
        server = stack.enter_context(RestateServer(env=env))
        served = stack.enter_context(AppServer(app))
        server.admin.register(served.url)
        # Without the headers that a client adds by itself: they say nothing, and change with every release of it.
        client = httpx.Client(base_url=server.ingress_url, trust_env=False, timeout=WITHIN)
        stack.enter_context(client)
        write(folder, lambda case: ServerRun(server, client, case))


# --- both -------------------------------------------------------------------------------------------------------


def told_by(entries: Sequence[JournalEntry]) -> list[str]:
    return [
        str(each.value) for each in entries if each.type == "Command: Run" and each.name == "tell" and each.completed
    ]


def write(folder: Path, start: Callable[[Case], Run]) -> None:
    """Write the journals that are missing in a folder."""
    for case in CASES:
        path = folder / f"{case.name}.json"
        if path.exists():
            continue
        run = start(case)
        case.drive(run)
        record(run.recorded(), path)
        print(path.relative_to(FOLDER))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.journals.write")
    parser.add_argument("--server", action="store_true", help="take them from a real restate-server as well")
    options = parser.parse_args()
    for version in (6, 7):
        simulate_cases(FOLDER / __version__ / f"simulator-v{version}", version)
        if options.server:
            export_cases(FOLDER / __version__ / f"server-v{version}", version)


if __name__ == "__main__":
    main()
