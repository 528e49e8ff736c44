"""Why an invocation does not end: it is paused, or nothing more can happen, or the time is up."""

from __future__ import annotations

from typing import Final

from restate_steps._ids import awakeable_of
from restate_steps._protocol.types import MessageType
from restate_steps._protocol.wire import decode
from restate_steps.testing._errors import InvocationPausedError, JournalMismatchError, OutOfTimeError
from restate_steps.testing._simulation.driver import Driver
from restate_steps.testing._simulation.invocation import Failure, Invocation, InvocationStatus
from restate_steps.testing._simulation.journal import Journal

__all__ = ["open_waits", "paused_below", "paused_error", "raise_if_out_of_time", "why_stuck"]

_WAITING: Final = frozenset({InvocationStatus.RUNNING, InvocationStatus.SUSPENDED, InvocationStatus.PAUSED})


def paused_below(driver: Driver, invocation: Invocation) -> Invocation | None:
    """Return the invocation paused by a failure that another one waits for, directly or through others; or None."""
    for child in (driver.model.invocations[each] for each in invocation.children):
        if not child.ended and any(waiter == invocation.id for waiter, _, _ in child.waiters):
            if child.status is InvocationStatus.PAUSED and child.last_error is not None:
                return child
            if (cause := paused_below(driver, child)) is not None:
                return cause
    return None


def paused_error(invocation: Invocation) -> InvocationPausedError:
    """Return the error of a paused invocation."""
    error = invocation.last_error or Failure(0, "it was paused from outside")
    kind = JournalMismatchError if invocation.has_mismatch else InvocationPausedError
    told = kind(str(invocation.target), invocation.attempts, error.code, error.message)
    if error.stacktrace:
        told.add_note(f"What the handler raised:\n{error.stacktrace}")
    return told


def raise_if_out_of_time(driver: Driver) -> None:
    """Raise an error if the time limit stopped the run."""
    if driver.trace.is_out_of_time:
        raise OutOfTimeError(f"the time limit was reached after {driver.trace.events} events of one run")


def why_stuck(driver: Driver, invocation: Invocation) -> str:
    """Return why an invocation does not end, although nothing more can happen."""
    if driver.trace.is_endless:
        return f"{invocation.target} has not ended after {driver.trace.events} events. Does it loop forever?"
    return (
        f"{invocation.target} has not ended, and nothing more can happen:\n{open_waits(driver)}\n"
        "If it waits for an awakeable or a signal, send it from the test: start it with sim.send(...), then "
        "sim.resolve_awakeable(await sim.awakeable(...), ...), which waits until the handler has made the awakeable. "
        "If it awaits something of asyncio that never happens, it would hang on a server too."
    )


def open_waits(driver: Driver) -> str:
    """Return what the invocations that have not ended wait for, one line each."""
    waits: list[str] = []
    for each in driver.model.invocations.values():
        if each.status is InvocationStatus.QUEUED:
            waits.append(f"  {each.target} is queued, and waits until {_holder_of(driver, each)} has ended")
        elif each.status in _WAITING:
            pending = Journal(each.journal)
            open_entries = [f"{entry.type} {entry.name or ''}".rstrip() for entry in pending if not entry.completed]
            open_entries += _open_awakeables(driver, each)
            what = ", ".join(open_entries) or "nothing that is in its journal"
            waits.append(f"  {each.target} is {each.status.value}, and waits for {what}")
    return "\n".join(waits)


def _holder_of(driver: Driver, queued: Invocation) -> str:
    """Return the invocation that keeps an exclusive handler of the same key from starting."""
    target = queued.target
    holder = driver.model.objects[target.service, target.key or "", target.scope].holder
    return str(driver.model.invocations[holder].target) if holder is not None else "another invocation of the key"


def _open_awakeables(driver: Driver, invocation: Invocation) -> list[str]:
    answered = {decode(frame).get("signal_id") for frame in invocation.journal if frame.type == MessageType.SIGNAL}
    made = driver.trace.awakeables.get(invocation.id, ())
    return [f"the awakeable {each!r}" for each in made if awakeable_of(each)[1] not in answered]
