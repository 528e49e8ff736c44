"""A Restate server as plain data: invocations and their journals, keys, promises and timers.

The driver passes on what the application sends (:func:`.messages.receive`). The model lists what to send to it
(``outbox``), which invocations need an attempt (``ready``), and what can happen next (``deliveries``, ``timers``). It
never waits, and reads neither a clock nor random numbers.

W1. A journal only grows. An attempt starts with exactly its entries, in the same order.
W2. A completion is stored once. A second result for the same command is an *anomaly*, and changes nothing.
W3. Everything between two invocations, and every timer, passes through :attr:`ServerModel.deliveries` or
    :attr:`ServerModel.timers`, so that the driver chooses when it happens. Everything else happens immediately.
W4. An invocation that has ended never begins again, and its result never changes. One that is cancelled or killed
    before it begins is forgotten: those that wait for it fail, and those that come later do not find it.
W5. At most one exclusive handler of a key, and at most one attempt of an invocation, is open at any time.
W6. Messages from one invocation to another arrive in the order in which they were sent.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final

from restate_steps._ids import awakeable_of
from restate_steps._protocol.types import CANCEL_SIGNAL, MessageType, notification_of
from restate_steps._protocol.wire import Frame, decode, make
from restate_steps.testing._simulation.events import Deliveries, Event, Timers
from restate_steps.testing._simulation.invocation import MISMATCH, Failure, Invocation, InvocationStatus, value_fields
from restate_steps.testing._simulation.keys import KeyedObject, Promise
from restate_steps.testing._simulation.manifest import Manifest, Target
from restate_steps.testing._simulation.opaque import OpaqueValues
from restate_steps.testing._simulation.scopes import UNSUPPORTED_FEATURE, normalized_limit_key

__all__ = ["FAIL", "PAUSE", "START_MS", "ServerModel", "result_of"]

START_MS: Final = 1_735_689_600_000
"""The start of virtual time, in milliseconds since 1970: the first moment of 2025."""

PAUSE: Final = 1
"""The behavior of a failure that pauses the invocation."""

FAIL: Final = 2
"""The behavior of a failure that ends the invocation."""

_CANCELLED: Final = 409
_NOT_FOUND: Final = 404
_PERMANENT: Final = (*MISMATCH, UNSUPPORTED_FEATURE)
"""The codes of failures that every retry repeats until the application changes."""


class ServerModel:
    """A server, with everything it has stored.

    Args:
        manifest: The handlers of the application.
        version: The version of the service protocol.
        seed: The seed from which the random seeds of invocations are made.
        disable_retries: End an invocation at the first failed attempt.

    Attributes:
        retry_mismatches: True to retry failures that no retry fixes, as a server does, instead of pausing.
        max_rounds: How often a handler that sends itself with a delay is followed; None for no limit.
        objects: The keys of services, by service, key and scope.
        outbox: The messages to send to open attempts, with the ids of their invocations.
        deliveries: The events that invocations have caused for others, and that have not happened.
        timers: The events that happen at a time.
        anomalies: What must never happen, such as a second result of a step.
        history: Every stored message of every invocation, in order.
    """

    def __init__(self, manifest: Manifest, *, version: int = 6, seed: int = 0, disable_retries: bool = False) -> None:
        self.manifest = manifest
        self.version = version
        self.seed = seed
        self.disable_retries = disable_retries
        self.retry_mismatches = False
        self.max_rounds: int | None = None
        self.now = START_MS
        self.invocations: dict[str, Invocation] = {}
        self.objects: dict[tuple[str, str, str | None], KeyedObject] = {}
        self.outbox: list[tuple[str, Frame]] = []
        self.deliveries = Deliveries()
        self.timers = Timers(self._is_pointless)
        self.anomalies: list[str] = []
        self.opaque = OpaqueValues()
        self.history: list[tuple[Invocation, Frame]] = []
        self._promises: dict[tuple[str, str, str | None, str], Promise] = {}
        self._identified: dict[tuple[Target, str], str] = {}
        """The ids of invocations by target and idempotency key; the latter is empty for workflows."""
        self._ids: dict[bytes, str] = {}
        """The ids of invocations by their bytes."""

    # --- clients and operators ----------------------------------------------------------------------------------

    def submit(
        self,
        target: Target,
        body: bytes,
        *,
        headers: tuple[tuple[str, str], ...] = (),
        idempotency_key: str | None = None,
        limit_key: str | None = None,
        at: int = 0,
    ) -> Invocation:
        """Accept a call, and return its invocation: an earlier one if it has the same idempotency key.

        Raises:
            UnknownHandlerError: The application has no such handler.
        """
        info = self.manifest[target]
        if info.keyed and target.key is None:
            # Handlers may leave it out.
            target = replace(target, key="")
        identity = "" if info.workflow else idempotency_key
        if identity is not None and (known := self.identified(target, identity)) is not None:
            return known
        number = len(self.invocations) + 1
        invocation = Invocation(
            # As long as the server's own ids, and easy to distinguish.
            id=f"inv_1sim{number:027d}",
            raw_id=number.to_bytes(24, "big"),
            target=target,
            info=info,
            seed=_seed_of(self.seed, number),
            idempotency_key=idempotency_key,
            limit_key=normalized_limit_key(limit_key),
            journal=[],
        )
        self.invocations[invocation.id] = invocation
        self._ids[invocation.raw_id] = invocation.id
        if identity is not None:
            self._identified[target, identity] = invocation.id
        pairs = [{"key": key, "value": value} for key, value in headers]
        self.store(invocation, make(MessageType.INPUT, headers=pairs or None, value=value_fields(body)))
        if at > self.now:
            invocation.status = InvocationStatus.SCHEDULED
            self.timers.add(at, Event("begin", invocation.id))
        else:
            self._admit(invocation)
        return invocation

    def identified(self, target: Target, idempotency_key: str) -> Invocation | None:
        """Return the invocation with an idempotency key, which is empty for a workflow; None if there is none."""
        known = self._identified.get((target, idempotency_key))
        return None if known is None else self.invocations[known]

    def with_raw_id(self, raw_id: bytes) -> Invocation | None:
        """Return the invocation whose id has these bytes; None if there is none."""
        known = self._ids.get(raw_id)
        return None if known is None else self.invocations[known]

    def signal(self, invocation_id: str, **fields: Any) -> None:
        """Send a signal: ``signal_id`` or ``signal_name``, and ``void``, ``value`` or ``failure``."""
        self._signal(self.invocations[invocation_id], make(MessageType.SIGNAL, flags=0, **fields))

    def complete_awakeable(self, awakeable_id: str, **fields: Any) -> None:
        """Complete an awakeable with a ``value`` or a ``failure``.

        Raises:
            ValueError: It is not the id of an awakeable.
            LookupError: No known invocation has this awakeable.
        """
        raw_id, number = awakeable_of(awakeable_id)
        if (owner := self.with_raw_id(raw_id)) is None:
            raise LookupError(f"the awakeable {awakeable_id!r} belongs to no invocation that is known here.")
        self.signal(owner.id, signal_id=number, **fields)

    def cancel(self, invocation_id: str) -> None:
        """Cancel an invocation as an operator does; one that has not begun is removed immediately."""
        self.signal(invocation_id, signal_id=CANCEL_SIGNAL, void={})
        self.resume(invocation_id)

    def kill(self, invocation_id: str) -> None:
        """End an invocation, and all that it has called or sent; the handlers are not notified."""
        invocation = self.invocations[invocation_id]
        killed = Failure(_CANCELLED, "killed")
        if not invocation.has_begun:
            self._forget(invocation, killed)
        elif not invocation.ended:
            self.end(invocation, None, killed)
            for child in invocation.children:
                self.kill(child)

    def pause(self, invocation_id: str) -> None:
        """Start no more attempts of an invocation until it is resumed."""
        invocation = self.invocations[invocation_id]
        if not invocation.ended:
            invocation.status = InvocationStatus.PAUSED
            invocation.epoch += 1

    def resume(self, invocation_id: str) -> None:
        """Retry a paused invocation."""
        invocation = self.invocations[invocation_id]
        if invocation.status is InvocationStatus.PAUSED:
            invocation.failures = invocation.failures_in_a_row = 0
            invocation.last_error = None
            invocation.status = InvocationStatus.READY

    # --- attempts -----------------------------------------------------------------------------------------------

    def ready(self) -> list[str]:
        """Return the invocations that need an attempt, oldest first."""
        return [each.id for each in self.invocations.values() if each.status is InvocationStatus.READY]

    def begin(self, invocation_id: str) -> list[Frame]:
        """Open an attempt, and return the messages it starts with: the start, and the journal."""
        invocation = self.invocations[invocation_id]
        if invocation.status is not InvocationStatus.READY:
            raise AssertionError(f"{invocation.target} cannot begin: it is {invocation.status.value}")
        invocation.status = InvocationStatus.RUNNING
        invocation.attempts += 1
        invocation.entries_at_start = len(invocation.journal)
        key = invocation.target.key
        partial = key is None or invocation.info.lazy_state
        state = None
        if not partial:
            stored = self.object_of(invocation).state
            state = [{"key": name, "value": stored[name]} for name in sorted(stored)]
        start = make(
            MessageType.START,
            id=invocation.raw_id,
            debug_id=invocation.id,
            known_entries=len(invocation.journal),
            state_map=state or None,
            partial_state=partial or None,
            key=key,
            retry_count=invocation.failures or None,
            duration=(self.now - invocation.failing_since if invocation.failures else 0) or None,
            random_seed=invocation.seed,
            scope=invocation.target.scope,
            limit_key=invocation.limit_key,
            # The server sends it only with flow control, without which there are no scopes.
            idempotency_key=None if invocation.target.scope is None else invocation.idempotency_key,
        )
        return [start, *invocation.journal]

    def crash(self) -> None:
        """End every open attempt, as when the service's process dies."""
        self.outbox.clear()
        for invocation in self.invocations.values():
            if invocation.status is InvocationStatus.RUNNING:
                invocation.status = InvocationStatus.READY
                self._count_failure(invocation)

    def end_of_stream(self, invocation_id: str) -> None:
        """End an attempt whose connection has ended; retry it if no message has said why."""
        invocation = self.invocations[invocation_id]
        if invocation.status is InvocationStatus.RUNNING:
            self.fail_attempt(invocation, Failure(500, "the attempt ended without saying why"))

    def fail_attempt(
        self, invocation: Invocation, failure: Failure, *, delay: int | None = None, behavior: int = 0
    ) -> None:
        """End an attempt with a failure, after which the invocation is retried, is paused, or ends.

        Args:
            invocation: The invocation.
            failure: The failure.
            delay: When to retry; by default, the retry policy decides.
            behavior: :data:`PAUSE` or :data:`FAIL`, if the attempt asks for it.
        """
        self._count_failure(invocation)
        invocation.last_error = failure
        invocation.epoch += 1
        rules = invocation.info.retry
        exhausted = rules.attempts is not None and invocation.failures_in_a_row >= rules.attempts
        if behavior == FAIL or self.disable_retries or (exhausted and rules.on_exhausted == "KILL"):
            self.end(invocation, None, failure)
        elif behavior == PAUSE or exhausted or (failure.code in _PERMANENT and not self.retry_mismatches):
            invocation.status = InvocationStatus.PAUSED
        else:
            invocation.status = InvocationStatus.BACKING_OFF
            wait = rules.delay(invocation.failures_in_a_row) if delay is None else delay
            self.timers.add(self.now + wait, Event("retry", invocation.id, invocation.epoch))

    def _count_failure(self, invocation: Invocation) -> None:
        if invocation.failures == 0:
            invocation.failing_since = self.now
        invocation.failures += 1
        invocation.failures_in_a_row += 1

    # --- events -------------------------------------------------------------------------------------------------

    def deliver(self, index: int) -> None:
        """Let one of :attr:`deliveries` arrive."""
        self._happen(self.deliveries.pop(index))

    def advance(self, to: int, *, timers: int | None = None) -> None:
        """Let time pass, and all timers fire that are due by then; or only a number of them."""
        self.now = max(self.now, to)
        while timers != 0 and (event := self.timers.pop(self.now)) is not None:
            self._happen(event)
            timers = None if timers is None else timers - 1

    def is_left_scheduled(self, invocation: Invocation) -> bool:
        """Return whether an invocation does not begin, because handlers would send each other forever."""
        return (
            invocation.status is InvocationStatus.SCHEDULED
            and self.max_rounds is not None
            and invocation.rounds.get(invocation.info.target, 0) > self.max_rounds
        )

    def _is_pointless(self, event: Event) -> bool:
        invocation = self.invocations[event.invocation_id]
        is_outdated = event.verb == "retry" and event.content != invocation.epoch
        return invocation.ended or is_outdated or self.is_left_scheduled(invocation)

    def _happen(self, event: Event) -> None:
        verb, invocation_id, content = event
        invocation = self.invocations[invocation_id]
        match verb:
            case "begin":
                self._admit(invocation)
            case "retry":
                invocation.status = InvocationStatus.READY
            case "complete":
                self.complete(invocation, content)
            case "signal":
                self._signal(invocation, content)
            case "attach":
                waiter_id, number = content
                self.attach(self.invocations[waiter_id], invocation, number)

    # --- the journal --------------------------------------------------------------------------------------------

    def store(self, invocation: Invocation, frame: Frame) -> None:
        """Add an entry to a journal."""
        invocation.journal.append(frame)
        invocation.digest = hash((invocation.digest, frame.type, self.opaque.renamed(frame.body), frame.flags))
        invocation.failures = 0
        self.history.append((invocation, frame))

    def fingerprint(self) -> int:
        """Return a number that is equal whenever the same is stored; see :mod:`.opaque` for ids and times."""
        if len(self.invocations) == 1:
            return next(iter(self.invocations.values())).digest
        return hash(tuple(each.digest for each in self.invocations.values()))

    def complete(self, invocation: Invocation, frame: Frame, *, send: bool = True) -> None:
        """Store a completion, unless it is stored already or the invocation has ended.

        Args:
            invocation: The invocation.
            frame: The completion.
            send: Send it to the open attempt, too.
        """
        number = decode(frame)["completion_id"]
        if not invocation.ended and number not in invocation.completed:
            invocation.completed.add(number)
            self._notify(invocation, frame, send=send)

    def _signal(self, invocation: Invocation, frame: Frame) -> None:
        if invocation.ended:
            return
        fields = decode(frame)
        if invocation.has_begun:
            invocation.signals.add(fields.get("signal_name") or fields["signal_id"])
            self._notify(invocation, frame)
        elif fields.get("signal_id") == CANCEL_SIGNAL:
            self._forget(invocation, Failure(_CANCELLED, "canceled"))
        # The server drops other signals: there is no journal yet that could store them.

    def _notify(self, invocation: Invocation, frame: Frame, *, send: bool = True) -> None:
        self.store(invocation, frame)
        if invocation.status is InvocationStatus.RUNNING:
            if send:
                self.outbox.append((invocation.id, frame))
        elif invocation.status is InvocationStatus.SUSPENDED and invocation.can_resume():
            invocation.status = InvocationStatus.READY

    # --- results ------------------------------------------------------------------------------------------------

    def end(self, invocation: Invocation, output: bytes | None, failure: Failure | None) -> None:
        """End an invocation with its result, and send that to the invocations that wait for it."""
        invocation.status = InvocationStatus.COMPLETED
        invocation.epoch += 1
        invocation.output, invocation.failure = output, failure
        for waiter, number, command in invocation.waiters:
            self._send_result(invocation, waiter, number, command)
        invocation.waiters.clear()
        self._leave(invocation)

    def wait_for(self, invocation: Invocation, other: Invocation, number: int, command: MessageType) -> None:
        """Complete a command of one invocation with the result of another, as soon as there is one."""
        if other.ended:
            self._send_result(other, invocation.id, number, command)
        else:
            other.waiters.append((invocation.id, number, command))

    def attach(self, invocation: Invocation, other: Invocation, number: int) -> None:
        """Let one invocation wait for the result of another, which may have been removed meanwhile."""
        if other.removal is None:
            self.wait_for(invocation, other, number, MessageType.ATTACH_INVOCATION)
        else:
            failure = Failure(_NOT_FOUND, "not found").fields()
            self.complete(
                invocation, make(MessageType.ATTACH_INVOCATION_COMPLETION, completion_id=number, failure=failure)
            )

    def _send_result(self, ended: Invocation, waiter: str, number: int, command: MessageType) -> None:
        self.deliveries.add(Event("complete", waiter, result_of(ended, command, number)), sender=ended.id)

    def _forget(self, invocation: Invocation, removal: Failure) -> None:
        """End an invocation that has not begun, and store nothing about it."""
        self.end(invocation, None, removal)
        invocation.failure, invocation.removal = Failure(_NOT_FOUND, "not found"), removal
        self._identified = {key: known for key, known in self._identified.items() if known != invocation.id}

    # --- keys ---------------------------------------------------------------------------------------------------

    def object_of(self, invocation: Invocation) -> KeyedObject:
        """Return the key that an invocation was called with."""
        target = invocation.target
        assert target.key is not None
        return self.objects.setdefault((target.service, target.key, target.scope), KeyedObject())

    def promise_of(self, invocation: Invocation, name: str) -> Promise:
        """Return a promise of an invocation's workflow."""
        target = invocation.target
        return self._promises.setdefault((target.service, target.key or "", target.scope, name), Promise())

    def _admit(self, invocation: Invocation) -> None:
        invocation.status = InvocationStatus.READY
        if invocation.info.exclusive and not self.object_of(invocation).enter(invocation.id):
            invocation.status = InvocationStatus.QUEUED

    def _leave(self, invocation: Invocation) -> None:
        if invocation.info.exclusive and (next_id := self.object_of(invocation).leave(invocation.id)) is not None:
            self.invocations[next_id].status = InvocationStatus.READY


def result_of(ended: Invocation, command: MessageType, number: int) -> Frame:
    """Return the completion of a command that waits for an invocation which has ended."""
    kind = notification_of(command)
    if ended.failure is not None:
        return make(kind, completion_id=number, failure=ended.failure.fields())
    return make(kind, completion_id=number, value=value_fields(ended.output or b""))


@lru_cache(maxsize=1024)
def _seed_of(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{number}".encode()).digest()[:8], "big")
