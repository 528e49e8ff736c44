"""Run one scenario on the simulator and on a real server."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, cast

from restate import JournalValueCodec, TerminalError

from restate_steps.testing._errors import InvocationEndedError
from restate_steps.testing._real_server.client import ServerResult
from restate_steps.testing._real_server.environment import restate_server
from restate_steps.testing._simulation.application import ASGIApp
from restate_steps.testing._simulation.outcome import Outcome
from restate_steps.testing._simulation.simulator import Result, simulate

__all__ = ["BothOutcomes", "on_both"]


@dataclass(frozen=True, slots=True)
class BothOutcomes:
    """The outcome of one scenario on the simulator and on a real server.

    Attributes:
        simulated: The outcome on the simulator.
        real: The outcome on a real server.
    """

    simulated: Outcome
    real: Outcome

    def assert_same(self) -> None:
        """Fail unless both outcomes are equal.

        Raises:
            AssertionError: They differ.
        """
        __tracebackhide__ = True
        if self.simulated != self.real:
            raise AssertionError(f"the simulator says {self.simulated}, and the server {self.real}")


async def on_both(
    app: ASGIApp,
    scenario: Callable[[Any], Coroutine[Any, Any, Any]],
    *,
    before_each: Callable[[], object] | None = None,
    always_replay: bool = False,
    journal_value_codec: JournalValueCodec | None = None,
) -> BothOutcomes:
    """Run a scenario on the simulator and on a real server.

    On a real server, time is real, and the order of events between two actions of the client varies. So use this
    function for scenarios with a single outcome, to check that the simulator behaves like a server for your handlers.

    Args:
        app: The application, as ``restate_steps.app(...)`` returns it.
        scenario: The client: a coroutine function that takes a :class:`Simulator`, or a :class:`ServerEnvironment`,
            which has the same methods.
        before_each: Called before each of the two runs, to reset what steps have changed.
        always_replay: Suspend handlers at every wait.
        journal_value_codec: The codec of the application, if it has one.

    Returns:
        The outcomes for the client; see :meth:`BothOutcomes.assert_same`.

    Example:
        >>> import restate, restate_steps
        >>> shop = restate.Service("Shop")
        >>> @shop.handler()
        ... async def pay(ctx: restate.Context, amount: int) -> str:
        ...     confirmed = await ctx.awakeable(type_hint=bool)[1]
        ...     return f"paid {amount}" if confirmed else "cancelled"
        >>> async def confirm(world) -> str:
        ...     order = await world.send(pay, 7)
        ...     await world.resolve_awakeable(await world.awakeable(order), True)
        ...     return (await order.result()).value
        >>> outcomes = await on_both(restate_steps.app([shop]), confirm)
        >>> outcomes.assert_same()
        >>> outcomes.real.value
        'paid 7'
    """
    __tracebackhide__ = True
    if before_each is not None:
        before_each()
    async with simulate(app, always_replay=always_replay, journal_value_codec=journal_value_codec) as simulator:
        simulated = await _outcome(scenario(simulator))
    if before_each is not None:
        before_each()
    async with restate_server(app, always_replay=always_replay, journal_value_codec=journal_value_codec) as environment:
        real = await _outcome(scenario(environment))
    return BothOutcomes(simulated, real)


async def _outcome(running: Coroutine[Any, Any, Any]) -> Outcome:
    try:
        value = await running
    except InvocationEndedError as ended:
        value = ended.value
    except TerminalError as error:
        return Outcome.of_failure(error)
    return Outcome("value", cast(Any, value).value if isinstance(value, Result | ServerResult) else value)
