"""What a type checker must refuse in a test that plays the server. Checked, never run."""

from __future__ import annotations

from datetime import timedelta
from typing import assert_type

import restate

from restate_steps.testing import (
    Report,
    Result,
    SimulatedInvocation,
    Simulator,
    check_deterministic,
    explore,
    export_journal,
    load_journals,
    record,
    replay,
    simulate,
)

shop = restate.Service("Shop")
app = restate.app([shop])


@shop.handler()
async def checkout(ctx: restate.Context, item: str) -> int:
    return len(item)


@shop.handler()
async def stock(ctx: restate.Context) -> list[str]:
    return []


def no_coroutine(sim: Simulator) -> int:
    return 1


async def no_arguments() -> int:
    return 1


async def call_and_send(sim: Simulator) -> None:
    await sim.call(checkout, 5)  # error: arg-type
    await sim.call(checkout)  # error: arg-type
    await sim.call(stock, "tea")  # error: arg-type
    await sim.call(checkout, "tea", "milk")  # error: call-overload
    await sim.call(checkout, "tea", key=5)  # error: call-overload
    await sim.call(checkout, "tea", headers={"a": 1})  # error: dict-item
    await sim.call(no_coroutine, "tea")  # error: arg-type
    await sim.call(shop)  # error: call-overload
    sim.call(checkout, "tea").value  # error: attr-defined
    (await sim.call(checkout, "tea")).answer  # error: attr-defined
    assert_type((await sim.call(checkout, "tea")).value, str)  # error: assert-type
    await sim.send(checkout, 5)  # error: arg-type
    await sim.send(checkout)  # error: arg-type
    await sim.send(checkout, "tea", delay="5 s")  # error: call-overload
    sent: SimulatedInvocation[str] = await sim.send(checkout, "tea")  # error: arg-type
    await sim.advance("5 s")  # error: arg-type
    await sim.resolve_awakeable(5)  # error: arg-type
    await sim.reject_awakeable("sign_1")  # error: call-arg
    sim.state("Cart")  # error: call-arg
    sim.run(call_and_send)  # error: arg-type
    sim.now = timedelta(1)  # error: misc


def simulating() -> None:
    simulate()  # error: call-arg
    simulate(app, mode="http1")  # error: arg-type
    simulate(app, True)  # error: call-arg


def exploring(report: Report) -> None:
    explore(app, checkout, 5)  # error: arg-type
    explore(app, no_arguments)  # error: arg-type
    explore(app, shop)  # error: arg-type
    explore(app, checkout, "tea", orders="some")  # error: arg-type
    explore(app, checkout, "tea", schedule=5)  # error: arg-type
    explore(app, scenario=no_coroutine)  # error: arg-type
    explore(app, scenario=no_arguments)  # error: arg-type
    explore(app, checkout, "tea", check=no_arguments)  # error: arg-type
    explore(app, checkout, "tea", crashs=1)  # error: call-arg
    report.assert_safe()  # error: attr-defined
    report.findings.schedule  # error: attr-defined


def checking() -> None:
    check_deterministic(checkout, 5)  # error: arg-type
    check_deterministic(shop)  # error: arg-type
    check_deterministic(scenario=no_coroutine)  # error: arg-type


async def keeping(sim: Simulator, result: Result[int]) -> None:
    record(sim.call(checkout, "tea"), "a.json")  # error: arg-type
    record(result)  # error: call-arg
    record(result.value, "a.json")  # error: arg-type
    replay("journals")  # error: call-arg
    load_journals(result)  # error: arg-type
    await export_journal("http://127.0.0.1:9070", "inv_1")  # error: misc
    export_journal(9070, "inv_1")  # error: arg-type
