"""What the scenarios do from outside: each is driven once, the same against the server and against the simulator.

What plays the server has to be a :class:`World`. Nothing else is asked of it, but that the handlers of
:mod:`tests.conformance.services` run in the same process and on the same event loop, so that they can meet the scenario
at the board.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from tests.conformance.recording import UNKNOWN
from tests.conformance.services import board

__all__ = ["MODES", "SCENARIOS", "VARIANTS", "Answer", "Scenario", "World"]

MODES = ("normal", "replay", "http1")
VARIANTS = (*(f"v{version}-{mode}" for version in (6, 7) for mode in MODES), "v7-vqueues")
"""Scopes and limits need a feature of the server that is an experiment, and changes how it schedules."""


class Answer(NamedTuple):
    """What a client was answered: the HTTP status and the body."""

    status: int
    body: bytes


class World(Protocol):
    """A server, as its clients and its operators see it."""

    async def call(
        self,
        service: str,
        handler: str,
        arg: bytes = b"",
        *,
        key: str | None = None,
        idempotency_key: str | None = None,
    ) -> Answer:
        """Call a handler and wait for its answer."""
        ...

    async def send(
        self,
        service: str,
        handler: str,
        arg: bytes = b"",
        *,
        key: str | None = None,
        idempotency_key: str | None = None,
        delay: int | None = None,
    ) -> str:
        """Start a handler, after a delay in milliseconds if there is one, and return the id of the invocation."""
        ...

    async def attach(self, invocation_id: str) -> Answer:
        """Wait for an invocation that was started before."""
        ...

    async def output(self, invocation_id: str) -> Answer:
        """Ask for the result of an invocation, without waiting."""
        ...

    async def resolve_awakeable(self, awakeable_id: str, value: bytes) -> Answer: ...

    async def reject_awakeable(self, awakeable_id: str, message: str) -> Answer: ...

    async def cancel(self, invocation_id: str) -> Answer: ...

    async def kill(self, invocation_id: str) -> Answer: ...

    async def resume(self, invocation_id: str) -> Answer: ...

    async def disconnect(self) -> None:
        """End every attempt that goes on, as a crash of the application would."""
        ...

    async def status(self, invocation_id: str) -> str:
        """Return ``running``, ``suspended``, ``backing-off``, ``paused``, ``pending``, ``scheduled``, ``completed``."""
        ...

    async def until(self, seen: Callable[[], Any]) -> Any:
        """Wait until something is true that is looked up on the board, and return it."""
        ...

    async def settle(self) -> None:
        """Wait until nothing happens any more by itself, but for sleeps of an hour."""
        ...


Drive = Callable[[World], Awaitable[None]]


@dataclass(frozen=True)
class Scenario:
    """One thing to do.

    Attributes:
        name: Its name, and that of its recordings.
        drive: What it does from outside.
        modes: The modes in which it makes sense.
        versions: The versions of the protocol in which it makes sense.
        loose: In which modes the order between the two sides of an attempt is a matter of chance (compare with
            :func:`tests.conformance.recording.sides`).
    """

    name: str
    drive: Drive
    modes: tuple[str, ...] = MODES
    versions: tuple[int, ...] = (6, 7)
    loose: tuple[str, ...] = ()

    def variants(self) -> tuple[str, ...]:
        """The variants it is recorded in."""
        return tuple(f"v{version}-{mode}" for version in self.versions for mode in self.modes)


SCENARIOS: dict[str, Scenario] = {}


def scenario(**options: Any) -> Callable[[Drive], Drive]:
    """Add a scenario."""

    def add(drive: Drive) -> Drive:
        name = drive.__name__
        SCENARIOS[name] = Scenario(name, drive, **options)
        return drive

    return add


def encoded(value: Any) -> bytes:
    """Encode an argument as the handlers expect it."""
    return json.dumps(value).encode()


# --- steps ------------------------------------------------------------------------------------------------------


def calls_only(name: str, service: str, handler: str, arg: Any = None, **options: Any) -> None:
    """Add a scenario that calls one handler and no more."""

    async def drive(world: World) -> None:
        await world.call(service, handler, b"" if arg is None else encoded(arg))

    SCENARIOS[name] = Scenario(name, drive, **options)


calls_only("none", "Steps", "none", "hello")
calls_only("nothing_in_or_out", "Steps", "nothing_in_or_out")
calls_only("bad_argument", "Steps", "none")
calls_only("step_one", "Steps", "one", "hello")
calls_only("step_three", "Steps", "three")
calls_only("step_binary_and_empty", "Steps", "binary_and_empty")
calls_only("step_sync", "Steps", "sync_step")
calls_only("step_terminal", "Steps", "terminal")
calls_only("step_terminal_caught", "Steps", "terminal_caught")
calls_only("step_retried_by_server", "Steps", "retried_by_server")
calls_only("step_retried_by_policy", "Steps", "retried_by_policy")
calls_only("step_exhausted", "Steps", "exhausted")
calls_only("step_retry_after", "Steps", "retry_after")
calls_only("handler_fails", "Steps", "handler_fails")
calls_only("handler_fails_at_once", "Steps", "handler_fails_at_once")
calls_only("handler_retry_after", "Steps", "handler_retry_after")
calls_only("handler_terminal", "Steps", "handler_terminal")
calls_only("mismatch_of_names", "Steps", "mismatch")
calls_only("mismatch_of_kinds", "Steps", "mismatch_of_kinds")
calls_only("unknown_service", "Nobody", "none")
calls_only("unknown_handler", "Steps", "nobody")


@scenario()
async def raw_bytes(world: World) -> None:
    await world.call("Steps", "raw", b"\x00\xff\x01")


async def open_in_order(world: World, handler: str) -> None:
    invocation = await world.send("Steps", handler)
    for name in ("b", "c", "a"):
        await published(world, f"at {name}")
    for name in ("b", "c", "a"):
        board.open(name)
        await world.settle()
    await world.attach(invocation)


@scenario()
async def gather_steps(world: World) -> None:
    await open_in_order(world, "gather_steps")


@scenario()
async def as_completed_steps(world: World) -> None:
    await open_in_order(world, "as_completed_steps")


@scenario()
async def gather_one_fails(world: World) -> None:
    invocation = await world.send("Steps", "one_of_two_fails")
    await world.until(lambda: board.published.get("at fine") and board.published.get("at flaky"))
    board.open("flaky")
    await world.settle()
    board.open("fine")
    await world.attach(invocation)


@scenario()
async def cut_in_step(world: World) -> None:
    """The connection is cut while a step runs; the next attempt runs it again."""
    invocation = await world.send("Steps", "lost")
    await world.until(lambda: board.published.get("at lost"))
    await world.disconnect()
    await world.until(lambda: board.published["at lost"] == 2)
    board.open("lost")
    await world.attach(invocation)


calls_only("progress_between_failures", "Steps", "progress")
calls_only("random_and_time", "Steps", "random_and_time")


# --- waits ------------------------------------------------------------------------------------------------------

calls_only("sleep", "Waits", "sleep")
calls_only("sleep_zero", "Waits", "sleep_zero")
calls_only("sleep_between_steps", "Waits", "step_sleep_step")
calls_only("sleep_two", "Waits", "two_sleeps")
calls_only("select_step_wins", "Waits", "step_wins")
calls_only("sleep_and_step", "Waits", "sleep_and_step")
calls_only("step_not_awaited", "Waits", "unawaited_step")


@scenario(modes=("normal",))
async def select_sleep_wins(world: World) -> None:
    """In the other modes an attempt that has a step running waits for it, so the sleep cannot win."""
    invocation = await world.send("Waits", "sleep_wins")
    await world.until(lambda: board.published.get("won"))
    await world.attach(invocation)


async def published(world: World, name: str) -> Any:
    return await world.until(lambda: board.published.get(name))


@scenario()
async def awakeable_resolved(world: World) -> None:
    invocation = await world.send("Waits", "awakeable")
    known = await published(world, "awakeable")
    await world.settle()
    await world.resolve_awakeable(known, b'"yes"')
    await world.attach(invocation)


@scenario()
async def awakeable_rejected(world: World) -> None:
    invocation = await world.send("Waits", "awakeable")
    known = await published(world, "awakeable")
    await world.settle()
    await world.reject_awakeable(known, "no")
    await world.attach(invocation)


@scenario()
async def awakeable_resolved_by_handler(world: World) -> None:
    invocation = await world.send("Waits", "awakeable")
    known = await published(world, "awakeable")
    await world.settle()
    await world.call("Waits", "complete_awakeable", encoded({"id": known, "value": "yes"}))
    await world.attach(invocation)


@scenario()
async def awakeable_rejected_by_handler(world: World) -> None:
    invocation = await world.send("Waits", "awakeable")
    known = await published(world, "awakeable")
    await world.settle()
    await world.call("Waits", "complete_awakeable", encoded({"id": known, "failure": "no"}))
    await world.attach(invocation)


@scenario()
async def awakeable_resolved_before_it_is_awaited(world: World) -> None:
    invocation = await world.send("Waits", "awakeable_early")
    known = await published(world, "awakeable")
    await published(world, "at step")
    await world.resolve_awakeable(known, b'"early"')
    await world.settle()
    board.open("step")
    await world.attach(invocation)


@scenario()
async def awakeable_resolved_twice(world: World) -> None:
    invocation = await world.send("Waits", "awakeable_early")
    known = await published(world, "awakeable")
    await published(world, "at step")
    await world.resolve_awakeable(known, b'"first"')
    await world.resolve_awakeable(known, b'"second"')
    await world.settle()
    board.open("step")
    await world.attach(invocation)


@scenario()
async def awakeable_resolved_after_the_end(world: World) -> None:
    invocation = await world.send("Waits", "awakeable_unused")
    known = await published(world, "awakeable")
    board.open("step")
    await world.attach(invocation)
    await world.resolve_awakeable(known, b'"late"')
    await world.settle()


@scenario()
async def awakeable_unknown(world: World) -> None:
    await world.resolve_awakeable("sign_1" + "A" * 32, b"1")
    await world.resolve_awakeable("prom_1" + "A" * 32, b"1")


async def resolve_in_order(world: World, handler: str, order: tuple[int, ...]) -> None:
    invocation = await world.send("Waits", handler)
    known = await published(world, "awakeables")
    await world.settle()
    for index in order:
        await world.resolve_awakeable(known[index], encoded(str(index)))
        await world.settle()
    await world.attach(invocation)


@scenario()
async def awakeables_as_completed(world: World) -> None:
    await resolve_in_order(world, "three_awakeables", (2, 0, 1))


@scenario()
async def awakeables_gathered(world: World) -> None:
    """Two of three are there: with V6 the handler is resumed at each, with V7 at the last."""
    await resolve_in_order(world, "all_awakeables", (2, 0, 1))


@scenario()
async def awakeables_all_of_first(world: World) -> None:
    await resolve_in_order(world, "nested", (0, 1, 2))


@scenario()
async def awakeables_all_of_first_other_order(world: World) -> None:
    await resolve_in_order(world, "nested", (2, 1))


@scenario()
async def awakeables_first_of_all(world: World) -> None:
    await resolve_in_order(world, "nested_other_way", (0, 1))


@scenario()
async def awakeables_first_of_all_other_order(world: World) -> None:
    await resolve_in_order(world, "nested_other_way", (0, 2))


@scenario()
async def signals(world: World) -> None:
    invocation = await world.send("Waits", "signal")
    await published(world, "signalled")
    await world.settle()
    await world.call("Waits", "send_signal", encoded({"id": invocation, "name": "go", "value": "went"}))
    await world.settle()
    await world.call("Waits", "send_signal", encoded({"id": invocation, "name": "stop", "failure": "stopped"}))
    await world.attach(invocation)


@scenario()
async def signal_early(world: World) -> None:
    """The second signal is there before anybody waits for it."""
    invocation = await world.send("Waits", "signal")
    await published(world, "signalled")
    await world.settle()
    await world.call("Waits", "send_signal", encoded({"id": invocation, "name": "stop", "value": "stopped"}))
    await world.settle()
    await world.call("Waits", "send_signal", encoded({"id": invocation, "name": "go", "value": "went"}))
    await world.attach(invocation)


@scenario()
async def signal_to_scheduled(world: World) -> None:
    """A signal to an invocation whose time has not come is lost."""
    scheduled = await world.send("Steps", "one", b'"hello"', delay=1000)
    await world.call("Waits", "send_signal", encoded({"id": scheduled, "name": "early", "value": "lost"}))
    await world.attach(scheduled)


@scenario(modes=("normal",))
async def signal_same_name_twice(world: World) -> None:
    """A suspended invocation that waits for a signal which it has had before is resumed for ever (see FINDINGS)."""
    invocation = await world.send("Waits", "same_signal_twice")
    await world.settle()
    for value in ("one", "two"):
        await world.call("Waits", "send_signal", encoded({"id": invocation, "name": "go", "value": value}))
        await world.settle()
    await world.attach(invocation)


# --- cancellation -----------------------------------------------------------------------------------------------


async def cancel_in(world: World, service: str, handler: str) -> None:
    invocation = await world.send(service, handler)
    await world.settle()
    await world.cancel(invocation)
    await world.attach(invocation)
    await world.settle()


@scenario()
async def cancel_in_sleep(world: World) -> None:
    await cancel_in(world, "Waits", "cancelled_in_sleep")


@scenario()
async def cancel_and_compensate(world: World) -> None:
    await cancel_in(world, "Waits", "cancelled_and_compensated")


@scenario()
async def cancel_in_awakeable(world: World) -> None:
    await cancel_in(world, "Waits", "awakeable")


@scenario()
async def cancel_in_gather(world: World) -> None:
    await cancel_in(world, "Waits", "cancelled_in_gather")


@scenario()
async def cancel_in_step(world: World) -> None:
    """The body is not disturbed; in the modes that wait for it, the cancellation comes after its result."""
    invocation = await world.send("Waits", "cancelled_in_step")
    await published(world, "at step")
    await world.cancel(invocation)
    await world.settle()
    board.open("step")
    await world.attach(invocation)


@scenario(modes=("normal",))
async def cancel_twice(world: World) -> None:
    """A suspended invocation that was cancelled before is resumed for ever (see FINDINGS)."""
    invocation = await world.send("Waits", "cancelled_twice")
    await world.settle()
    await world.cancel(invocation)
    await world.settle()
    await world.cancel(invocation)
    await world.attach(invocation)


@scenario()
async def cancel_in_call(world: World) -> None:
    await cancel_in(world, "Calls", "call_waiting")


@scenario()
async def cancel_in_call_of_stubborn_child(world: World) -> None:
    await cancel_in(world, "Calls", "call_stubborn")


@scenario()
async def cancel_by_handler(world: World) -> None:
    invocation = await world.send("Waits", "cancelled_in_sleep")
    await world.settle()
    await world.call("Waits", "cancel_other", encoded(invocation))
    await world.attach(invocation)


@scenario()
async def cancel_completed(world: World) -> None:
    invocation = await world.send("Steps", "one", b'"hello"')
    await world.attach(invocation)
    await world.cancel(invocation)
    await world.settle()


@scenario()
async def cancel_scheduled(world: World) -> None:
    invocation = await world.send("Steps", "one", b'"hello"', delay=3_600_000)
    await world.settle()
    await world.status(invocation)
    await world.cancel(invocation)
    await world.attach(invocation)


@scenario()
async def cancel_queued(world: World) -> None:
    first = await world.send("Eager", "hold", b'"first"', key="queue")
    await published(world, "at first")
    second = await world.send("Eager", "hold", b'"second"', key="queue")
    await world.settle()
    await world.status(second)
    await world.cancel(second)
    await world.attach(second)
    board.open("first")
    await world.attach(first)


async def remove_queued(world: World, key: str, remove: Callable[[str], Awaitable[Answer]]) -> None:
    """Remove an invocation from the queue of a key while its caller waits for it."""
    first = await world.send("Eager", "hold", b'"first"', key=key)
    await published(world, "at first")
    caller = await world.send("Calls", "call_object_caught", encoded(key))
    called = await published(world, "child")
    await world.settle()
    await world.status(called)
    await remove(called)
    await world.attach(caller)
    await world.attach(called)
    board.open("first")
    await world.attach(first)


@scenario()
async def cancel_queued_that_is_called(world: World) -> None:
    await remove_queued(world, "cancel queued", world.cancel)


@scenario()
async def kill_queued_that_is_called(world: World) -> None:
    await remove_queued(world, "kill queued", world.kill)


async def remove_scheduled(world: World, remove: Callable[[str], Awaitable[Answer]]) -> None:
    """Remove an invocation before its time has come, while a handler is attached to it."""
    scheduled = await world.send("Steps", "one", b'"hello"', delay=3_600_000)
    attached = await world.send("Waits", "attach_to", encoded(scheduled))
    await world.settle()
    await remove(scheduled)
    await world.attach(attached)
    await world.call("Waits", "attach_to", encoded(scheduled))


@scenario()
async def cancel_scheduled_that_is_attached_to(world: World) -> None:
    await remove_scheduled(world, world.cancel)


@scenario()
async def kill_scheduled_that_is_attached_to(world: World) -> None:
    await remove_scheduled(world, world.kill)


@scenario()
async def cancel_child(world: World) -> None:
    """The operator cancels the child; the parent sees the failure of its call."""
    invocation = await world.send("Calls", "call_waiting_caught")
    called = await published(world, "child")
    await world.settle()
    await world.cancel(called)
    await world.attach(invocation)


@scenario()
async def cancel_child_by_parent(world: World) -> None:
    invocation = await world.send("Calls", "call_and_cancel")
    await published(world, "child")
    await world.settle()
    board.open("step")
    await world.attach(invocation)
    await world.settle()


@scenario()
async def cancel_sent_by_parent(world: World) -> None:
    invocation = await world.send("Calls", "send_and_cancel")
    sent = await published(world, "child")
    await world.settle()
    board.open("step")
    await world.attach(invocation)
    await world.attach(sent)


@scenario()
async def cancel_does_not_reach_what_was_sent(world: World) -> None:
    invocation = await world.send("Calls", "send_and_cancel")
    sent = await published(world, "child")
    await published(world, "at step")
    await world.cancel(invocation)
    await world.settle()
    board.open("step")
    await world.attach(invocation)
    await world.settle()
    await world.status(sent)
    await world.kill(sent)


@scenario()
async def kill_child(world: World) -> None:
    invocation = await world.send("Calls", "call_waiting_caught")
    called = await published(world, "child")
    await world.settle()
    await world.kill(called)
    await world.attach(invocation)
    await world.attach(called)


@scenario()
async def kill_parent(world: World) -> None:
    invocation = await world.send("Calls", "call_waiting")
    called = await published(world, "child")
    await world.settle()
    await world.kill(invocation)
    await world.attach(invocation)
    await world.settle()
    await world.status(called)
    await world.attach(called)


@scenario()
async def kill_reaches_what_was_sent(world: World) -> None:
    invocation = await world.send("Calls", "send_and_cancel")
    sent = await published(world, "child")
    await world.settle()
    await world.kill(invocation)
    await world.settle()
    await world.status(sent)
    board.open("step")
    await world.attach(sent)


# --- retries that end -------------------------------------------------------------------------------------------


@scenario()
async def pause_and_resume(world: World) -> None:
    invocation = await world.send("Pausing", "fails")
    await world.settle()
    await world.status(invocation)
    board.publish("mended")
    await world.resume(invocation)
    await world.attach(invocation)


@scenario()
async def pause_and_cancel(world: World) -> None:
    invocation = await world.send("Pausing", "fails")
    await world.settle()
    await world.status(invocation)
    await world.cancel(invocation)
    await world.settle()
    await world.status(invocation)
    await world.kill(invocation)
    await world.attach(invocation)


calls_only("kill_after_attempts", "Killing", "fails")
calls_only("kill_after_attempts_with_progress", "Killing", "progresses")
calls_only("kill_after_attempts_of_step", "Killing", "step_fails")
calls_only("kill_after_attempts_seen_by_parent", "Calls", "call_killed")


# --- calls ------------------------------------------------------------------------------------------------------

calls_only("call", "Calls", "call")
calls_only("call_with_headers", "Calls", "call_with_headers")
calls_only("call_object", "Calls", "call_object")
calls_only("call_refused", "Calls", "call_refused")
calls_only("call_with_id", "Calls", "call_with_id")
calls_only("call_idempotent", "Calls", "idempotent")
calls_only("call_bad_input", "Calls", "call_bad_input")
calls_only("send_idempotent", "Calls", "send_idempotent")
calls_only("send_and_attach", "Calls", "send_and_attach")
calls_only("call_workflow_twice", "Calls", "call_workflow", "from a handler")


@scenario()
async def call_two(world: World) -> None:
    invocation = await world.send("Calls", "two_calls")
    for name in ("second", "first"):
        await published(world, f"at {name}")
        board.open(name)
        await world.settle()
    await world.attach(invocation)


calls_only("call_scoped", "Calls", "call_scoped", modes=("vqueues",), versions=(7,))


async def send_and_wait(world: World, handler: str) -> None:
    answer = await world.call("Calls", handler)
    known = json.loads(answer.body)
    for invocation in [known] if isinstance(known, str) else known:
        await world.attach(invocation)


@scenario()
async def send(world: World) -> None:
    await send_and_wait(world, "send")


@scenario()
async def send_later(world: World) -> None:
    await send_and_wait(world, "send_later")


@scenario()
async def send_to_object(world: World) -> None:
    await send_and_wait(world, "send_to_object")


@scenario()
async def send_and_forget(world: World) -> None:
    await world.call("Calls", "send_and_forget")
    await world.attach(await published(world, "said forgotten"))


@scenario()
async def send_much_later(world: World) -> None:
    answer = await world.call("Calls", "send_much_later")
    known = json.loads(answer.body)
    await world.status(known)
    await world.kill(known)


async def nobody(world: World, handler: str, target: list[str]) -> None:
    """It is not answered, but tried again until the attempts are used up."""
    invocation = await world.send("Pausing", handler, encoded(target))
    await world.settle()
    await world.status(invocation)
    await world.kill(invocation)
    await world.attach(invocation)


@scenario()
async def call_unknown_service(world: World) -> None:
    await nobody(world, "call_nobody", ["Nobody", "none"])


@scenario()
async def call_unknown_handler(world: World) -> None:
    await nobody(world, "call_nobody", ["Steps", "nobody"])


@scenario()
async def send_unknown_service(world: World) -> None:
    await nobody(world, "send_nobody", ["Nobody", "none"])


@scenario()
async def ingress_idempotent(world: World) -> None:
    await world.call("Child", "times", b'"ingress"', idempotency_key="i1")
    await world.call("Child", "times", b'"ingress"', idempotency_key="i1")
    first = await world.send("Child", "times", b'"ingress"', idempotency_key="i2")
    await world.attach(first)
    second = await world.send("Child", "times", b'"ingress"', idempotency_key="i2")
    await world.attach(second)


@scenario()
async def ingress_attach_unknown(world: World) -> None:
    await world.attach(UNKNOWN)
    await world.attach("inv_nonsense")
    await world.output(UNKNOWN)


@scenario()
async def ingress_output(world: World) -> None:
    invocation = await world.send("Waits", "awakeable")
    known = await published(world, "awakeable")
    await world.output(invocation)
    await world.resolve_awakeable(known, b'"yes"')
    await world.attach(invocation)
    await world.output(invocation)


@scenario()
async def ingress_delayed(world: World) -> None:
    invocation = await world.send("Steps", "one", b'"later"', delay=60)
    await world.attach(invocation)


@scenario()
async def attach_by_handler(world: World) -> None:
    invocation = await world.send("Waits", "awakeable")
    known = await published(world, "awakeable")
    attached = await world.send("Waits", "attach_to", encoded(invocation))
    await world.settle()
    await world.resolve_awakeable(known, b'"yes"')
    await world.attach(attached)
    await world.attach(invocation)


@scenario()
async def attach_by_handler_to_completed(world: World) -> None:
    invocation = await world.send("Steps", "one", b'"hello"')
    await world.attach(invocation)
    await world.call("Waits", "attach_to", encoded(invocation))


@scenario()
async def attach_by_handler_to_failed(world: World) -> None:
    invocation = await world.send("Steps", "handler_terminal")
    await world.attach(invocation)
    await world.call("Waits", "attach_to", encoded(invocation))


@scenario()
async def attach_by_handler_to_unknown(world: World) -> None:
    await world.call("Waits", "attach_to", encoded(UNKNOWN))


# --- objects ----------------------------------------------------------------------------------------------------


def objects(service: str, prefix: str) -> None:
    """Add the scenarios of state, for one of the two objects."""

    async def state(world: World) -> None:
        for _ in range(2):
            await world.call(service, "everything", key="state")

    async def state_adds_up(world: World) -> None:
        for number in (1, 2):
            await world.call(service, "add", encoded(number), key="sum")
        await world.call(service, "add", b"5", key="another sum")
        await world.call(service, "clear", key="sum")
        await world.call(service, "add", b"3", key="sum")

    async def state_over_a_wait(world: World) -> None:
        for _ in range(2):
            await world.call(service, "set_then_wait", key="wait")

    async def state_over_a_retry(world: World) -> None:
        await world.call(service, "add", b"1", key="retry")
        await world.call(service, "set_then_fail", key="retry")
        await world.call(service, "add", b"1", key="retry")

    async def state_over_a_refusal(world: World) -> None:
        await world.call(service, "set_then_refuse", key="refusal")
        await world.call(service, "add", b"1", key="refusal")

    async def state_queue(world: World) -> None:
        first = await world.send(service, "hold", b'"first"', key="key")
        await published(world, "at first")
        second = await world.send(service, "hold", b'"second"', key="key")
        await world.settle()
        await world.status(second)
        await world.call(service, "look", key="key")
        board.open("first")
        await world.attach(first)
        await published(world, "at second")
        board.open("second")
        await world.attach(second)

    for drive in (state, state_adds_up, state_over_a_wait, state_over_a_retry, state_over_a_refusal, state_queue):
        name = f"{prefix}_{drive.__name__}"
        SCENARIOS[name] = Scenario(name, drive)


objects("Eager", "eager")
objects("Lazy", "lazy")


# --- workflows --------------------------------------------------------------------------------------------------


@scenario()
async def workflow_twice(world: World) -> None:
    await world.call("Flow", "run", b'"first"', key="twice")
    await world.call("Flow", "run", b'"second"', key="twice")
    again = await world.send("Flow", "run", b'"third"', key="twice")
    await world.attach(again)


@scenario()
async def promise_resolved(world: World) -> None:
    invocation = await world.send("Promises", "run", key="resolved")
    await world.settle()
    await world.call("Promises", "peek", key="resolved")
    await world.call("Promises", "resolve", b'"guilty"', key="resolved")
    await world.attach(invocation)
    await world.call("Promises", "peek", key="resolved")
    await world.call("Promises", "value", key="resolved")


@scenario()
async def promise_rejected(world: World) -> None:
    invocation = await world.send("Promises", "run", key="rejected")
    await world.settle()
    await world.call("Promises", "reject", b'"mistrial"', key="rejected")
    await world.attach(invocation)
    await world.call("Promises", "peek", key="rejected")
    await world.call("Promises", "value", key="rejected")


@scenario()
async def promise_completed_twice(world: World) -> None:
    invocation = await world.send("Promises", "run", key="double")
    await world.settle()
    await world.call("Promises", "resolve", b'"guilty"', key="double")
    await world.call("Promises", "resolve", b'"innocent"', key="double")
    await world.call("Promises", "reject", b'"mistrial"', key="double")
    await world.attach(invocation)


@scenario()
async def promise_resolved_before_the_run(world: World) -> None:
    await world.call("Promises", "resolve", b'"guilty"', key="before")
    await world.call("Promises", "run", key="before")


@scenario()
async def promise_awaited_by_two(world: World) -> None:
    invocation = await world.send("Promises", "run", key="both")
    other = await world.send("Promises", "value", key="both")
    await world.settle()
    await world.call("Promises", "resolve", b'"guilty"', key="both")
    await world.attach(invocation)
    await world.attach(other)
