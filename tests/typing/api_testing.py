"""What the type checkers must make of a test that plays the server, and explores. Checked, never run."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, assert_type

import restate
from pydantic import BaseModel

from restate_steps import durable_step
from restate_steps.server import AdminClient, JournalEntry
from restate_steps.testing import (
    DeterminismReport,
    Effects,
    Finding,
    InvocationStatus,
    Journal,
    Nondeterminism,
    Origin,
    Outcome,
    RecordedJournal,
    Report,
    Result,
    Schedule,
    SimulatedInvocation,
    SimulationError,
    Simulator,
    Target,
    check_deterministic,
    explore,
    export_journal,
    load_journals,
    record,
    replay,
    simulate,
)

shop = restate.Service("Shop")
cart = restate.VirtualObject("Cart")
approval = restate.Workflow("Approval")


class Order(BaseModel):
    id: str


@durable_step
async def price(order: Order) -> Decimal:
    return Decimal(1)


@shop.handler()
async def checkout(ctx: restate.Context, order: Order) -> Decimal:
    return await price(order)


@shop.handler()
async def stock(ctx: restate.Context) -> list[str]:
    return []


@cart.handler()
async def add(ctx: restate.ObjectContext, count: int) -> int:
    return count


@cart.handler(kind="shared")
async def look(ctx: restate.ObjectSharedContext) -> int | None:
    return None


@approval.main()
async def approve(ctx: restate.WorkflowContext, what: str | None) -> None:
    return None


app = restate.app([shop, cart, approval])
order = Order(id="o1")


async def call_and_send(sim: Simulator) -> None:
    assert_type(await sim.call(checkout, order), Result[Decimal])
    assert_type((await sim.call(checkout, order)).value, Decimal)
    assert_type(await sim.call(checkout, arg=order, idempotency_key="k", headers={"a": "b"}), Result[Decimal])
    assert_type(await sim.call(stock), Result[list[str]])
    assert_type(await sim.call(add, 1, key="ann"), Result[int])
    assert_type(await sim.call(look, key="ann"), Result[int | None])
    assert_type(await sim.call(approve, None, key="w1"), Result[None])
    assert_type(await sim.call("Shop/checkout", {"id": "o1"}), Result[Any])
    assert_type(await sim.call("Shop/stock"), Result[Any])

    sent = await sim.send(checkout, order, delay=timedelta(hours=1))
    assert_type(sent, SimulatedInvocation[Decimal])
    assert_type(await sent.result(), Result[Decimal])
    assert_type(await sim.send(look, key="ann"), SimulatedInvocation[int | None])
    assert_type(await sim.send("Shop/checkout", {"id": "o1"}), SimulatedInvocation[Any])
    assert_type((sent.id, sent.status, sent.attempts), tuple[str, InvocationStatus, int])
    assert_type(sent.last_failure, str | None)
    assert_type(sent.journal, Journal)
    assert_type(sent.awakeables, list[str])
    assert_type(await sim.awakeable(sent), str)
    await sim.resolve_awakeable(await sim.awakeable(sent), order)
    await sim.resolve_awakeable(await sim.awakeable(sent, 1))
    await sim.reject_awakeable(await sim.awakeable(sent, 2), "no", code=409)
    await sent.signal("go", {"at": 1})
    await sent.cancel()
    await sent.kill()
    await sent.pause()
    await sent.resume()


async def look_around(sim: Simulator, result: Result[Decimal]) -> None:
    await sim.advance(timedelta(days=1))
    await sim.advance(0.5)
    await sim.send(checkout, order, delay=3600)
    await sim.crash()
    await sim.disconnect()
    await sim.settle()
    await sim.run_until_idle()
    assert_type(sim.now, timedelta)
    assert_type(sim.effects, Effects)
    assert_type(sim.invocations, list[SimulatedInvocation[Any]])
    assert_type(sim.state("Cart", "ann"), dict[str, Any])
    assert_type(sim.timeline(), str)
    assert_type((result.attempts, result.invocation_id), tuple[int, str])
    assert_type(result.journal.names, list[str])
    assert_type(result.journal[0], JournalEntry)
    assert_type(result.journal[1:], list[JournalEntry])
    assert_type(result.journal.origin, Origin | None)
    assert_type(result.effects["price"], int)
    assert_type(result.effects.repeated_steps, list[str])


async def in_a_test() -> None:
    async with simulate(app) as sim:
        assert_type(sim, Simulator)
        await look_around(sim, await sim.call(checkout, order))
    mode: Literal["bidirectional", "request_response"] = "request_response"
    simulate(app, version=7, mode=mode, always_replay=True, disable_retries=True, seed=3)


def in_a_plain_test(codec: restate.JournalValueCodec) -> None:
    with simulate(app, journal_value_codec=codec) as sim:
        assert_type(sim.run(sim.call(checkout, order)), Result[Decimal])
        assert_type(sim.run(sim.send(stock)), SimulatedInvocation[list[str]])
        assert_type(sim.run(sim.crash()), None)


async def client(sim: Simulator) -> Decimal:
    return (await sim.call(checkout, order)).value


def once(sim: Simulator) -> None:
    assert sim.effects["price"] == 1


charged: list[int] = []


def exploring() -> None:
    report = explore(app, checkout, order)
    assert_type(report, Report)
    explore(app, stock)
    explore(app, add, 1, key="ann", crashes=2, cancel=True, orders=100, max_runs=10, max_seconds=0.5, seed=1)
    explore(app, "Shop/checkout", {"id": "o1"}, orders="all", version=7, mode="request_response", progress=False)
    explore(app, scenario=client, before_each=charged.clear, check=once)
    explore(app, scenario=client, check=lambda sim: sim.now < timedelta(1))
    explore(app, checkout, order, schedule="1!5")
    for finding in report.findings:
        assert_type(finding, Finding)
        assert_type(finding.schedule, Schedule)
        assert_type(finding.error, BaseException | None)
        explore(app, checkout, order, schedule=finding.schedule)
    assert_type(report.outcomes, list[tuple[Outcome, Schedule]])
    assert_type(report.max_body_runs, dict[str, int])
    assert_type(report.repeated_steps, dict[str, Schedule])
    assert_type(report.assert_replay_safe(), None)
    assert_type(report.assert_one_answer(), None)
    assert_type(Schedule.parse("1!5"), Schedule)


def checking() -> None:
    report = check_deterministic(checkout, order)
    assert_type(report, DeterminismReport)
    check_deterministic(stock, app=app)
    check_deterministic("Cart/add", 1, app=app, key="ann", runs=3, interpreters=0, ignore=["telemetry"])
    check_deterministic(scenario=client, app=app)
    for found in report.findings:
        assert_type(found, Nondeterminism)
        assert_type(found.after, str)
    assert_type(report.assert_deterministic(), None)


def keeping(result: Result[Decimal], sent: SimulatedInvocation[None], admin: AdminClient) -> None:
    kept = record(result, "journals/a.json")
    assert_type(kept, RecordedJournal)
    assert_type(kept.origin.target, Target)
    record(sent, Path("b.json"))
    record(result.journal, "c.json")
    record(kept, "d.json")
    assert_type(export_journal(admin, "inv_1"), RecordedJournal)
    record(export_journal("http://127.0.0.1:9070", "inv_1"), "e.json")
    assert_type(load_journals(Path("journals")), list[RecordedJournal])
    assert_type(replay("journals/*.json", app), None)
    replay([kept, result, Path("f.json"), "journals"], app)
    replay(load_journals("journals"), app)


def told(error: SimulationError) -> Exception:
    return error
