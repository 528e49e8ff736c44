"""Call handlers in-process and in virtual time, as a client of a Restate server does."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, cast, overload

from restate import JournalValueCodec, TerminalError
from restate.handler import Handler

from restate_steps._durations import to_timedelta
from restate_steps.server._journal import decoded
from restate_steps.testing._errors import (
    InvocationEndedError,
    SimulationError,
    StuckError,
)
from restate_steps.testing._simulation.application import ASGIApp, Mode, read_manifest
from restate_steps.testing._simulation.calls import (
    NOTHING,
    A,
    HandlerRef,
    encoded,
    json_of,
    output_of,
    resolve,
)
from restate_steps.testing._simulation.driver import Driver
from restate_steps.testing._simulation.effects import Effects
from restate_steps.testing._simulation.invocation import Failure, Invocation, InvocationStatus
from restate_steps.testing._simulation.journal import Journal, Origin
from restate_steps.testing._simulation.manifest import HandlerInfo, Target, UnknownHandlerError
from restate_steps.testing._simulation.outcome import Outcome
from restate_steps.testing._simulation.schedule import Schedule
from restate_steps.testing._simulation.server_model import START_MS
from restate_steps.testing._simulation.timeline import timeline
from restate_steps.testing._simulation.turn import Turn
from restate_steps.testing._simulation.verdicts import (
    open_waits,
    paused_below,
    paused_error,
    raise_if_out_of_time,
    why_stuck,
)

__all__ = ["Result", "SimulatedClient", "SimulatedInvocation", "Simulator", "failures", "simulate"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Result(Generic[T]):
    """The result of a successful call.

    Attributes:
        value: The handler's return value, decoded with the handler's own serde.
        journal: All recorded entries.
        effects: How often the bodies of the steps ran.
        attempts: The number of attempts.
        invocation_id: The id of the invocation.
    """

    value: T
    journal: Journal
    effects: Effects
    attempts: int
    invocation_id: str


class SimulatedInvocation(Generic[T]):
    """A handle to an invocation that was started without waiting for it."""

    def __init__(self, simulator: Simulator, invocation: Invocation, handler: Handler[Any, Any] | None) -> None:
        self._simulator, self._invocation, self._handler = simulator, invocation, handler

    @property
    def id(self) -> str:
        """The id of the invocation."""
        return self._invocation.id

    @property
    def status(self) -> InvocationStatus:
        """The status of the invocation; it compares equal to its text, such as ``"suspended"``."""
        return self._invocation.status

    @property
    def attempts(self) -> int:
        """The number of attempts so far."""
        return self._invocation.attempts

    @property
    def last_failure(self) -> str | None:
        """The error message of the last failed attempt, as a server shows it to operators; None if none has failed."""
        error = self._invocation.last_error
        return None if error is None else error.message

    @property
    def journal(self) -> Journal:
        """The entries recorded so far."""
        return _journal_of(self._simulator.driver, self._invocation)

    @property
    def effects(self) -> Effects:
        """The number of times that the bodies of its steps ran so far."""
        return Effects([run for run in self._simulator.driver.trace.bodies if run.invocation == self.id])

    @property
    def awakeables(self) -> list[str]:
        """The ids of the awakeables that it has made so far, in order; :meth:`Simulator.awakeable` waits for one."""
        return list(self._simulator.driver.trace.awakeables.get(self.id, ()))

    @property
    def outcome(self) -> Outcome | None:
        """The value or the failure of the invocation; None until it has ended.

        Example:
            >>> import restate, restate_steps
            >>> shop = restate.Service("Shop")
            >>> @shop.handler()
            ... async def pay(ctx: restate.Context, amount: int) -> str:
            ...     return f"paid {amount}" if await ctx.awakeable(type_hint=bool)[1] else "declined"
            >>> async with simulate(restate_steps.app([shop])) as sim:
            ...     order = await sim.send(pay, 7)
            ...     await order.cancel()
            ...     print(order.outcome)
            TerminalError 409: cancelled
        """
        invocation = self._invocation
        if not invocation.ended:
            return None
        if (failure := invocation.failure) is not None:
            return Outcome("failure", (failure.code, failure.message))
        decoding = output_of(invocation.output or b"", self._handler, self._simulator.codec)
        return Outcome("value", self._simulator.run(decoding))

    async def result(self) -> Result[T]:
        """Wait until the invocation ends, and return its result; see :meth:`Simulator.call`."""
        __tracebackhide__ = True
        return await _result_of(self._simulator, self._invocation, self._handler)

    async def cancel(self) -> None:
        """Cancel the invocation: its current wait raises a ``TerminalError`` with the status 409."""
        self._simulator.driver.model.cancel(self.id)
        await self._simulator.settle()

    async def kill(self) -> None:
        """Kill the invocation and those that it waits for; the handler is not notified."""
        self._simulator.driver.kill(self.id)
        await self._simulator.settle()

    async def pause(self) -> None:
        """Pause the invocation: no new attempt starts, and whatever an open attempt still sends is discarded."""
        self._simulator.driver.model.pause(self.id)
        await self._simulator.settle()

    async def resume(self) -> None:
        """Resume the invocation if it is paused."""
        self._simulator.driver.model.resume(self.id)
        await self._simulator.settle()

    async def signal(self, name: str, value: Any = None) -> None:
        """Send the invocation a named signal, with a value that is encoded as JSON."""
        content = {"content": json_of(value)}
        self._simulator.driver.model.signal(self.id, signal_name=name, value=content)
        await self._simulator.settle()

    def __repr__(self) -> str:
        return f"<{self._invocation.target} {self.status}>"


class SimulatedClient(Generic[T]):
    """A client that runs concurrently with the code that started it; made by :meth:`Simulator.start`.

    Args:
        simulator: The simulator.
        coroutine: The client's actions.
    """

    def __init__(self, simulator: Simulator, coroutine: Coroutine[Any, Any, T]) -> None:
        self._simulator, self._coroutine = simulator, coroutine
        self._outcome: tuple[T | None, BaseException | None] | None = None
        self._is_awaited = False
        self._wait_for(Turn(_always))

    @property
    def unnoticed(self) -> BaseException | None:
        """The exception that the coroutine raised, if no caller has awaited the client."""
        return None if self._outcome is None or self._is_awaited else self._outcome[1]

    def done(self) -> bool:
        """Return whether the client has ended."""
        return self._outcome is not None

    def close(self) -> None:
        """Close the client's coroutine if it has not ended."""
        with suppress(RuntimeError):
            # The coroutine may ignore GeneratorExit.
            self._coroutine.close()

    def _wait_for(self, turn: Turn) -> None:
        turn.label = f"client {getattr(self._coroutine, '__qualname__', self._coroutine)}"
        turn.then = partial(self._continue, turn)
        self._simulator.driver.turns.append(turn)

    def _continue(self, turn: Turn) -> None:
        simulator = self._simulator
        simulator.driver.turns.remove(turn)
        before, simulator.running = simulator.running, self
        try:
            paused = self._coroutine.send(None)
        except StopIteration as stop:
            self._outcome = (cast(T, stop.value), None)
        except failures() as error:
            self._outcome = (None, error)
        else:
            if not isinstance(paused, Turn):
                self.close()
                raise SimulationError(_waits_for_something_else(self._coroutine))
            self._wait_for(paused)
        finally:
            simulator.running = before

    def __await__(self) -> Generator[Any, Any, T]:
        return self.result().__await__()

    async def result(self) -> T:
        """Wait until the client ends, and return its coroutine's result.

        Raises:
            BaseException: The coroutine raised it.
            StuckError: Nothing more can happen, and the client has not ended.
        """
        __tracebackhide__ = True
        self._is_awaited = True
        await self._simulator.until(self.done)
        assert self._outcome is not None
        value, error = self._outcome
        if error is not None:
            raise error
        return cast(T, value)


class Simulator:
    """Plays the server for an application; made by :func:`simulate`.

    Nothing waits in real time, and nothing is random: the same calls lead to the same run, message by message. The
    methods are coroutines, like those of a client, but complete without suspending the test.

    Attributes:
        app: The application.
        codec: The codec of the application's values, if it has one.
        driver: Runs the application.
        running: The started client whose code is running now.
        clients: The clients that were started.
    """

    def __init__(self, driver: Driver, journal_value_codec: JournalValueCodec | None = None) -> None:
        self.app = driver.app
        self.codec = journal_value_codec
        self.reset(driver)

    def reset(self, driver: Driver) -> None:
        """Start from scratch, with another driver for the same application.

        :meta private:
        """
        self.driver = driver
        self.running: SimulatedClient[Any] | None = None
        self.clients: list[SimulatedClient[Any]] = []
        self._sent: list[SimulatedInvocation[Any]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- calls --------------------------------------------------------------------------------------------------

    @overload
    async def call(
        self,
        handler: Callable[[Any, A], Awaitable[T]],
        arg: A,
        *,
        key: str | None = ...,
        idempotency_key: str | None = ...,
        headers: Mapping[str, str] | None = ...,
    ) -> Result[T]: ...
    @overload
    async def call(
        self,
        handler: Callable[[Any], Awaitable[T]],
        *,
        key: str | None = ...,
        idempotency_key: str | None = ...,
        headers: Mapping[str, str] | None = ...,
    ) -> Result[T]: ...
    @overload
    async def call(
        self,
        handler: str,
        arg: Any = ...,
        *,
        key: str | None = ...,
        idempotency_key: str | None = ...,
        headers: Mapping[str, str] | None = ...,
    ) -> Result[Any]: ...
    async def call(
        self,
        handler: HandlerRef,
        arg: Any = NOTHING,
        *,
        key: str | None = None,
        idempotency_key: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Result[Any]:
        """Call a handler, and let events happen until it ends; time passes as needed.

        Args:
            handler: The handler's function, or ``"Service/handler"``.
            arg: The handler's argument; omit it for a handler without one.
            key: The key, for a handler of a Virtual Object or a workflow.
            idempotency_key: Calls with the same idempotency key share one invocation.
            headers: The headers that the handler sees.

        Returns:
            The value, the journal, and how often bodies ran.

        Raises:
            restate.TerminalError: The handler failed with it.
            StuckError: Nothing more can happen, and the invocation has not ended.
            InvocationPausedError: The invocation failed too often.
            JournalMismatchError: A replay does not match the journal.
            SimulationError: There is no such handler, or the argument does not fit.
        """
        __tracebackhide__ = True
        before = len(self.driver.model.invocations)
        invocation, known = self._submit(handler, arg, key, idempotency_key, headers, timedelta(0))
        if invocation.info.workflow and len(self.driver.model.invocations) == before:
            raise TerminalError("the workflow method was already invoked", 409)
        return await _result_of(self, invocation, known)

    async def call_and_leave(self, handler: HandlerRef, arg: Any, key: str | None) -> Result[Any]:
        """Call a handler as a client that does nothing afterwards, so that the time of the answer does not matter.

        :meta private:
        """
        __tracebackhide__ = True
        invocation, known = self._submit(handler, arg, key, None, None, timedelta(0))
        return await _result_of(self, invocation, known, leaves=True)

    @overload
    async def send(
        self,
        handler: Callable[[Any, A], Awaitable[T]],
        arg: A,
        *,
        key: str | None = ...,
        idempotency_key: str | None = ...,
        headers: Mapping[str, str] | None = ...,
        delay: timedelta | float = ...,
    ) -> SimulatedInvocation[T]: ...
    @overload
    async def send(
        self,
        handler: Callable[[Any], Awaitable[T]],
        *,
        key: str | None = ...,
        idempotency_key: str | None = ...,
        headers: Mapping[str, str] | None = ...,
        delay: timedelta | float = ...,
    ) -> SimulatedInvocation[T]: ...
    @overload
    async def send(
        self,
        handler: str,
        arg: Any = ...,
        *,
        key: str | None = ...,
        idempotency_key: str | None = ...,
        headers: Mapping[str, str] | None = ...,
        delay: timedelta | float = ...,
    ) -> SimulatedInvocation[Any]: ...
    async def send(
        self,
        handler: HandlerRef,
        arg: Any = NOTHING,
        *,
        key: str | None = None,
        idempotency_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        delay: timedelta | float = timedelta(0),
    ) -> SimulatedInvocation[Any]:
        """Start a handler, now or after a delay, and run everything that needs no time to pass; see :meth:`call`."""
        __tracebackhide__ = True
        invocation, known = self._submit(handler, arg, key, idempotency_key, headers, delay)
        sent = SimulatedInvocation[Any](self, invocation, known)
        self._sent.append(sent)
        await self.settle()
        return sent

    async def resolve_awakeable(self, awakeable_id: str, value: Any = None) -> None:
        """Resolve an awakeable from outside, with a value that is encoded as JSON."""
        await self._complete_awakeable(awakeable_id, value={"content": json_of(value)})

    async def reject_awakeable(self, awakeable_id: str, reason: str, *, code: int = 500) -> None:
        """Reject an awakeable from outside: its waiter gets a ``TerminalError``."""
        await self._complete_awakeable(awakeable_id, failure=Failure(code, reason).fields())

    async def crash(self) -> None:
        """Kill the service's process, as ``kill -9`` does, and restart it; open attempts are retried."""
        self.driver.crash()
        await self.settle()

    async def disconnect(self) -> None:
        """Cut the connection of every attempt; the process survives, and the attempts are retried."""
        self.driver.disconnect()
        await self.settle()

    async def advance(self, by: timedelta | float) -> None:
        """Let time pass, in seconds or as a timedelta, and run everything that is due by then."""
        end = self.driver.model.now + to_timedelta("by", by, zero=True) // timedelta(milliseconds=1)
        self.driver.run_to(end)
        await self.settle()

    # --- inspection ---------------------------------------------------------------------------------------------

    @property
    def now(self) -> timedelta:
        """The virtual time since the start of the simulation."""
        return timedelta(milliseconds=self.driver.model.now - START_MS)

    @property
    def effects(self) -> Effects:
        """The number of times that the bodies of steps ran, in all invocations."""
        return Effects(self.driver.trace.bodies)

    @property
    def invocations(self) -> list[SimulatedInvocation[Any]]:
        """All invocations, oldest first, including those that handlers made by calling each other."""
        return [SimulatedInvocation(self, each, None) for each in self.driver.model.invocations.values()]

    def state(self, service: str, key: str) -> dict[str, Any]:
        """Return the state of a key of a Virtual Object or workflow; values that are JSON are decoded."""
        keyed = sorted({info.target[0] for info in self.driver.model.manifest.handlers.values() if info.keyed})
        if service not in keyed:
            known = ", ".join(keyed) or "none"
            raise SimulationError(f"there is no Virtual Object or workflow {service!r}; there are {known}.")
        place = self.driver.model.objects.get((service, key, None))
        return {name.decode(): decoded(value) for name, value in (place.state if place else {}).items()}

    def timeline(self) -> str:
        """Return all events so far, line by line."""
        return timeline(self.driver)

    # --- running ------------------------------------------------------------------------------------------------

    async def settle(self) -> None:
        """Run everything that needs no time to pass; under :func:`explore`, any part of it, or more."""
        await self.turn(Turn(_always))

    async def turn(self, turn: Turn) -> bool:
        """Let events happen until it is the caller's turn; return False if nothing more can happen before.

        :meta private:
        """
        if self.running is not None:
            return await turn
        return self.driver.wait_for(turn)

    async def until(
        self, condition: Callable[[], object], *, invocation: SimulatedInvocation[Any] | None = None
    ) -> None:
        """Let events happen until a condition holds; time passes as needed.

        Under :func:`explore`, an invocation may end first, for example because it was cancelled. Then the scenario ends
        with the invocation's outcome.

        Args:
            condition: Checked whenever nothing can run by itself.
            invocation: Stop waiting as soon as this invocation ends. If omitted, a failed invocation still ends the
                scenario, provided that it is the only one that the client has sent.

        Raises:
            restate.TerminalError: The invocation failed with it before the condition held.
            InvocationEndedError: The invocation returned before the condition held.
            StuckError: Nothing more can happen, and the condition does not hold.

        Example:
            >>> import restate, restate_steps
            >>> shop = restate.Service("Shop")
            >>> @shop.handler()
            ... async def checkout(ctx: restate.Context, item: str) -> str:
            ...     await ctx.run_typed("reserve", lambda: None)
            ...     return await ctx.awakeable(type_hint=str)[1]
            >>> async def pays_after_the_reservation(sim: Simulator) -> str:
            ...     order = await sim.send(checkout, "tea")
            ...     await sim.until(lambda: order.effects["reserve"])
            ...     await sim.resolve_awakeable(await sim.awakeable(order), "paid")
            ...     return (await order.result()).value
            >>> with simulate(restate_steps.app([shop])) as sim:
            ...     sim.run(pays_after_the_reservation(sim))
            'paid'
        """
        __tracebackhide__ = True

        def ended() -> bool:
            return invocation is not None and invocation.outcome is not None

        if await self.turn(Turn(lambda: bool(condition()) or ended(), first=True)) and (not ended() or condition()):
            return
        raise_if_out_of_time(self.driver)
        if invocation is None and len(self._sent) == 1 and (only := self._sent[0].outcome) and only.kind == "failure":
            await self._sent[0].result()
        if invocation is not None and (invocation.outcome is not None or invocation.status == "paused"):
            result = await invocation.result()
            raise InvocationEndedError(f"{invocation!r} has ended before the condition held", result.value)
        raise StuckError(f"the condition does not hold, and nothing more can happen:\n{open_waits(self.driver)}")

    async def awakeable(self, invocation: SimulatedInvocation[Any], n: int = 0) -> str:
        """Wait until an invocation has made an awakeable, and return the awakeable's id; time passes as needed.

        Args:
            invocation: The invocation.
            n: The number of the awakeable, counted from 0.

        Returns:
            The id, for :meth:`resolve_awakeable` or :meth:`reject_awakeable`.

        Raises:
            restate.TerminalError: The invocation failed with it first, for example because it was cancelled.
            InvocationEndedError: The invocation returned first.
            InvocationPausedError: The invocation failed too often first.
            StuckError: Nothing more can happen.

        Example:
            >>> import restate, restate_steps
            >>> shop = restate.Service("Shop")
            >>> @shop.handler()
            ... async def pay(ctx: restate.Context, amount: int) -> str:
            ...     await ctx.sleep(timedelta(days=1))
            ...     return f"{amount} {await ctx.awakeable(type_hint=str)[1]}"
            >>> async with simulate(restate_steps.app([shop])) as sim:
            ...     order = await sim.send(pay, 7)
            ...     await sim.resolve_awakeable(await sim.awakeable(order), "paid")
            ...     print((await order.result()).value)
            7 paid
        """
        __tracebackhide__ = True

        def made() -> bool:
            return len(invocation.awakeables) > n

        try:
            await self.until(lambda: made() or invocation.status in ("completed", "paused"))
        except StuckError:
            raise StuckError(
                f"{invocation!r} has not made awakeable {n}, and nothing more can happen:\n{open_waits(self.driver)}"
            ) from None
        if not made():
            result = await invocation.result()
            raise InvocationEndedError(f"{invocation!r} has ended without awakeable {n}", result.value)
        return invocation.awakeables[n]

    def start(self, coroutine: Coroutine[Any, Any, T]) -> SimulatedClient[T]:
        """Start another client, which runs concurrently with the caller.

        Args:
            coroutine: The client's actions; it may await only this simulator.

        Returns:
            The client; await it for the coroutine's result.

        Example:
            >>> import restate, restate_steps
            >>> counter = restate.VirtualObject("Counter")
            >>> @counter.handler()
            ... async def add(ctx: restate.ObjectContext, by: int) -> int:
            ...     total = (await ctx.get("total", type_hint=int) or 0) + by
            ...     ctx.set("total", total)
            ...     return total
            >>> async def two_clients(sim: Simulator) -> list[int]:
            ...     clients = [sim.start(sim.call(add, by, key="a")) for by in (1, 2)]
            ...     return [(await client).value for client in clients]
            >>> report = explore(restate_steps.app([counter]), scenario=two_clients)
            >>> report.assert_replay_safe()
            >>> sorted(outcome.value for outcome, _ in report.outcomes)
            [[1, 3], [3, 2]]
        """
        client = SimulatedClient(self, coroutine)
        self.clients.append(client)
        return client

    async def run_until_idle(self) -> None:
        """Run until nothing more can happen, however long it takes in virtual time."""
        self.driver.run(lambda: False)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine that awaits only this simulator, in a plain function without an event loop.

        Args:
            coroutine: The coroutine, such as that of :meth:`call`.

        Returns:
            The coroutine's result.

        Raises:
            SimulationError: The coroutine awaits something else.

        Example:
            >>> import restate, restate_steps
            >>> greeter = restate.Service("Greeter")
            >>> @greeter.handler()
            ... async def greet(ctx: restate.Context, name: str) -> str:
            ...     return f"hello {name}"
            >>> with simulate(restate_steps.app([greeter])) as simulator:
            ...     simulator.run(simulator.call(greet, "Ada")).value
            'hello Ada'
        """
        __tracebackhide__ = True
        if not isinstance(coroutine, Coroutine):
            raise SimulationError(f"run needs a coroutine, such as sim.call(...), not {coroutine!r}.")
        try:
            coroutine.send(None)
        except StopIteration as stop:
            return cast(T, stop.value)
        except RuntimeError as error:
            # asyncio raises this without an event loop; with one, the coroutine would have suspended, as below.
            if "no running event loop" not in str(error):
                raise
        finally:
            coroutine.close()
        raise SimulationError(_waits_for_something_else(coroutine))

    def close(self) -> None:
        """Stop everything that is still running."""
        for client in self.clients:
            client.close()
        self.driver.close()

    def _submit(
        self,
        handler: HandlerRef,
        arg: Any,
        key: str | None,
        idempotency_key: str | None,
        headers: Mapping[str, str] | None,
        delay: timedelta | float,
    ) -> tuple[Invocation, Handler[Any, Any] | None]:
        if not isinstance(key, str | None):
            raise SimulationError(f"a key must be a string, not {key!r}.")
        late = to_timedelta("delay", delay, zero=True)
        target, known = resolve(handler, key)
        info = self._info_of(target)
        body = encoded(target, known, arg)
        if (reason := info.refusal(body, idempotency_key)) is not None:
            raise SimulationError(f"a server's ingress rejects this call of {target} with 400: {reason}.")
        if body and self.codec is not None:
            body = self.codec.encode(body)
        invocation = self.driver.model.submit(
            target,
            body,
            headers=tuple((headers or {}).items()),
            idempotency_key=idempotency_key,
            at=self.driver.model.now + late // timedelta(milliseconds=1) if late else 0,
        )
        return invocation, known

    def _info_of(self, target: Target) -> HandlerInfo:
        try:
            info = self.driver.model.manifest[target]
        except UnknownHandlerError as error:
            raise SimulationError(str(error)) from None
        if info.keyed and target.key is None:
            raise SimulationError(f"{target.service}/{target.handler} needs a key. Pass key=...")
        return info

    async def _complete_awakeable(self, awakeable_id: str, **outcome: Any) -> None:
        try:
            self.driver.model.complete_awakeable(awakeable_id, **outcome)
        except (ValueError, LookupError) as error:
            raise SimulationError(str(error)) from None
        await self.settle()


def simulate(
    app: ASGIApp,
    *,
    version: int = 6,
    mode: Mode = "bidirectional",
    always_replay: bool = False,
    disable_retries: bool = False,
    journal_value_codec: JournalValueCodec | None = None,
    seed: int = 0,
) -> Simulator:
    """Simulate the server for an application, in-process and in virtual time.

    The application, its contexts and the SDK's state machine are the real ones; only the server's end of the connection
    is simulated. A handler that sleeps for a month is tested in milliseconds.

    Args:
        app: The application, as ``restate_steps.app(...)`` returns it. All services that call each other must be in it.
        version: The version of the service protocol, 6 or 7.
        mode: ``"bidirectional"`` as over HTTP/2, or ``"request_response"`` as over HTTP/1.1 and on Lambda, where
            a handler is suspended at every wait.
        always_replay: Suspend handlers at every wait, so that each continues by replay.
        disable_retries: End an invocation at the first failed attempt, so that a bug fails a test immediately.
        journal_value_codec: The codec of the application, if it has one: clients use it for arguments and answers.
        seed: The seed from which the random seeds of invocations are made.

    Returns:
        The simulator, for use with ``async with`` or ``with``.

    Raises:
        TypeError: ``app`` is not a Restate application.

    Example:
        >>> import restate, restate_steps
        >>> shop = restate.Service("Shop")
        >>> @shop.handler()
        ... async def checkout(ctx: restate.Context, item: str) -> str:
        ...     return await ctx.run_typed("charge", lambda: f"paid for {item}")
        >>> async def test_checkout() -> None:
        ...     async with simulate(restate_steps.app([shop])) as sim:
        ...         result = await sim.call(checkout, "tea")
        ...         print(result.value, result.journal.names, result.effects["charge"])
        >>> await test_checkout()
        paid for tea ['charge'] 1
    """
    driver = Driver(
        app,
        read_manifest(app),
        schedule=Schedule(always_replay=always_replay),
        version=version,
        mode=mode,
        seed=seed,
        disable_retries=disable_retries,
    )
    return Simulator(driver, journal_value_codec)


def _waits_for_something_else(coroutine: Any) -> str:
    return (
        f"{getattr(coroutine, '__qualname__', coroutine)} waits for something that is not the simulator. A client can "
        "await only the simulator's own coroutines. Move code that needs an event loop into a handler."
    )


def failures() -> tuple[type[BaseException], ...]:
    """Return the exceptions that fail a test: ``except Exception`` would not catch pytest's own."""
    outcomes: Any = sys.modules.get("_pytest.outcomes")
    return (Exception,) if outcomes is None else (Exception, outcomes.Failed)


def _always() -> bool:
    return True


async def _result_of(
    simulator: Simulator, invocation: Invocation, handler: Handler[Any, Any] | None, *, leaves: bool = False
) -> Result[Any]:
    """Let events happen until an invocation has ended; see :meth:`Simulator.call`."""
    # Hide this frame from pytest's tracebacks: the test's own line is the relevant one.
    __tracebackhide__ = True
    driver = simulator.driver
    comes_late = invocation.ended

    def ended() -> bool:
        return invocation.ended or invocation.status is InvocationStatus.PAUSED

    # The client may act on the answer later than the answer arrives.
    if not (driver.run(ended) if leaves else await simulator.turn(Turn(ended, first=True))):
        raise_if_out_of_time(driver)
        if (cause := paused_below(driver, invocation)) is not None:
            error = paused_error(cause)
            error.add_note(f"{invocation.target} waits for it.")
            raise error
        raise StuckError(why_stuck(driver, invocation))
    if invocation.status is InvocationStatus.PAUSED:
        raise paused_error(invocation)
    failure = invocation.failure if comes_late else invocation.removal or invocation.failure
    if failure is not None:
        raise TerminalError(failure.message, failure.code, metadata=dict(failure.metadata) or None)
    return Result(
        value=await output_of(invocation.output or b"", handler, simulator.codec),
        journal=_journal_of(driver, invocation),
        effects=SimulatedInvocation(simulator, invocation, None).effects,
        attempts=invocation.attempts,
        invocation_id=invocation.id,
    )


def _journal_of(driver: Driver, invocation: Invocation) -> Journal:
    """Return the journal of an invocation so far."""
    origin = Origin(
        target=invocation.target,
        invocation_id=invocation.id,
        raw_id=invocation.raw_id,
        protocol=driver.model.version,
        random_seed=invocation.seed,
        idempotency_key=invocation.idempotency_key,
    )
    return Journal(invocation.journal, origin)
