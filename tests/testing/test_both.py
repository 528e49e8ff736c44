"""One scenario on the simulator and on a real server."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any

import pytest
from restate import TerminalError

from restate_steps.testing import on_both
from tests.support import client_shop as shop

Scenario = Callable[[Any], Coroutine[Any, Any, Any]]


async def calls(world: Any) -> Any:
    return [(await world.call(shop.add, by, key="a")).value for by in (1, 2)]


async def sends_and_cancels(world: Any) -> Any:
    sent = await world.send(shop.pay)
    await world.awakeable(sent)
    await sent.cancel()
    return (await sent.result()).value


async def resolves(world: Any) -> Any:
    sent = await world.send(shop.pay)
    await world.resolve_awakeable(await world.awakeable(sent), "paid")
    return await sent.result()


async def rejects(world: Any) -> Any:
    sent = await world.send(shop.pay)
    await world.reject_awakeable(await world.awakeable(sent), "no card")
    return await sent.result()


async def signals(world: Any) -> Any:
    sent = await world.send(shop.waits_for_a_signal)
    await sent.signal("go", {"to": "Rome"})
    return (await sent.result()).value


async def promises(world: Any) -> Any:
    sent = await world.send(shop.approve_only, key="a")
    await world.call(shop.decide, "yes", key="a")
    return (await sent.result()).value


async def looks_at_state(world: Any) -> Any:
    await world.call(shop.add, 3, key="b")
    await world.call("Cart/add", 4, key="b")
    return world.state("Cart", "b")


async def two_clients(world: Any) -> Any:
    others = [world.start(world.call(shop.add, 1, key="c")) for _ in range(3)]
    return sorted([(await other).value for other in others])


async def waits_until(world: Any) -> Any:
    sent = await world.send(shop.add, 1, key="d", delay=timedelta(milliseconds=20))
    await world.until(lambda: sent.status == "completed")
    await world.advance(timedelta(milliseconds=10))
    return world.state("Cart", "d")


async def idempotent(world: Any) -> Any:
    answers = [(await world.call(shop.add, 1, key="e", idempotency_key="once")).value for _ in range(2)]
    return [*answers, world.state("Cart", "e")]


SCENARIOS: list[tuple[Scenario, Any]] = [
    (calls, [1, 3]),
    (sends_and_cancels, (409, "cancelled")),
    (resolves, "paid"),
    (rejects, (500, "no card")),
    (signals, {"to": "Rome"}),
    (promises, "yes"),
    (looks_at_state, {"total": 7}),
    (two_clients, [1, 2, 3]),
    (waits_until, {"total": 1}),
    (idempotent, [1, 1, {"total": 1}]),
]


@pytest.mark.parametrize(("scenario", "expected"), SCENARIOS, ids=[scenario.__name__ for scenario, _ in SCENARIOS])
@pytest.mark.parametrize("always_replay", [False, True], ids=["normal", "always-replay"])
async def test_both_say_the_same(scenario: Scenario, expected: Any, always_replay: bool) -> None:
    """Whatever a client does."""
    outcomes = await on_both(shop.APP, scenario, always_replay=always_replay)
    outcomes.assert_same()
    assert outcomes.simulated.value == expected


async def test_a_difference_is_shown() -> None:
    """With what each of the two says."""
    worlds: list[Any] = []

    async def scenario(world: Any) -> int:
        worlds.append(world)
        if len(worlds) == 2:
            raise TerminalError("only on the server", 418)
        return 1

    outcomes = await on_both(shop.APP, scenario)
    with pytest.raises(
        AssertionError, match="the simulator says 1, and the server TerminalError 418: only on the server"
    ):
        outcomes.assert_same()
