"""A campaign: many runs, many kills, and an audit of the results."""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
import time
from collections.abc import Coroutine
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.audit import Audit, audit
from tests.chaos.clients import Clients, Outcome
from tests.chaos.event_log import nonces_in, read
from tests.chaos.monkey import Monkey, make_plan
from tests.chaos.payment_service import PaymentService
from tests.chaos.progress import Progress
from tests.chaos.runs import make_runs
from tests.chaos.servers import Servers
from tests.chaos.service import Service

__all__ = ["Campaign", "Result", "carry_out"]

_AT_ONCE = range(4, 21)
_SHOWN = 5


@dataclass(frozen=True)
class Campaign:
    """The options of a campaign.

    Attributes:
        title: The title.
        runs: The number of runs.
        service_kills: The number of kills of the process that serves the handlers.
        server_kills: The number of kills of a server.
        nodes: The number of servers.
        seconds: The time limit for the runs, in seconds. Runs that have not ended by then are lost.
        seed: The seed that determines the calls, and the order and targets of the kills.
        always_replay: Whether the servers suspend a handler whenever it waits.
        http1: Whether the handlers are served over HTTP/1.1, in request/response mode.
        gracefully: Whether the service is ended with SIGTERM. Then no body may run again.
    """

    title: str
    runs: int
    service_kills: int
    server_kills: int
    nodes: int
    seconds: float
    seed: int
    always_replay: bool = False
    http1: bool = False
    gracefully: bool = False


@dataclass
class Result:
    """The result of a campaign.

    Attributes:
        campaign: The campaign.
        audit: The audit.
        service_kills: The number of kills of the service while runs were in progress.
        server_kills: The number of kills of a server while runs were in progress.
        seconds: The duration in seconds, from the first call to the last answer.
        evidence: Details about the first violations, for debugging.
    """

    campaign: Campaign
    audit: Audit
    service_kills: int
    server_kills: int
    seconds: float
    evidence: list[str] = field(default_factory=list[str])

    @property
    def problems(self) -> list[str]:
        """The reasons why the campaign failed; empty if it passed."""
        plan = self.campaign
        problems = [
            f"{violation.invocation or '(no invocation)'}: {violation.what}" for violation in self.audit.violations
        ]
        if self.service_kills < plan.service_kills or self.server_kills < plan.server_kills:
            problems.append("some kills came too late, after all runs had ended")
        if plan.gracefully and self.audit.bodies_again:
            problems.append(f"{self.audit.bodies_again} bodies ran again, although their process was drained")
        if plan.service_kills and not plan.gracefully and not self.audit.bodies_again:
            # Kills that interrupt nothing prove nothing.
            problems.append("no kill interrupted a step")
        return problems


async def carry_out(campaign: Campaign) -> Result:
    """Run a campaign in a new temporary folder, which is kept if there are problems."""
    rng = random.Random(campaign.seed)
    outcomes = [Outcome(run) for run in make_runs(campaign.runs, rng)]
    plan = make_plan(campaign.service_kills, campaign.server_kills, rng, nodes=campaign.nodes)
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="restate-steps-chaos-"))
        removal = stack.enter_context(ExitStack())
        removal.callback(shutil.rmtree, folder)
        servers = stack.enter_context(Servers(folder, campaign.nodes, always_replay=campaign.always_replay))
        clients = Clients(servers.ingress_urls, lambda invocation: _failure(servers, invocation))
        stack.push_async_callback(clients.close)
        approvals: set[asyncio.Task[None]] = set()

        def acted(what: str, detail: str) -> None:
            if what.startswith("ask "):
                loop.call_soon_threadsafe(lambda: approvals.add(loop.create_task(clients.approve(detail))))

        payments = stack.enter_context(PaymentService(acted=acted))
        service = stack.enter_context(Service(folder, payments.url, http1=campaign.http1))
        servers.register(service.url, http1=campaign.http1)

        progress = Progress(campaign.runs, max(_AT_ONCE[0], min(_AT_ONCE[-1], campaign.runs // 5)))
        monkey = Monkey(service, servers, plan, progress, campaign.runs, rng, campaign.gracefully)
        started = time.monotonic()
        await _within(
            campaign.seconds,
            monkey.run(),
            *(_carry_out(clients, progress, number, outcome) for number, outcome in enumerate(outcomes)),
        )
        seconds = time.monotonic() - started
        for approval in approvals:
            approval.cancel()

        recorded = _recorded(servers)
        found = audit(
            outcomes, read(service.event_log), monkey.snapshots, recorded, payments.requests, payments.receipts
        )
        result = Result(campaign, found, monkey.service_kills, monkey.server_kills, seconds)
        if result.problems:
            removal.pop_all()
            result.evidence = [f"the event log, the logs and the data are in {folder}", *_evidence(servers, found)]
    return result


async def _carry_out(clients: Clients, progress: Progress, number: int, outcome: Outcome) -> None:
    await progress.may_start(number)
    await clients.carry_out(outcome)
    await progress.one_ended()


async def _within(seconds: float, *work: Coroutine[Any, Any, None]) -> None:
    """Run coroutines concurrently; cancel the remaining ones when time is up or one of them fails."""
    try:
        async with asyncio.timeout(seconds), asyncio.TaskGroup() as group:
            for coroutine in work:
                group.create_task(coroutine)
    except TimeoutError:
        pass


def _failure(servers: Servers, invocation: str) -> str | None:
    columns = "status, completion_result, completion_failure"
    rows = servers.query(f"SELECT {columns} FROM sys_invocation WHERE id = '{invocation}'")
    if not rows or rows[0]["status"] != "completed" or rows[0].get("completion_result") != "failure":
        return None
    return str(rows[0].get("completion_failure"))


def _recorded(servers: Servers) -> dict[str, list[str]]:
    """Return the nonces in the journals of all invocations."""
    recorded: dict[str, list[str]] = {}
    for row in servers.query("SELECT id FROM sys_invocation"):
        results = (entry for entry in servers.journal(row["id"]) if entry.type == "Notification: Run")
        recorded[row["id"]] = [nonce for entry in results for nonce in nonces_in(f"{entry.value} {entry.failure}")]
    return recorded


def _evidence(servers: Servers, found: Audit) -> list[str]:
    lines: list[str] = []
    invocations = dict.fromkeys(violation.invocation for violation in found.violations if violation.invocation)
    for invocation in list(invocations)[:_SHOWN]:
        rows = servers.query(f"SELECT * FROM sys_invocation WHERE id = '{invocation}'")
        lines.append(f"{invocation}: {rows[0] if rows else 'unknown to the server'}")
        lines += [
            f"  {entry.index:3} {entry.type}  {entry.name or ''}  "
            f"{'completed' if entry.completed else 'open'}  {entry.failure or entry.value}"
            for entry in servers.journal(invocation)
        ]
    return lines
