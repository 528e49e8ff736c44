"""Kill the service, which is the process that serves the handlers, and the servers with SIGKILL, and restart them.

After each kill of the service, before restarting it, the monkey reads the journals of all open invocations. The results
in them are certainly recorded, and no process can run a body at that moment. So the bodies of those steps must not
start later.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from restate_steps.errors import ServerError
from tests.chaos.event_log import nonces_in, read
from tests.chaos.progress import Progress
from tests.chaos.servers import Servers
from tests.chaos.service import Service

__all__ = ["Monkey", "Plan", "Snapshot", "make_plan"]

Action: TypeAlias = Literal["kill service", "kill server", "start server"]

# The share of ended runs after which kills stop, so that they all happen while runs are in progress.
_LAST = 0.75
_UP_FOR = (0.15, 1.0)
_DOWN_FOR = (0.0, 0.4)


@dataclass(frozen=True)
class Snapshot:
    """The recorded results at a moment when the service was down.

    Attributes:
        recorded: The nonces of the results in the journals.
        entries: The number of entries in the event log.
    """

    recorded: frozenset[str]
    entries: int


@dataclass(frozen=True)
class Plan:
    """A sequence of actions, each with the share of the runs that must have ended before it."""

    actions: tuple[tuple[float, Action], ...]


def make_plan(service_kills: int, server_kills: int, rng: random.Random, *, nodes: int) -> Plan:
    """Distribute the kills over the runs.

    Args:
        service_kills: The number of kills of the service.
        server_kills: The number of kills of a server.
        rng: The random number generator that determines the times.
        nodes: The number of servers. A single server restarts immediately, because nothing works without it. In a
            cluster, the other nodes continue without the killed one for a while.
    """
    servers: list[tuple[float, Action]] = []
    for number in range(server_kills):
        share = _LAST * (number + rng.uniform(0.3, 0.6)) / server_kills
        alone = 0.0 if nodes == 1 else _LAST * 0.3 / server_kills
        servers.append((share, "kill server"))
        servers.append((share + alone, "start server"))
    # Kill the service along with every other server kill, so that both are down at once.
    both = [share for share, action in servers if action == "kill server"][1::2][: service_kills // 2]
    others = service_kills - len(both)
    shares = [_LAST * (number + rng.random()) / others for number in range(others)]
    services: list[tuple[float, Action]] = [(share, "kill service") for share in (*both, *shares)]
    order = ("kill server", "kill service", "start server")
    return Plan(tuple(sorted(servers + services, key=lambda planned: (planned[0], order.index(planned[1])))))


@dataclass
class Monkey:
    """The executor of a plan.

    Attributes:
        service: The process that serves the handlers.
        servers: The servers.
        plan: The plan.
        progress: The progress of the runs.
        runs: The number of runs.
        rng: The random number generator that determines targets and delays.
        gracefully: Whether to end the service with SIGTERM instead of SIGKILL.
        snapshots: The recorded results at each kill of the service.
        service_kills: The number of kills of the service while runs were in progress.
        server_kills: The number of kills of a server while runs were in progress.
    """

    service: Service
    servers: Servers
    plan: Plan
    progress: Progress
    runs: int
    rng: random.Random
    gracefully: bool = False
    snapshots: list[Snapshot] = field(default_factory=list[Snapshot])
    service_kills: int = 0
    server_kills: int = 0
    _down: int | None = None

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            starting: asyncio.Task[None] | None = None
            for share, action in self.plan.actions:
                await self.progress.until(int(share * self.runs))
                if action == "kill service":
                    await self._kill_service()
                elif action == "start server":
                    # It takes seconds, during which kills of the service continue.
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
        self.service.kill(gracefully=self.gracefully)
        if any(node.running for node in self.servers.nodes):
            self.snapshots.append(self._snapshot())
        self.service.start()

    def _snapshot(self) -> Snapshot:
        recorded: set[str] = set()
        for row in self.servers.query("SELECT id FROM sys_invocation WHERE status != 'completed'"):
            for entry in self.servers.journal(row["id"]):
                if entry.type == "Notification: Run":
                    recorded.update(nonces_in(f"{entry.value} {entry.failure}"))
        return Snapshot(frozenset(recorded), len(read(self.service.event_log)))

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
            raise RuntimeError(f"a killed server failed to restart: {error}") from error
