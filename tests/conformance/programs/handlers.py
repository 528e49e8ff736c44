"""The services that interpret programs, with the SDK alone: nothing of ``restate_steps`` is used.

An invocation is told which node of which program it is, and looks the node up in :data:`PLAYS`, so that journals stay
short. It publishes there what only it knows: its id, the ids of its awakeables, and that it waits for somebody.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import restate
from restate import RunOptions, TerminalError
from restate.serde import BytesSerde

from tests.conformance.programs.program import KINDS, Op, Program

__all__ = ["PLAYS", "Play", "app", "argument"]

HOUR = timedelta(hours=1)
SOON = timedelta(milliseconds=10)


@dataclass
class Play:
    """One program that is being played.

    Attributes:
        program: The program.
        token: Tells its keys from those of other plays on the same server.
        marks: What invocations have published, for the client.
        names: How ids are called where two plays are compared.
        counts: How often code ran that fails for the first times.
        gone: The ids of invocations that are cancelled before they begin: a server forgets them.
    """

    program: Program
    token: str
    marks: dict[str, Any] = field(default_factory=dict[str, Any])
    names: dict[str, str] = field(default_factory=dict[str, str])
    counts: Counter[str] = field(default_factory=Counter[str])
    gone: set[str] = field(default_factory=set[str])

    def key(self, key: str | None) -> str | None:
        """Return the key of a node as it is on the server."""
        return None if key is None else f"{self.token}-{key}"

    def number(self, invocation_id: str) -> int:
        """Return which node of the program an invocation is."""
        return int(self.names[invocation_id].removeprefix("inv(").removesuffix(")"))

    def fails(self, what: str, times: int) -> bool:
        """Return whether something fails once more that fails so many times."""
        self.counts[what] += 1
        return self.counts[what] <= times


PLAYS: dict[str, Play] = {}
"""The plays in this process, by token."""

_RETRIES = restate.InvocationRetryPolicy(initial_interval=SOON, exponentiation_factor=1.0)
service = restate.Service("Programs", invocation_retry_policy=_RETRIES)
eager = restate.VirtualObject("EagerPrograms", invocation_retry_policy=_RETRIES)
lazy = restate.VirtualObject("LazyPrograms", invocation_retry_policy=_RETRIES, enable_lazy_state=True)
flow = restate.Workflow("FlowPrograms", invocation_retry_policy=_RETRIES)
helper = restate.Service("ProgramHelper")


def app() -> Any:
    """Return the application with all services."""
    return restate.app([service, eager, lazy, flow, helper])


def argument(play: Play, number: int, **given: str) -> dict[str, Any]:
    """Return the argument that makes an invocation a node of a program."""
    return {"play": play.token, "node": number, **given}


async def interpret(ctx: Any, arg: dict[str, Any]) -> list[Any]:
    """Interpret a node, and return what it has seen."""
    play = PLAYS[arg["play"]]
    play.names[ctx.request().id] = f"inv({arg['node']})"
    interpreter = Interpreter(ctx, play, arg)
    await interpreter.body(play.program["nodes"][arg["node"]]["body"])
    return interpreter.seen


@service.handler(name="run")
async def service_run(ctx: restate.Context, arg: dict[str, Any]) -> list[Any]:
    return await interpret(ctx, arg)


@eager.handler(name="run")
async def eager_run(ctx: restate.ObjectContext, arg: dict[str, Any]) -> list[Any]:
    return await interpret(ctx, arg)


@eager.handler(name="look", kind="shared")
async def eager_look(ctx: restate.ObjectSharedContext, arg: dict[str, Any]) -> list[Any]:
    return await interpret(ctx, arg)


@lazy.handler(name="run")
async def lazy_run(ctx: restate.ObjectContext, arg: dict[str, Any]) -> list[Any]:
    return await interpret(ctx, arg)


@lazy.handler(name="look", kind="shared")
async def lazy_look(ctx: restate.ObjectSharedContext, arg: dict[str, Any]) -> list[Any]:
    return await interpret(ctx, arg)


@flow.main(name="run")
async def flow_run(ctx: restate.WorkflowContext, arg: dict[str, Any]) -> list[Any]:
    return await interpret(ctx, arg)


@flow.handler(name="look")
async def flow_look(ctx: restate.WorkflowSharedContext, arg: dict[str, Any]) -> list[Any]:
    return await interpret(ctx, arg)


@helper.handler(name="signal")
async def helper_signal(ctx: restate.Context, arg: dict[str, Any]) -> None:
    """Send a signal for the client, who cannot."""
    _send_signal(ctx, arg["to"], arg["name"], arg["outcome"])


HANDLERS = {
    "service": service_run,
    "object": eager_run,
    "object-shared": eager_look,
    "lazy": lazy_run,
    "lazy-shared": lazy_look,
    "workflow": flow_run,
    "workflow-shared": flow_look,
}
assert HANDLERS.keys() == KINDS.keys()


class Interpreter:
    """Does the operations of one node, in one attempt.

    Attributes:
        seen: What it has read so far.
    """

    def __init__(self, ctx: Any, play: Play, arg: dict[str, Any]) -> None:
        self.ctx, self.play, self.arg = ctx, play, arg
        self.seen: list[Any] = []
        self._awakeables = 0

    async def body(self, ops: list[Op]) -> None:
        """Do operations, one after the other."""
        for name, *operands in ops:
            await getattr(self, f"do_{name}")(*operands)

    # --- state ---

    async def do_set(self, key: str, value: Any) -> None:
        self.ctx.set(key, value)

    async def do_get(self, key: str) -> None:
        found = await self.ctx.get(key, serde=BytesSerde())
        self.seen.append(None if found is None else found.decode())

    async def do_set_raw(self, key: str, value: str) -> None:
        self.ctx.set(key, value.encode(), serde=BytesSerde())

    async def do_keys(self) -> None:
        self.seen.append(sorted(await self.ctx.state_keys()))

    async def do_clear(self, key: str) -> None:
        self.ctx.clear(key)

    async def do_clear_all(self) -> None:
        self.ctx.clear_all()

    # --- steps, time, failures ---

    async def do_run(self, name: str, value: Any) -> None:
        self.seen.append(await self._run(name, value))

    def _run(self, name: str, value: Any) -> Any:
        async def body() -> Any:
            return value

        return self.ctx.run_typed(name, body)

    async def do_run_sync(self, name: str, value: Any) -> None:
        self.seen.append(await self.ctx.run_typed(name, lambda: value))

    async def do_refuse(self, name: str, code: int, message: str) -> None:
        self.seen.append(await self._refuse(name, code, message))

    def _refuse(self, name: str, code: int, message: str) -> Any:
        async def body() -> None:
            raise TerminalError(message, code, metadata={"step": name})

        return self.ctx.run_typed(name, body)

    async def do_retried(self, name: str, times: int, value: Any) -> None:
        async def body() -> Any:
            if self._fails(name, times):
                raise ValueError(f"{name} fails")
            return value

        options: RunOptions[Any] = RunOptions(initial_retry_interval=SOON, retry_interval_factor=1.0)
        self.seen.append(await self.ctx.run_typed(name, body, options))

    async def do_exhausted(self, name: str, times: int) -> None:
        async def body() -> None:
            raise ValueError(f"{name} fails")

        options: RunOptions[None] = RunOptions(
            initial_retry_interval=SOON, retry_interval_factor=1.0, max_attempts=times
        )
        self.seen.append(await self.ctx.run_typed(name, body, options))

    async def do_crash(self, name: str, times: int) -> None:
        if self._fails(name, times):
            raise ValueError(f"{name} fails")

    def _fails(self, name: str, times: int) -> bool:
        return self.play.fails(f"{self.arg['node']} {name}", times)

    async def do_sleep(self, milliseconds: int) -> None:
        await self._sleep(milliseconds)

    def _sleep(self, milliseconds: int) -> Any:
        return self.ctx.sleep(timedelta(milliseconds=milliseconds))

    async def do_fail(self, code: int, message: str) -> None:
        raise TerminalError(message, code, metadata={"node": str(self.arg["node"])})

    async def do_try(self, ops: list[Op]) -> None:
        try:
            await self.body(ops)
        except TerminalError as error:
            self.seen.append(_failure(error))

    # --- calls ---

    async def do_call(self, number: int, options: dict[str, Any]) -> None:
        future = self._call(number, options)
        if options.get("id"):
            self.seen.append(await future.invocation_id())
        try:
            self.seen.append(await future)
        except TerminalError:
            if options.get("join"):
                # Awaited again, the future would raise what it has raised before.
                attached = self.ctx.attach_invocation(await future.invocation_id(), type_hint=list[Any])
                self.seen.append(await _outcome(attached))
            raise

    async def do_call_twice(self, number: int, options: dict[str, Any]) -> None:
        futures = [self._call(number, options) for _ in range(2)]
        for future in futures:
            self.seen += [await future.invocation_id(), await _outcome(future)]

    async def do_send_and_call(self, number: int, options: dict[str, Any]) -> None:
        """Send, and call with the same idempotency key."""
        handle = self._send(number, options)
        future = self._call(number, options)
        self.seen += [await handle.invocation_id(), await future.invocation_id(), await _outcome(future)]

    async def do_afterwards(self, number: int, options: dict[str, Any]) -> None:
        """Call, and act on what was called when it has ended."""
        future = self._call(number, {})
        self.seen += [await future.invocation_id(), await _outcome(future)]
        if options.get("signal"):
            self.ctx.resolve_signal(await future.invocation_id(), "late", "too late")
        if options.get("cancel"):
            await future.cancel_invocation()
        # It answers when what was sent before has arrived.
        self.seen.append(await _outcome(self.ctx.attach_invocation(await future.invocation_id(), type_hint=list[Any])))

    async def do_send(self, number: int, options: dict[str, Any]) -> None:
        handle = self._send(number, options)
        if options.get("id"):
            self.seen.append(await handle.invocation_id())

    async def do_attach(self, number: int, options: dict[str, Any]) -> None:
        sent = await self._send(number, options).invocation_id()
        await self.body(options.get("between", []))
        self.seen.append(await self.ctx.attach_invocation(sent, type_hint=list[Any]))

    def _call(self, number: int, options: dict[str, Any], **given: str) -> Any:
        return self._start("call", number, options, given)

    def _send(self, number: int, options: dict[str, Any], **given: str) -> Any:
        delay = options.get("delay")
        return self._start(
            "send", number, options, given, send_delay=None if delay is None else timedelta(milliseconds=delay)
        )

    def _start(self, verb: str, number: int, options: dict[str, Any], given: dict[str, str], **more: Any) -> Any:
        node = self.play.program["nodes"][number]
        if options.get("refs"):
            given = {name: self.arg[name] for name in ("ready",) if name in self.arg} | given
        key = self.play.key(node["key"])
        kind = "object" if node["kind"].startswith("lazy") else node["kind"].removesuffix("-shared")
        start: Callable[..., Any] = getattr(self.ctx, f"{kind}_{verb}")
        if "idempotency_key" in options:
            more["idempotency_key"] = self.play.key(options["idempotency_key"])
        if "headers" in options:
            more["headers"] = options["headers"]
        target = (HANDLERS[node["kind"]],) if key is None else (HANDLERS[node["kind"]], key)
        return start(*target, argument(self.play, number, **given), **more)

    # --- cancelling, and being cancelled ---

    async def do_cancel_call(self, number: int, options: dict[str, Any]) -> None:
        ready, at = self._awakeable()
        future = self._call(number, options, ready=ready)
        await at
        await future.cancel_invocation()
        self.seen.append(await _outcome(future))

    async def do_cancel_send(self, number: int, options: dict[str, Any]) -> None:
        ready, at = self._awakeable()
        handle = self._send(number, options, ready=ready)
        await at
        await handle.cancel_invocation()
        attached = self.ctx.attach_invocation(await handle.invocation_id(), type_hint=list[Any])
        self.seen.append(await _outcome(attached))

    async def do_cancel_unstarted(self, number: int, how: str) -> None:
        """Cancel what waits for its time, or for the key that is held here."""
        if how == "called":
            future = self._call(number, {})
            known = await future.invocation_id()
        else:
            future = None
            known = await self._send(number, {"delay": 3_600_000} if how == "scheduled" else {}).invocation_id()
        self.play.names[known] = f"inv({number})"
        self.play.gone.add(known)
        self.ctx.cancel_invocation(known)
        if future is not None:
            self.seen.append(await _outcome(future))
        self.seen.append(await _outcome(self.ctx.attach_invocation(known, type_hint=list[Any])))

    async def do_signal_queued(self, number: int, name: str, outcome: list[Any]) -> None:
        """Send a signal to what waits for the key that is held here."""
        sent = self._send(number, {})
        _send_signal(self.ctx, await sent.invocation_id(), name, outcome)
        # What is sent arrives in order, so the first signal has arrived when this one has.
        await self.do_own_signal(name, ["value", "sent"])

    async def do_cancel_self(self, how: str) -> None:
        self.ctx.cancel_invocation(self.ctx.request().id)
        await self.do_block(how)

    async def do_block_queued(self, number: int) -> None:
        """Call another one for the key that is held here, which waits forever."""
        future = self._call(number, {})
        known = await future.invocation_id()
        self.play.names[known] = f"inv({number})"
        self.play.gone.add(known)
        self._say_ready()
        try:
            await future
        except TerminalError:
            # The key must not be free before the cancellation has come to the one that waits for it.
            self.seen.append(await _outcome(self.ctx.attach_invocation(known, type_hint=list[Any])))
            raise

    def _say_ready(self) -> None:
        if "ready" in self.arg:
            self.ctx.resolve_awakeable(self.arg["ready"], "ready")
        self.play.marks[f"block {self.arg['node']}"] = self.ctx.request().id

    async def do_block(self, how: str) -> None:
        """Wait forever, after saying so."""
        waits = [self._never(part) for part in how.split("+")]
        self._say_ready()
        if len(waits) == 1:
            await waits[0]
        elif how.startswith("sleep"):
            await restate.gather(*waits)
        else:
            await restate.select(**{f"wait{number}": wait for number, wait in enumerate(waits)})

    def _never(self, what: str) -> Any:
        if what == "sleep":
            return self.ctx.sleep(HOUR)
        if what == "signal":
            return self.ctx.signal("never")
        if what == "promise":
            return self.ctx.promise("never").value()
        return self._awakeable()[1]

    # --- awakeables, signals, promises ---

    def _awakeable(self) -> tuple[str, Any]:
        name, future = self.ctx.awakeable()
        self._awakeables += 1
        self.play.names[name] = f"awakeable({self.arg['node']}, {self._awakeables})"
        return name, future

    async def do_awakeable(self, mark: str, options: dict[str, Any]) -> None:
        """Wait for an awakeable that the client completes."""
        name, future = self._awakeable()
        self.play.marks[mark] = name
        await self.body(options.get("between", []))
        self.seen.append(await future)

    async def do_awakeable_by(self, number: int, options: dict[str, Any]) -> None:
        """Wait for an awakeable that another invocation completes."""
        name, future = self._awakeable()
        await self._asked(number, options, future, awakeable=name)

    async def do_signal(self, name: str, mark: str, options: dict[str, Any]) -> None:
        """Wait for a signal that the client sends."""
        self.play.marks[mark] = self.ctx.request().id
        await self.body(options.get("between", []))
        self.seen.append(await self.ctx.signal(name))

    async def do_signal_by(self, number: int, name: str, options: dict[str, Any]) -> None:
        """Wait for a signal that another invocation sends."""
        await self._asked(number, options, self.ctx.signal(name), signal=self.ctx.request().id)

    async def _asked(self, number: int, options: dict[str, Any], future: Any, **given: str) -> None:
        call = None
        if options.get("sent"):
            self._send(number, options, **given)
        else:
            call = self._call(number, options, **given)
        if options.get("call_first") and call is not None:
            self.seen.append(await call)
        await self.body(options.get("between", []))
        outcome = await _outcome_or_error(future)
        if call is not None and not options.get("call_first"):
            # Before a failure as well, or its result would come after the end now and then.
            self.seen.append(await call)
        if isinstance(outcome, TerminalError):
            raise outcome
        self.seen.append(outcome)

    async def do_complete(self, outcome: list[Any]) -> None:
        self._complete(self.arg["awakeable"], outcome)

    async def do_own_awakeable(self, outcome: list[Any]) -> None:
        """Complete an awakeable of its own, and wait for it."""
        name, future = self._awakeable()
        self._complete(name, outcome)
        self.seen.append(await future)

    async def do_own_signal(self, name: str, outcome: list[Any]) -> None:
        """Send a signal to itself, and wait for it."""
        _send_signal(self.ctx, self.ctx.request().id, name, outcome)
        self.seen.append(await self.ctx.signal(name))

    def _complete(self, awakeable_id: str, outcome: list[Any]) -> None:
        if outcome[0] == "value":
            self.ctx.resolve_awakeable(awakeable_id, outcome[1])
        else:
            self.ctx.reject_awakeable(awakeable_id, outcome[2], outcome[1])

    async def do_send_signal(self, name: str, outcome: list[Any]) -> None:
        _send_signal(self.ctx, self.arg["signal"], name, outcome)

    async def do_promise(self, name: str, mark: str | None = None) -> None:
        if mark is not None:
            self.play.marks[mark] = True
        self.seen.append(await self.ctx.promise(name).value())

    async def do_peek(self, name: str) -> None:
        self.seen.append(await self.ctx.promise(name).peek())

    async def do_resolve(self, name: str, value: Any) -> None:
        await self.ctx.promise(name).resolve(value)

    async def do_reject(self, name: str, code: int, message: str) -> None:
        await self.ctx.promise(name).reject(message, code)

    # --- several at once ---

    def _begin(self, op: Op) -> Any:
        """Issue an operation without waiting for it."""
        name, *operands = op
        if name == "never":
            return self._never(*operands)
        if name == "awakeable":
            known, future = self._awakeable()
            self.play.marks[operands[0]] = known
            return future
        if name == "promise":
            self.play.marks[operands[0]] = True
            return self.ctx.promise(*operands).value()
        begin: Callable[..., Any] = getattr(self, f"_{name}")
        return begin(*operands)

    async def do_gather(self, ops: list[Op]) -> None:
        futures = [self._begin(op) for op in ops]
        await restate.gather(*futures)
        self.seen += [await _outcome(future) for future in futures]

    async def do_as_completed(self, ops: list[Op]) -> None:
        futures = [self._begin(op) for op in ops]
        found = {futures.index(future): await _outcome(future) async for future in restate.as_completed(*futures)}
        self.seen += [found[index] for index in sorted(found)]

    async def do_select(self, ops: list[Op]) -> None:
        futures = {f"{op[0]}{index}": self._begin(op) for index, op in enumerate(ops)}
        self.seen += await restate.select(**futures)

    async def do_wait_completed(self, ops: list[Op]) -> None:
        futures = [self._begin(op) for op in ops]
        done, waiting = await restate.wait_completed(*futures)
        self.seen.append([futures.index(future) for future in waiting])
        self.seen += [await _outcome(future) for future in done]


async def _outcome(future: Awaitable[Any]) -> Any:
    """Return a value, or how it failed."""
    found = await _outcome_or_error(future)
    return _failure(found) if isinstance(found, TerminalError) else found


async def _outcome_or_error(future: Awaitable[Any]) -> Any:
    try:
        return await future
    except TerminalError as error:
        return error


def _failure(error: TerminalError) -> str:
    metadata = getattr(error, "metadata", None)
    return f"{error.status_code} {error.message}" + (f" {metadata}" if metadata else "")


def _send_signal(ctx: Any, to: str, name: str, outcome: list[Any]) -> None:
    if outcome[0] == "value":
        ctx.resolve_signal(to, name, outcome[1])
    else:
        ctx.reject_signal(to, name, outcome[2], outcome[1])
