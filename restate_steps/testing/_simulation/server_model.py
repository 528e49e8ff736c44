"""What a Restate server knows and does, as plain data: invocations and their journals, objects, promises, timers.

The driver passes on what the application has sent (``receive``). The model says what to send to it (``outbox``), which
invocations want an attempt (``ready``), and what may happen next (``deliveries``, ``timers``). It never waits, reads a
clock or draws a random number.

W1. A journal only grows. What it holds is what an attempt is given to begin with, in the same order.
W2. A completion is stored once. A second result for the same command is an *anomaly*, and changes nothing.
W3. Everything between two invocations, and every timer, passes through :attr:`ServerModel.deliveries` or
    :attr:`ServerModel.timers`, so that whoever drives can choose when it happens. All else happens at once.
W4. An invocation that has ended never begins again, and its result never changes. One that is cancelled or killed
    before it begins is forgotten: whoever waits for it then fails, and whoever comes later does not find it.
W5. At most one exclusive handler of a key, and at most one attempt of an invocation, is open at any time.
W6. What one invocation sends to another arrives in the order in which it was sent.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import lru_cache
from typing import Any, ClassVar, Final, NamedTuple

from restate_steps.testing._simulation.opaque import OpaqueValues
from restate_steps.testing._simulation.scopes import (
    UNSUPPORTED_FEATURE,
    normalized_limit_key,
    refusal,
    with_version_hint,
)
from restate_steps.testing._simulation.wire import (
    CANCEL_SIGNAL,
    REQUESTED_ACK,
    Frame,
    MessageType,
    awakeable_of,
    decode,
    is_command,
    make,
    notification_of,
)

__all__ = [
    "Delivery",
    "Failure",
    "HandlerInfo",
    "Invocation",
    "InvocationStatus",
    "Manifest",
    "RetryRules",
    "ServerModel",
    "Target",
    "UnknownHandlerError",
    "awakeable_of",
]

START_MS: Final = 1_735_689_600_000
"""When virtual time begins, in milliseconds since 1970: the first moment of 2025."""

_CANCELLED = 409
_NOT_FOUND = 404
_ALL = 2
_MISMATCH = (570, 571)
_HOPELESS = (*_MISMATCH, UNSUPPORTED_FEATURE)
"""Codes of failures that no retry of the same code can avoid."""
_PAUSE, _FAIL = 1, 2


class UnknownHandlerError(Exception):
    """Something calls a handler that no service of the application has."""


class InvocationStatus(StrEnum):
    """The status of a simulated invocation."""

    SCHEDULED = "scheduled"
    QUEUED = "queued"
    READY = "ready"
    RUNNING = "running"
    SUSPENDED = "suspended"
    BACKING_OFF = "backing-off"
    PAUSED = "paused"
    COMPLETED = "completed"


@dataclass(frozen=True, slots=True)
class Target:
    """A handler, and the key it is called with if its service has keys.

    Attributes:
        scope: The scope of the call, which has its own keys, promises and idempotency keys.
    """

    service: str
    handler: str
    key: str | None = None
    scope: str | None = None

    def __str__(self) -> str:
        path = "/".join(part for part in (self.service, self.key, self.handler) if part is not None)
        return path if self.scope is None else f"{path} in scope {self.scope}"


@dataclass(frozen=True, slots=True)
class Failure:
    """How an invocation, a step or a wait ended that did not succeed."""

    code: int
    message: str
    metadata: tuple[tuple[str, str], ...] = ()
    stacktrace: str = field(default="", compare=False)

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Failure:
        """Read it from the fields of a message."""
        metadata = tuple((pair.get("key", ""), pair.get("value", "")) for pair in fields.get("metadata", ()))
        return cls(fields.get("code", 0), fields.get("message", ""), metadata)

    def fields(self) -> dict[str, Any]:
        """Return it as the fields of a message."""
        pairs = [{"key": key, "value": value} for key, value in self.metadata]
        return {"code": self.code, "message": self.message, **({"metadata": pairs} if pairs else {})}


@dataclass(frozen=True, slots=True)
class RetryRules:
    """How often and when an invocation is tried again; times are in milliseconds."""

    initial: int = 500
    factor: float = 2.0
    longest: int = 60_000
    attempts: int | None = 70
    on_exhausted: str = "PAUSE"

    def delay(self, failures: int) -> int:
        """Return how long to wait after so many failed attempts in a row."""
        return min(self.longest, int(self.initial * self.factor ** min(failures - 1, 60)))


@dataclass(frozen=True, slots=True)
class HandlerInfo:
    """What the application's manifest says of one handler."""

    target: tuple[str, str]
    kind: str
    keyed: bool
    lazy_state: bool
    retry: RetryRules
    takes_input: bool = True
    needs_input: bool = False
    is_private: bool = False

    def refusal(self, body: bytes, idempotency_key: str | None) -> str | None:
        """Return why the ingress refuses a client's call with the status 400; None if it takes it."""
        if self.is_private:
            return "the service is not public, so that only handlers can call it"
        if body and not self.takes_input:
            return "the handler takes no argument, so the body has to be empty"
        if self.needs_input and not body:
            return "the handler needs an argument, and the body is empty"
        if self.workflow and idempotency_key is not None:
            return "a workflow takes no idempotency key: its own key makes it idempotent"
        return None

    @property
    def exclusive(self) -> bool:
        """Whether it has the key for itself while it runs."""
        return self.keyed and self.kind == "EXCLUSIVE"

    @property
    def workflow(self) -> bool:
        """Whether it is the handler of a workflow that runs once for each key."""
        return self.kind == "WORKFLOW"


class Manifest:
    """The handlers of an application, from the manifest that a server asks for when it is registered.

    Args:
        manifest: The decoded JSON of ``GET /discover``.
    """

    def __init__(self, manifest: Mapping[str, Any]) -> None:
        self.handlers: dict[tuple[str, str], HandlerInfo] = {}
        for service in manifest["services"]:
            for handler in service["handlers"]:
                keyed = service["ty"] != "SERVICE"
                declared: Mapping[str, Any] | None = handler.get("input")
                info = HandlerInfo(
                    target=(service["name"], handler["name"]),
                    kind=handler.get("ty") or ("EXCLUSIVE" if keyed else "SHARED"),
                    keyed=keyed,
                    lazy_state=bool(handler.get("enableLazyState", service.get("enableLazyState", False))),
                    retry=_retry_rules({**service, **handler}),
                    takes_input=declared != {},
                    needs_input=declared is not None and bool(declared.get("required", False)),
                    is_private=bool(handler.get("ingressPrivate", service.get("ingressPrivate", False))),
                )
                self.handlers[info.target] = info

    def __getitem__(self, target: Target) -> HandlerInfo:
        info = self.handlers.get((target.service, target.handler))
        if info is None:
            known = ", ".join("/".join(names) for names in sorted(self.handlers)) or "nothing"
            raise UnknownHandlerError(
                f"there is no handler {target.service}/{target.handler} in this application; it has {known}. "
                "Simulate all services together that call each other: simulate(restate_steps.app([one, other]))."
            )
        if target.key is not None and not info.keyed:
            raise UnknownHandlerError(
                f"a key was given, but {target.service} is a Service. Only Virtual Objects and workflows have keys."
            )
        return info


def _retry_rules(options: Mapping[str, Any]) -> RetryRules:
    default = RetryRules()
    return RetryRules(
        initial=options.get("retryPolicyInitialInterval", default.initial),
        factor=options.get("retryPolicyExponentiationFactor", default.factor),
        longest=options.get("retryPolicyMaxInterval", default.longest),
        attempts=options.get("retryPolicyMaxAttempts", default.attempts),
        on_exhausted=options.get("retryPolicyOnMaxAttempts", default.on_exhausted),
    )


@dataclass(slots=True, eq=False)
class Invocation:
    """One invocation, and everything the server has stored of it."""

    id: str
    raw_id: bytes
    target: Target
    info: HandlerInfo
    seed: int
    idempotency_key: str | None
    limit_key: str | None
    journal: list[Frame]
    status: InvocationStatus = InvocationStatus.READY
    completed: set[int] = field(default_factory=set[int])
    signals: set[int | str] = field(default_factory=set[int | str])
    awaits: dict[str, Any] = field(default_factory=dict[str, Any])
    """What a suspended invocation waits for, as the tree of ``AWAITING_ON``; version 6 has no deeper ones."""
    began_with: int = 0
    """How many entries the latest attempt began with."""
    runs: dict[int, str] = field(default_factory=dict[int, str])
    """The names of its steps by the number of their completion."""
    rounds: dict[tuple[str, str], int] = field(default_factory=dict[tuple[str, str], int])
    """How many invocations of each handler have led to this one, by calls and sends, itself included."""
    children: list[str] = field(default_factory=list[str])
    """The invocations it has called or sent."""
    attempts: int = 0
    failures: int = 0
    """How many attempts have failed since the last entry was stored."""
    failing_since: int = 0
    failures_in_a_row: int = 0
    """How many attempts have failed since it began, was suspended or was resumed: what the policy counts."""
    epoch: int = 0
    """Goes up with whatever makes a timer for the next attempt pointless."""
    output: bytes | None = None
    failure: Failure | None = None
    last_error: Failure | None = None
    error_delay: int | None = None
    removal: Failure | None = None
    """How waiting for it failed when it was cancelled or killed before it began; since then nothing is stored of it."""
    waiters: list[tuple[str, int, MessageType]] = field(default_factory=list[tuple[str, int, MessageType]])
    digest: int = 0

    @property
    def ended(self) -> bool:
        """Whether it has a result."""
        return self.status is InvocationStatus.COMPLETED

    @property
    def has_begun(self) -> bool:
        """Return whether it has left the queue of its key and its time has come."""
        return self.status not in (InvocationStatus.SCHEDULED, InvocationStatus.QUEUED)

    @property
    def wedged(self) -> bool:
        """Whether today's code takes another way than the journal, which no retry can mend."""
        return (
            self.status is InvocationStatus.PAUSED and self.last_error is not None and self.last_error.code in _MISMATCH
        )


class Delivery(NamedTuple):
    """Something that is on its way to an invocation.

    Attributes:
        verb: What it does there: ``complete`` a command, ``signal``, or ``attach`` another invocation.
        target: The id of the invocation it goes to.
        what: What it brings.
        sender: The id of the invocation it comes from; None if its order among others does not matter.
    """

    verb: str
    target: str
    what: Any
    sender: str | None


@dataclass(frozen=True, slots=True, order=True)
class Timer:
    """Something that happens at a time; those due together happen in the order in which they were set."""

    due: int
    number: int
    what: tuple[Any, ...] = field(compare=False)


@dataclass(slots=True)
class _Object:
    """A key of a service that has keys: its state, who holds it, and who waits for it."""

    state: dict[bytes, bytes] = field(default_factory=dict[bytes, bytes])
    holder: str | None = None
    queue: deque[str] = field(default_factory=deque[str])


@dataclass(slots=True)
class _Promise:
    value: bytes | None = None
    failure: Failure | None = None
    waiters: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])

    @property
    def completed(self) -> bool:
        return self.value is not None or self.failure is not None


class ServerModel:
    """A server, with everything it has stored.

    Args:
        manifest: The handlers of the application.
        version: The version of the service protocol.
        seed: What the random seeds of invocations come from.
        retry_mismatches: Whether to try again after a mismatch, as a server does. No retry can mend it, so by default
            the invocation is paused at once.
    """

    def __init__(self, manifest: Manifest, *, version: int = 6, seed: int = 0, retry_mismatches: bool = False) -> None:
        self.manifest = manifest
        self.version = version
        self.seed = seed
        self.retry_mismatches = retry_mismatches
        self.disable_retries = False
        self.rounds: int | None = None
        """After how many rounds a handler that sends itself again with a delay is left alone, if ever."""
        self.now = START_MS
        self.invocations: dict[str, Invocation] = {}
        self.objects: dict[tuple[str, str, str | None], _Object] = {}
        """By service, key and scope."""
        self.outbox: list[tuple[str, Frame]] = []
        """What is to be sent to attempts that are open."""
        self.deliveries: list[Delivery] = []
        """What is on its way from one invocation to another."""
        self.timers: list[Timer] = []
        self.anomalies: list[str] = []
        self.opaque = OpaqueValues()
        self.history: list[tuple[Invocation, Frame]] = []
        """Every message that was stored, of every invocation, in the order in which they were."""
        self._promises: dict[tuple[str, str, str | None, str], _Promise] = {}
        """By service, key, scope and name."""
        self._idempotent: dict[tuple[Target, str], str] = {}
        self._by_raw: dict[bytes, str] = {}
        self._timers_set = 0

    # --- what comes from outside --------------------------------------------------------------------------------

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
        """Take a call, and return its invocation: an earlier one if it has the same idempotency key.

        Raises:
            UnknownHandlerError: The application has no such handler.
        """
        info = self.manifest[target]
        if info.keyed and target.key is None:
            # Handlers may leave it out.
            target = replace(target, key="")
        same = (target, "" if info.workflow else idempotency_key or "")
        if (idempotency_key is not None or info.workflow) and same in self._idempotent:
            return self.invocations[self._idempotent[same]]
        number = len(self.invocations) + 1
        invocation = Invocation(
            # As long as the server's own, and easy to tell apart.
            id=f"inv_1sim{number:027d}",
            raw_id=number.to_bytes(24, "big"),
            target=target,
            info=info,
            seed=_seed_of(self.seed, number),
            idempotency_key=idempotency_key,
            limit_key=normalized_limit_key(limit_key),
            journal=[],
        )
        pairs = [{"key": key, "value": value} for key, value in headers]
        self.invocations[invocation.id] = invocation
        self._by_raw[invocation.raw_id] = invocation.id
        if idempotency_key is not None or info.workflow:
            self._idempotent[same] = invocation.id
        self._store(invocation, make(MessageType.INPUT, headers=pairs or None, value=_value(body)))
        if at > self.now:
            invocation.status = InvocationStatus.SCHEDULED
            self._set_timer(at, ("begin", invocation.id))
        else:
            self._admit(invocation)
        return invocation

    def fingerprint(self) -> int:
        """Return a number that is the same whenever the same is stored; see :mod:`.opaque` for ids and times."""
        if len(self.invocations) == 1:
            return next(iter(self.invocations.values())).digest
        return hash(tuple(each.digest for each in self.invocations.values()))

    def begin(self, invocation_id: str) -> list[Frame]:
        """Open an attempt, and return what it is given: the start, and the journal so far."""
        invocation = self.invocations[invocation_id]
        if invocation.status is not InvocationStatus.READY:
            raise AssertionError(f"{invocation.target} cannot begin: it is {invocation.status.value}")
        invocation.status = InvocationStatus.RUNNING
        invocation.attempts += 1
        invocation.began_with = len(invocation.journal)
        key = invocation.target.key
        partial = key is None or invocation.info.lazy_state
        state = None
        if not partial:
            stored = self._object(invocation).state
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

    def ready(self) -> list[str]:
        """Return the invocations that want an attempt, oldest first."""
        return [each.id for each in self.invocations.values() if each.status is InvocationStatus.READY]

    def crash(self) -> None:
        """End every open attempt, as when the service's process dies."""
        self.outbox.clear()
        for invocation in self.invocations.values():
            if invocation.status is InvocationStatus.RUNNING:
                invocation.status = InvocationStatus.READY
                self._count_failure(invocation)

    def end_of_stream(self, invocation_id: str) -> None:
        """Note that an attempt's connection has ended; without a message that says why, it is tried again."""
        invocation = self.invocations[invocation_id]
        if invocation.status is InvocationStatus.RUNNING:
            self._fail_attempt(invocation, Failure(500, "the attempt ended without saying why"), None, 0)

    def signal(self, invocation_id: str, **fields: Any) -> None:
        """Send a signal: ``signal_id`` or ``signal_name``, and ``void``, ``value`` or ``failure``."""
        self._signal(self.invocations[invocation_id], make(MessageType.SIGNAL, flags=0, **fields))

    def complete_awakeable(self, awakeable_id: str, **fields: Any) -> None:
        """Complete an awakeable with a ``value`` or a ``failure``.

        Raises:
            ValueError: It is not the id of an awakeable.
            LookupError: It is one, but of no invocation that is known here.
        """
        raw, number = awakeable_of(awakeable_id)
        if raw not in self._by_raw:
            raise LookupError(f"the awakeable {awakeable_id!r} belongs to no invocation that is known here.")
        self.signal(self._by_raw[raw], signal_id=number, **fields)

    def cancel(self, invocation_id: str) -> None:
        """Ask an invocation to end, as an operator does; one that has not begun is gone at once."""
        self.signal(invocation_id, signal_id=CANCEL_SIGNAL, void={})
        self.resume(invocation_id)

    def kill(self, invocation_id: str) -> None:
        """End an invocation at once, without its doing, and all that it has called or sent."""
        invocation = self.invocations[invocation_id]
        killed = Failure(_CANCELLED, "killed")
        if not invocation.has_begun:
            self._forget(invocation, killed)
        elif not invocation.ended:
            self._end(invocation, None, killed)
            for child in invocation.children:
                self.kill(child)

    def pause(self, invocation_id: str) -> None:
        """Keep an invocation from being tried again until it is resumed."""
        invocation = self.invocations[invocation_id]
        if not invocation.ended:
            invocation.status = InvocationStatus.PAUSED
            invocation.epoch += 1

    def resume(self, invocation_id: str) -> None:
        """Try a paused invocation again."""
        invocation = self.invocations[invocation_id]
        if invocation.status is InvocationStatus.PAUSED:
            invocation.failures = invocation.failures_in_a_row = 0
            invocation.last_error = None
            invocation.status = InvocationStatus.READY

    # --- time and deliveries ------------------------------------------------------------------------------------

    def deliver(self, index: int) -> None:
        """Let one of :attr:`deliveries` arrive, which must be one of :meth:`arriving`."""
        self._do(self.deliveries.pop(index)[:3])

    def arriving(self) -> list[int]:
        """Return which of :attr:`deliveries` may arrive next, oldest first."""
        if len(self.deliveries) == 1:
            return [0]
        seen: set[tuple[str, str]] = set()
        indices: list[int] = []
        for index, (_, target, _, sender) in enumerate(self.deliveries):
            if sender is None:
                indices.append(index)
            elif (target, sender) not in seen:
                indices.append(index)
                seen.add((target, sender))
        return indices

    def _deliver(self, verb: str, target: str, what: Any, *, sender: str | None) -> None:
        self.deliveries.append(Delivery(verb, target, what, sender))

    def next_timer(self) -> int | None:
        """Return when the next timer is due; timers that have lost their point are dropped."""
        while self.timers and self._pointless(self.timers[0]):
            del self.timers[0]
        return self.timers[0].due if self.timers else None

    def due_together(self) -> bool:
        """Whether the next two timers are due at once, for one invocation."""
        due = [timer.what[1] for timer in self.timers[:2] if timer.due == self.timers[0].due]
        return len(due) > 1 and due[0] == due[1]

    def advance(self, to: int, *, timers: int | None = None) -> None:
        """Let time pass, and everything happen that is due by then; or only what the first ``timers`` bring."""
        self.now = max(self.now, to)
        while self.timers and self.timers[0].due <= self.now and timers != 0:
            timer = self.timers.pop(0)
            if not self._pointless(timer):
                self._do(timer.what)
                timers = None if timers is None else timers - 1

    def _pointless(self, timer: Timer) -> bool:
        invocation = self.invocations[timer.what[1]]
        return (
            invocation.ended
            or (timer.what[0] == "retry" and timer.what[2] != invocation.epoch)
            or self.is_left(invocation)
        )

    def is_left(self, invocation: Invocation) -> bool:
        """Whether an invocation does not begin because it would go on for ever; see :attr:`rounds`."""
        return (
            invocation.status is InvocationStatus.SCHEDULED
            and self.rounds is not None
            and invocation.rounds.get(invocation.info.target, 0) > self.rounds
        )

    def _do(self, what: tuple[Any, ...]) -> None:
        verb, invocation = what[0], self.invocations[what[1]]
        if verb == "begin":
            self._admit(invocation)
        elif verb == "retry":
            invocation.status = InvocationStatus.READY
        elif verb == "complete":
            self._complete(invocation, what[2])
        elif verb == "signal":
            self._signal(invocation, what[2])
        elif verb == "attach":
            waiter, number = what[2]
            self._attach_to(invocation, self.invocations[waiter], number)

    def _set_timer(self, due: int, what: tuple[Any, ...]) -> None:
        self._timers_set += 1
        self.timers.append(Timer(due, self._timers_set, what))
        self.timers.sort()

    # --- what an attempt sends ----------------------------------------------------------------------------------

    def receive(self, invocation_id: str, frame: Frame) -> None:
        """Take a message of the open attempt of an invocation."""
        invocation = self.invocations[invocation_id]
        if invocation.status is not InvocationStatus.RUNNING:
            return
        kind = MessageType(frame.type)
        if is_command(kind):
            if kind in (MessageType.CALL, MessageType.ONE_WAY_CALL) and not self._accepts(invocation, decode(frame)):
                return
            self._store(invocation, frame)
            handle = self._HANDLERS.get(kind)
            if handle is not None:
                handle(self, invocation, kind, decode(frame))
        elif kind is MessageType.PROPOSE_RUN_COMPLETION:
            self._propose(invocation, frame)
        elif kind is MessageType.SUSPENSION:
            self._suspend(invocation, decode(frame))
        elif kind is MessageType.ERROR:
            fields = decode(frame)
            code, message = fields.get("code", 500), fields.get("message", "")
            if code == UNSUPPORTED_FEATURE:
                message = with_version_hint(message)
            failure = Failure(code, message, (), fields.get("stacktrace", ""))
            self._fail_attempt(invocation, failure, fields.get("next_retry_delay"), fields.get("behavior", 0))
        elif kind is MessageType.END:
            self._end(invocation, invocation.output, invocation.failure)

    def _store(self, invocation: Invocation, frame: Frame) -> None:
        invocation.journal.append(frame)
        invocation.digest = hash((invocation.digest, frame.type, self.opaque.renamed(frame.body), frame.flags))
        invocation.failures = 0
        self.history.append((invocation, frame))

    def _propose(self, invocation: Invocation, frame: Frame) -> None:
        fields = decode(frame)
        number = fields["completion_id"]
        if number in invocation.completed:
            name = invocation.runs.get(number, "?")
            self.anomalies.append(f"step {name!r} of {invocation.target} has a second result; the first one counts")
            return
        result: dict[str, Any] = (
            {"failure": fields["failure"]} if "failure" in fields else {"value": _value(fields.get("value", b""))}
        )
        completion = make(MessageType.RUN_COMPLETION, completion_id=number, **result)
        self._complete(invocation, completion, tell=self.version < 7)
        if frame.flags & REQUESTED_ACK:
            self.outbox.append((invocation.id, make(MessageType.PROPOSE_RUN_COMPLETION_ACK, completion_id=number)))

    def _suspend(self, invocation: Invocation, fields: dict[str, Any]) -> None:
        invocation.awaits = fields.get("awaiting_on", fields)
        invocation.status = InvocationStatus.SUSPENDED
        invocation.failures_in_a_row = 0
        # The server looks at what is there, not at whether it was there before. So one that has seen its cancellation
        # is tried again without end while it waits for something else; here, until an attempt brings nothing new.
        if len(invocation.journal) > invocation.began_with and _resolved(invocation.awaits, invocation):
            invocation.status = InvocationStatus.READY

    def _fail_attempt(self, invocation: Invocation, failure: Failure, delay: int | None, behavior: int) -> None:
        self._count_failure(invocation)
        invocation.last_error = failure
        invocation.epoch += 1
        rules = invocation.info.retry
        exhausted = rules.attempts is not None and invocation.failures_in_a_row >= rules.attempts
        if behavior == _FAIL or self.disable_retries or (exhausted and rules.on_exhausted == "KILL"):
            self._end(invocation, None, failure)
        elif behavior == _PAUSE or exhausted or (failure.code in _HOPELESS and not self.retry_mismatches):
            invocation.status = InvocationStatus.PAUSED
        else:
            invocation.status = InvocationStatus.BACKING_OFF
            wait = rules.delay(invocation.failures_in_a_row) if delay is None else delay
            self._set_timer(self.now + wait, ("retry", invocation.id, invocation.epoch))

    def _count_failure(self, invocation: Invocation) -> None:
        if invocation.failures == 0:
            invocation.failing_since = self.now
        invocation.failures += 1
        invocation.failures_in_a_row += 1

    def _end(self, invocation: Invocation, output: bytes | None, failure: Failure | None) -> None:
        invocation.status = InvocationStatus.COMPLETED
        invocation.epoch += 1
        invocation.output, invocation.failure = output, failure
        for waiter, number, kind in invocation.waiters:
            self._deliver("complete", waiter, self._result(invocation, kind, number), sender=invocation.id)
        invocation.waiters.clear()
        self._leave(invocation)

    def _forget(self, invocation: Invocation, removal: Failure) -> None:
        """End an invocation that has not begun, and store nothing of it."""
        self._end(invocation, None, removal)
        invocation.failure, invocation.removal = Failure(_NOT_FOUND, "not found"), removal
        self._idempotent = {same: known for same, known in self._idempotent.items() if known != invocation.id}

    # --- keys ---------------------------------------------------------------------------------------------------

    def _object(self, invocation: Invocation) -> _Object:
        key = invocation.target.key
        assert key is not None
        return self.objects.setdefault((invocation.target.service, key, invocation.target.scope), _Object())

    def _admit(self, invocation: Invocation) -> None:
        invocation.status = InvocationStatus.READY
        if invocation.info.exclusive:
            place = self._object(invocation)
            if place.holder is None:
                place.holder = invocation.id
            else:
                place.queue.append(invocation.id)
                invocation.status = InvocationStatus.QUEUED

    def _leave(self, invocation: Invocation) -> None:
        if not invocation.info.exclusive:
            return
        place = self._object(invocation)
        if invocation.id in place.queue:
            place.queue.remove(invocation.id)
        elif place.holder == invocation.id:
            place.holder = place.queue.popleft() if place.queue else None
            if place.holder is not None:
                self.invocations[place.holder].status = InvocationStatus.READY

    # --- completions and signals --------------------------------------------------------------------------------

    def _complete(self, invocation: Invocation, frame: Frame, *, tell: bool = True) -> None:
        number = decode(frame)["completion_id"]
        if invocation.ended or number in invocation.completed:
            return
        invocation.completed.add(number)
        self._notify(invocation, frame, tell=tell)

    def _signal(self, invocation: Invocation, frame: Frame) -> None:
        if invocation.ended:
            return
        fields = decode(frame)
        if not invocation.has_begun and fields.get("signal_id") == CANCEL_SIGNAL:
            self._forget(invocation, Failure(_CANCELLED, "canceled"))
        if invocation.ended or not invocation.has_begun:
            # The server drops other signals: nothing is there yet that could keep them.
            return
        invocation.signals.add(fields.get("signal_name") or fields["signal_id"])
        self._notify(invocation, frame, tell=True)

    def _notify(self, invocation: Invocation, frame: Frame, *, tell: bool) -> None:
        self._store(invocation, frame)
        if invocation.status is InvocationStatus.RUNNING:
            if tell:
                self.outbox.append((invocation.id, frame))
        elif invocation.status is InvocationStatus.SUSPENDED and _resolved(invocation.awaits, invocation):
            invocation.status = InvocationStatus.READY

    def _answer(self, invocation: Invocation, command: MessageType, number: int, **fields: Any) -> None:
        self._complete(invocation, make(notification_of(command), completion_id=number, **fields))

    # --- commands -----------------------------------------------------------------------------------------------

    def _run(self, invocation: Invocation, kind: MessageType, fields: dict[str, Any]) -> None:
        invocation.runs[fields["completion_id"]] = fields.get("name", "")

    def _sleep(self, invocation: Invocation, kind: MessageType, fields: dict[str, Any]) -> None:
        done = make(MessageType.SLEEP_COMPLETION, completion_id=fields["completion_id"], void={})
        self._set_timer(max(self.now, fields.get("wake_up_time", 0)), ("complete", invocation.id, done))

    def _accepts(self, invocation: Invocation, fields: dict[str, Any]) -> bool:
        """Return whether the server accepts a call; if not, pause the invocation. A server would retry without end."""
        try:
            _ = self.manifest[_target(fields)]
        except UnknownHandlerError as error:
            reason: str | None = str(error)
        else:
            reason = refusal(fields.get("scope"), fields.get("limit_key"))
        if reason is not None:
            self._fail_attempt(invocation, Failure(500, reason), None, _PAUSE)
        return reason is None

    def _call(self, invocation: Invocation, kind: MessageType, fields: dict[str, Any]) -> None:
        known = len(self.invocations)
        child = self.submit(
            _target(fields),
            fields.get("parameter", b""),
            headers=tuple((pair.get("key", ""), pair.get("value", "")) for pair in fields.get("headers", ())),
            idempotency_key=fields.get("idempotency_key"),
            limit_key=fields.get("limit_key"),
            at=fields.get("invoke_time", 0),
        )
        invocation.children.append(child.id)
        if len(self.invocations) > known:
            child.rounds = {**invocation.rounds}
            child.rounds[child.info.target] = child.rounds.get(child.info.target, 0) + 1
        made = make(
            MessageType.CALL_INVOCATION_ID_COMPLETION,
            completion_id=fields["invocation_id_completion_id"],
            invocation_id=child.id,
        )
        self._complete(invocation, made)
        if kind is MessageType.CALL:
            number = fields["completion_id"]
            if child.info.workflow and len(self.invocations) == known:
                taken = Failure(_CANCELLED, "the workflow method was already invoked")
                self._answer(invocation, kind, number, failure=taken.fields())
            else:
                self._wait_for(invocation, child, number, MessageType.CALL)

    def _wait_for(self, invocation: Invocation, other: Invocation, number: int, kind: MessageType) -> None:
        if other.ended:
            self._deliver("complete", invocation.id, self._result(other, kind, number), sender=other.id)
        else:
            other.waiters.append((invocation.id, number, kind))

    @staticmethod
    def _result(ended: Invocation, command: MessageType, number: int) -> Frame:
        kind = notification_of(command)
        if ended.failure is not None:
            return make(kind, completion_id=number, failure=ended.failure.fields())
        return make(kind, completion_id=number, value=_value(ended.output or b""))

    def _get_state(self, invocation: Invocation, kind: MessageType, fields: dict[str, Any]) -> None:
        value = self._object(invocation).state.get(fields["key"])
        found: dict[str, Any] = {"void": {}} if value is None else {"value": _value(value)}
        self._answer(invocation, kind, fields["completion_id"], **found)

    def _get_state_keys(self, invocation: Invocation, kind: MessageType, fields: dict[str, Any]) -> None:
        keys = sorted(self._object(invocation).state)
        self._answer(invocation, kind, fields["completion_id"], state_keys={"keys": keys})

    def _change_state(self, invocation: Invocation, kind: MessageType, fields: dict[str, Any]) -> None:
        state = self._object(invocation).state
        if kind is MessageType.SET_STATE:
            state[fields["key"]] = fields.get("value", {}).get("content", b"")
        elif kind is MessageType.CLEAR_STATE:
            state.pop(fields["key"], None)
        else:
            state.clear()

    def _promise(self, invocation: Invocation, name: str) -> _Promise:
        target = invocation.target
        return self._promises.setdefault((target.service, target.key or "", target.scope, name), _Promise())

    @staticmethod
    def _promised(promise: _Promise) -> dict[str, Any]:
        if promise.failure is not None:
            return {"failure": promise.failure.fields()}
        return {"void": {}} if promise.value is None else {"value": _value(promise.value)}

    def _get_promise(self, invocation: Invocation, kind: MessageType, fields: dict[str, Any]) -> None:
        promise = self._promise(invocation, fields["key"])
        if promise.completed:
            self._answer(invocation, kind, fields["completion_id"], **self._promised(promise))
        else:
            promise.waiters.append((invocation.id, fields["completion_id"]))

    def _peek_promise(self, invocation: Invocation, kind: MessageType, fields: dict[str, Any]) -> None:
        promise = self._promise(invocation, fields["key"])
        self._answer(invocation, kind, fields["completion_id"], **self._promised(promise))

    def _complete_promise(self, invocation: Invocation, kind: MessageType, fields: dict[str, Any]) -> None:
        promise = self._promise(invocation, fields["key"])
        if promise.completed:
            taken = Failure(409, "promise was already completed")
            self._answer(invocation, kind, fields["completion_id"], failure=taken.fields())
            return
        if "failure" in fields:
            promise.failure = Failure.of(fields["failure"])
        else:
            promise.value = fields.get("value", {}).get("content", b"")
        self._answer(invocation, kind, fields["completion_id"], void={})
        for waiter, number in promise.waiters:
            done = make(MessageType.GET_PROMISE_COMPLETION, completion_id=number, **self._promised(promise))
            self._deliver("complete", waiter, done, sender=None)
        promise.waiters.clear()

    def _send_signal(self, invocation: Invocation, kind: MessageType, fields: dict[str, Any]) -> None:
        names = ("signal_id", "signal_name", "void", "value", "failure")
        signal = make(MessageType.SIGNAL, flags=0, **{name: fields[name] for name in names if name in fields})
        if fields["target"] in self.invocations:
            self._deliver("signal", fields["target"], signal, sender=invocation.id)

    def _complete_awakeable(self, invocation: Invocation, kind: MessageType, fields: dict[str, Any]) -> None:
        raw, number = awakeable_of(fields["id"])
        outcome: dict[str, Any] = {name: fields[name] for name in ("value", "failure") if name in fields}
        if raw in self._by_raw:
            signal = make(MessageType.SIGNAL, flags=0, signal_id=number, **outcome)
            self._deliver("signal", self._by_raw[raw], signal, sender=invocation.id)

    def _named_invocation(self, fields: dict[str, Any]) -> Invocation | None:
        if "invocation_id" in fields:
            known = self.invocations.get(fields["invocation_id"])
            return None if known is None or known.removal is not None else known
        if "workflow" in fields:
            names = fields["workflow"]
            runs = [info for info in self.manifest.handlers.values() if info.workflow]
            for info in runs:
                if info.target[0] == names["workflow"]:
                    target = Target(*info.target, names.get("key", ""))
                    return self.invocations.get(self._idempotent.get((target, ""), ""))
            return None
        names = fields.get("idempotent", {})
        target = Target(names.get("service", ""), names.get("handler", ""), names.get("key"))
        return self.invocations.get(self._idempotent.get((target, names.get("idempotency_key", "")), ""))

    def _attach(self, invocation: Invocation, kind: MessageType, fields: dict[str, Any]) -> None:
        other, number = self._named_invocation(fields), fields["completion_id"]
        if other is None:
            self._answer(invocation, kind, number, failure=Failure(_NOT_FOUND, "not found").fields())
        elif any((each.sender, each.target) == (invocation.id, other.id) for each in self.deliveries):
            self._deliver("attach", other.id, (invocation.id, number), sender=invocation.id)
        else:
            self._attach_to(other, invocation, number)

    def _attach_to(self, other: Invocation, waiter: Invocation, number: int) -> None:
        kind = MessageType.ATTACH_INVOCATION
        if other.removal is not None:
            self._answer(waiter, kind, number, failure=Failure(_NOT_FOUND, "not found").fields())
        else:
            self._wait_for(waiter, other, number, kind)

    def _get_output(self, invocation: Invocation, kind: MessageType, fields: dict[str, Any]) -> None:
        other = self._named_invocation(fields)
        if other is None or not other.ended:
            self._answer(invocation, kind, fields["completion_id"], void={})
        else:
            self._complete(invocation, self._result(other, kind, fields["completion_id"]))

    def _output(self, invocation: Invocation, kind: MessageType, fields: dict[str, Any]) -> None:
        if "failure" in fields:
            invocation.failure = Failure.of(fields["failure"])
        else:
            invocation.output = fields.get("value", {}).get("content", b"")

    _HANDLERS: ClassVar[Mapping[int, Callable[..., None]]] = {
        MessageType.SLEEP: _sleep,
        MessageType.CALL: _call,
        MessageType.ONE_WAY_CALL: _call,
        MessageType.RUN: _run,
        MessageType.GET_LAZY_STATE: _get_state,
        MessageType.GET_LAZY_STATE_KEYS: _get_state_keys,
        MessageType.SET_STATE: _change_state,
        MessageType.CLEAR_STATE: _change_state,
        MessageType.CLEAR_ALL_STATE: _change_state,
        MessageType.GET_PROMISE: _get_promise,
        MessageType.PEEK_PROMISE: _peek_promise,
        MessageType.COMPLETE_PROMISE: _complete_promise,
        MessageType.SEND_SIGNAL: _send_signal,
        MessageType.COMPLETE_AWAKEABLE: _complete_awakeable,
        MessageType.ATTACH_INVOCATION: _attach,
        MessageType.GET_INVOCATION_OUTPUT: _get_output,
        MessageType.OUTPUT: _output,
    }
    """What is done about each type of command."""


def _value(content: bytes) -> dict[str, Any]:
    """Return a value's fields; protobuf leaves out what is empty."""
    return {"content": content} if content else {}


@lru_cache(maxsize=1024)
def _seed_of(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{number}".encode()).digest()[:8], "big")


def _target(fields: Mapping[str, Any]) -> Target:
    return Target(fields.get("service", ""), fields.get("handler", ""), fields.get("key"), fields.get("scope"))


def _resolved(awaits: Mapping[str, Any], invocation: Invocation) -> bool:
    """Whether a tree of what is waited for is there: any of it, or all of it where the tree says so."""
    there = [number in invocation.completed for number in awaits.get("completions", ())]
    there += [number in invocation.signals for number in awaits.get("signals", ())]
    there += [name in invocation.signals for name in awaits.get("named", ())]
    there += [_resolved(inner, invocation) for inner in awaits.get("nested", ())]
    return all(there) if awaits.get("combinator") == _ALL else any(there)
