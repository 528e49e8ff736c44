"""Kills the process that serves the handlers, and the servers, with SIGKILL, and starts them again.

After each kill of the handlers' process, and before it is started again, the journals of all open invocations are read.
What they hold then is recorded for certain, and nobody is there to run a body: if the body of one of those steps starts
later, it is one that must not.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from chaos.diary import nonces_in, read
from chaos.progress import Progress
from chaos.servers import Servers
from chaos.service import Service
from restate_steps.errors import ServerError

__all__ = ["Monkey", "Plan", "Snapshot", "make_plan"]

Deed: TypeAlias = Literal["kill service", "kill server", "start server"]

# Kills stop while there still are runs to end.
_LAST = 0.75
_UP_FOR = (0.15, 1.0)
_DOWN_FOR = (0.0, 0.4)


@dataclass(frozen=True)
class Snapshot:
    """What was recorded while the process that serves the handlers was dead.

    Attributes:
        recorded: The nonces of the results in the journals.
        entries: How long the diary was.
    """

    recorded: frozenset[str]
    entries: int


@dataclass(frozen=True)
class Plan:
    """What to do, each deed at the share of the runs that shall have ended before it."""

    deeds: tuple[tuple[float, Deed], ...]


def make_plan(service_kills: int, server_kills: int, rng: random.Random, *, nodes: int) -> Plan:
    """Spread the kills over the runs.

    Args:
        service_kills: How often to kill the process that serves the handlers.
        server_kills: How often to kill a server.
        rng: Decides when.
        nodes: How many servers there are. A single one is started again at once, as nothing goes on without it;
            of several, the others go on alone for a while.
    """
    servers: list[tuple[float, Deed]] = []
    for number in range(server_kills):
        share = _LAST * (number + rng.uniform(0.3, 0.6)) / server_kills
        alone = 0.0 if nodes == 1 else _LAST * 0.3 / server_kills
        servers.append((share, "kill server"))
        servers.append((share + alone, "start server"))
    # Some kills hit the service while the only server is down too.
    both = [share for share, deed in servers if deed == "kill server"][1::2][: service_kills // 2]
    others = service_kills - len(both)
    shares = [_LAST * (number + rng.random()) / others for number in range(others)]
    services: list[tuple[float, Deed]] = [(share, "kill service") for share in (*both, *shares)]
    order = ("kill server", "kill service", "start server")
    return Plan(tuple(sorted(servers + services, key=lambda planned: (planned[0], order.index(planned[1])))))


@dataclass
class Monkey:
    """Carries a plan out.

    Attributes:
        service: The process that serves the handlers.
        servers: The servers.
        plan: What to do.
        progress: How far the runs are.
        runs: How many there are.
        rng: Decides who, and for how long.
        snapshots: What was recorded at the kills.
        service_kills: How often the service was killed while runs were under way.
        server_kills: How often a server was.
    """

    service: Service
    servers: Servers
    plan: Plan
    progress: Progress
    runs: int
    rng: random.Random
    snapshots: list[Snapshot] = field(default_factory=list[Snapshot])
    service_kills: int = 0
    server_kills: int = 0
    _down: int | None = None

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            starting: asyncio.Task[None] | None = None
            for share, deed in self.plan.deeds:
                await self.progress.until(int(share * self.runs))
                if deed == "kill service":
                    await self._kill_service()
                elif deed == "start server":
                    # It takes seconds, in which the service is killed as before.
                    starting = group.create_task(self._start_server())
                else:
                    if starting is not None:
                        await starting
                    await self._kill_server()
            await self.progress.until(self.runs)

    async def _kill_service(self) -> None:
        await asyncio.sleep(max(0.0, self.rng.uniform(*_UP_FOR) - self.service.up_for))
        if not self.progress.over:
            self.service_kills += 1
        await asyncio.to_thread(self._kill_and_start_service)

    def _kill_and_start_service(self) -> None:
        self.service.kill()
        if any(node.running for node in self.servers.nodes):
            self.snapshots.append(self._snapshot())
        self.service.start()

    def _snapshot(self) -> Snapshot:
        recorded: set[str] = set()
        for row in self.servers.query("SELECT id FROM sys_invocation WHERE status != 'completed'"):
            for entry in self.servers.journal(row["id"]):
                if entry.type == "Notification: Run":
                    recorded.update(nonces_in(f"{entry.value} {entry.failure}"))
        return Snapshot(frozenset(recorded), len(read(self.service.diary)))

    async def _kill_server(self) -> None:
        await asyncio.sleep(self.rng.uniform(*_UP_FOR))
        if not self.progress.over:
            self.server_kills += 1
        self._down = self.rng.randrange(len(self.servers.nodes))
        await asyncio.to_thread(self.servers.nodes[self._down].kill)

    async def _start_server(self) -> None:
        assert self._down is not None
        await asyncio.sleep(self.rng.uniform(*_DOWN_FOR))
        try:
            await asyncio.to_thread(self.servers.nodes[self._down].restart)
        except ServerError as error:
            raise RuntimeError(f"a server that was killed did not come up again: {error}") from error
