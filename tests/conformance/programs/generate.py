"""Draw a program from a seed, so that the invariants at the head of this package hold."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from tests.conformance.programs.program import Op, Program

__all__ = ["DEEPEST", "generate"]

DEEPEST = 4
MOST_NODES = 10
MOST_OPS = 5

_STATE = ("a", "b", "c")
_VALUES = (0, 17, "", "text", "ä€", [], [1, "two"], {"x": None}, False, None)
_CODES = (400, 404, 409, 418, 500, 503)
_BLOCKS = ("sleep", "awakeable", "signal", "sleep+awakeable", "awakeable+sleep", "signal+awakeable")
_IN_FLOW = (*_BLOCKS, "promise", "promise+sleep")


@dataclass(frozen=True)
class _Place:
    """Where a body is.

    Attributes:
        kind: The kind of its node.
        key: The key of its node.
        depth: How deep its node is, from 1.
        held: The keys that it or one of those that wait for it has for itself, with their kinds.
        strand: The keys of all that happens one after the other, here and before.
    """

    kind: str
    key: str | None
    depth: int
    held: frozenset[tuple[str, str]]
    strand: _Strand

    @property
    def has_state(self) -> bool:
        return self.kind != "service"

    @property
    def changes_state(self) -> bool:
        return self.has_state and not self.kind.endswith("-shared")

    @property
    def is_flow(self) -> bool:
        return self.kind.startswith("workflow")


@dataclass
class _Strand:
    """Invocations that follow one another, and their keys.

    Attributes:
        keys: The kinds and keys.
        queued: Those among them that may have messages in their queue, so that nobody looks at them from aside.
    """

    keys: list[tuple[str, str]]
    queued: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])


def generate(seed: int) -> Program:
    """Draw a program."""
    return _Generator(seed).program()


class _Generator:
    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._random = random.Random(seed)
        self._nodes: list[dict[str, Any]] = []
        self._client: list[list[Any]] = []
        self._counts: dict[str, int] = {}

    def program(self) -> Program:
        place = self._place(1, frozenset(), self._strand())
        body = self._one([self._body] * 6 + [self._cancelled_by_client] * 3 + [self._killed_by_client])
        self._node(place, body)
        program: Program = {"seed": self._seed, "nodes": self._nodes, "client": self._client}
        if self._chance(0.2) and place.kind != "workflow":
            program["idempotency_key"] = "again"
        return program

    # --- chance ---

    def _chance(self, of: float) -> bool:
        return self._random.random() < of

    def _one(self, of: Iterable[Any]) -> Any:
        return self._random.choice(list(of))

    def _fresh(self, what: str) -> str:
        self._counts[what] = self._counts.get(what, 0) + 1
        return f"{what}{self._counts[what]}"

    def _outcome(self) -> list[Any]:
        return ["failure", self._one(_CODES), self._fresh("no")] if self._chance(0.3) else ["value", self._one(_VALUES)]

    # --- nodes ---

    def _strand(self) -> _Strand:
        kinds = ("object", "lazy")
        return _Strand([(self._one(kinds), self._fresh("k")) for _ in range(self._random.randint(1, 2))])

    def _place(self, depth: int, held: frozenset[tuple[str, str]], strand: _Strand) -> _Place:
        """Choose what a new node is that runs in a strand."""
        free = [each for each in strand.keys if each not in held]
        seen = [each for each in strand.keys if each not in strand.queued]
        choices: list[tuple[str, str | None]] = [("service", None), ("service", None), ("workflow", "")]
        choices += [*free, *free, *((f"{kind}-shared", key) for kind, key in seen)]
        kind, key = self._one(choices)
        if kind == "workflow":
            key = self._fresh("w")
        if key is not None and not kind.endswith("-shared"):
            held |= {(kind, key)}
        return _Place(kind, key, depth, held, strand)

    def _node(self, place: _Place, body: Callable[[_Place], list[Op]]) -> int:
        number = len(self._nodes)
        node: dict[str, Any] = {"kind": place.kind, "key": place.key, "body": []}
        self._nodes.append(node)
        node["body"] = body(place)
        return number

    def _below(self, place: _Place, *, aside: bool = False) -> _Place:
        """Choose the place of a node that another one calls: in its strand, or aside of it."""
        return self._place(place.depth + 1, place.held, self._strand() if aside else place.strand)

    def _child(self, place: _Place, *, aside: bool = False) -> int:
        return self._node(self._below(place, aside=aside), self._body)

    def _may_call(self, place: _Place) -> bool:
        return place.depth < DEEPEST and len(self._nodes) < MOST_NODES

    # --- bodies ---

    def _body(self, place: _Place) -> list[Op]:
        ops = list(self._several(place, self._random.randint(1, MOST_OPS)))
        if place.depth > 1 and self._chance(0.12):
            ops.append(["fail", self._one(_CODES), self._fresh("no")])
        return ops

    def _several(self, place: _Place, count: int) -> Iterator[Op]:
        for _ in range(count):
            if self._may_call(place) and self._chance(0.55):
                yield from self._calling(place)
            elif self._chance(0.25):
                yield from self._waiting(place)
            elif place.changes_state and self._chance(0.3):
                yield from self._much_state(place)
            else:
                yield self._local(place)

    def _some_local(self, place: _Place, most: int = 2) -> list[Op]:
        return [self._local(place) for _ in range(self._random.randint(0, most))]

    def _local(self, place: _Place) -> Op:
        """Draw an operation that has to do with nobody else."""
        choices: list[Op] = [
            ["run", self._fresh("step"), self._one(_VALUES)],
            ["run_sync", self._fresh("step"), self._one(_VALUES)],
            ["sleep", self._one((0, 1, 5, 15))],
            self._one(
                (
                    ["retried", self._fresh("step"), self._random.randint(1, 3), self._one(_VALUES)],
                    ["crash", self._fresh("crash"), self._random.randint(1, 2)],
                    ["try", [["refuse", self._fresh("step"), self._one(_CODES), self._fresh("no")]]],
                    ["try", [["exhausted", self._fresh("step"), self._random.randint(1, 2)]]],
                    ["try", [["run", self._fresh("step"), 1], ["fail", self._one(_CODES), self._fresh("no")]]],
                )
            ),
        ]
        if place.has_state:
            choices += [["get", self._one(_STATE)], ["get", self._one(_STATE)], ["keys"]]
        if place.changes_state:
            choices += [["set", self._one(_STATE), self._one(_VALUES)] for _ in range(4)]
            choices += [["clear", self._one(_STATE)], ["clear_all"]]
        if place.is_flow:
            choices += [["peek", "never"]]
        return self._one(choices)

    def _much_state(self, place: _Place) -> Iterator[Op]:
        """Change the state, and look at it in a later attempt."""
        for key in self._random.sample(_STATE, self._random.randint(1, len(_STATE))):
            yield self._one((["set", key, self._one(_VALUES)], ["set_raw", key, self._one(("", "raw"))]))
        yield self._one((["crash", self._fresh("crash"), 1], ["sleep", 1], ["run", self._fresh("step"), 1]))
        yield from self._one(([["keys"]], [["get", self._one(_STATE)], ["keys"]], [["get", self._one(_STATE)]]))

    # --- waiting for the client, or for oneself ---

    def _waiting(self, place: _Place) -> Iterator[Op]:
        draws = [self._awakeable, self._awakeable, self._signal, self._group, self._group, self._own]
        if place.is_flow:
            draws += [self._own_promise] * 3
        if place.kind == "workflow":
            draws += [self._promise_by_client] * 2
        yield from self._one(draws)(place)

    def _own(self, place: _Place) -> Iterator[Op]:
        """Act on oneself."""
        outcome = self._outcome()
        own: Op = self._one((["own_awakeable", outcome], ["own_signal", self._fresh("signal"), outcome]))
        yield self._maybe_caught(own, outcome)

    def _maybe_caught(self, op: Op, outcome: list[Any] | None) -> Op:
        """Catch a failure more often than not, so that programs go on."""
        fails = outcome is None or outcome[0] == "failure"
        return ["try", [op]] if fails and self._chance(0.8) else op

    def _between(self, place: _Place) -> dict[str, Any]:
        return {"between": between} if (between := self._some_local(place)) and self._chance(0.4) else {}

    def _awakeable(self, place: _Place) -> Iterator[Op]:
        mark, outcome = self._fresh("awakeable"), self._outcome()
        self._client.append([mark, "complete", outcome])
        yield self._maybe_caught(["awakeable", mark, self._between(place)], outcome)

    def _signal(self, place: _Place) -> Iterator[Op]:
        name, outcome = self._fresh("signal"), self._outcome()
        self._client.append([name, "signal", name, outcome])
        yield self._maybe_caught(["signal", name, name, self._between(place)], outcome)

    def _promise_by_client(self, place: _Place) -> Iterator[Op]:
        name, outcome = self._promise_of_client(place)
        yield self._maybe_caught(["promise", name, name], outcome)

    def _promise_of_client(self, place: _Place) -> tuple[str, list[Any]]:
        name = self._fresh("promise")
        complete, outcome = self._complete_promise(name)
        beside = replace(place, kind="workflow-shared", depth=place.depth + 1)
        poke = self._node(beside, lambda _: [complete, ["peek", name]] if outcome[0] == "value" else [complete])
        self._client.append([name, "call", poke])
        return name, outcome

    def _complete_promise(self, name: str) -> tuple[Op, list[Any]]:
        outcome = self._outcome()
        verb = "resolve" if outcome[0] == "value" else "reject"
        return [verb, name, *outcome[1:]], outcome

    def _own_promise(self, place: _Place) -> Iterator[Op]:
        """Complete a promise, then look at it, and perhaps try it once more."""
        name = self._fresh("promise")
        complete, outcome = self._complete_promise(name)
        yield ["peek", name]
        yield complete
        if self._chance(0.4):
            yield ["try", [self._complete_promise(name)[0]]]
        for verb in ("promise", "peek"):
            if self._chance(0.7):
                yield self._maybe_caught([verb, name], outcome)

    def _group(self, place: _Place) -> Iterator[Op]:
        """Draw several things at once: all of them, or one that comes and others that never do."""
        how = self._one(("gather", "as_completed", "select", "wait_completed"))
        if how in ("gather", "as_completed"):
            yield [how, [self._begun(place) for _ in range(self._random.randint(1, 4))]]
            return
        ops = [self._begun(place), *(["never", self._one(_BLOCKS[:3])] for _ in range(self._random.randint(1, 2)))]
        self._random.shuffle(ops)
        yield ["try", [[how, ops]]]

    def _begun(self, place: _Place) -> Op:
        choices: list[Callable[[], Op]] = [
            lambda: ["run", self._fresh("step"), self._one(_VALUES)],
            lambda: ["refuse", self._fresh("step"), self._one(_CODES), self._fresh("no")],
            lambda: ["sleep", self._one((0, 5, 15))],
            self._begun_awakeable,
        ]
        if place.kind == "workflow":
            choices += [lambda: ["promise", self._promise_of_client(place)[0]]] * 2
        if self._may_call(place):
            choices += [lambda: ["call", self._child(place, aside=True), {}]] * 3
        op: Op = self._one(choices)()
        return op

    def _begun_awakeable(self) -> Op:
        mark = self._fresh("awakeable")
        self._client.append([mark, "complete", self._outcome()])
        return ["awakeable", mark]

    # --- calling others ---

    def _calling(self, place: _Place) -> Iterator[Op]:
        draws = [self._call] * 4 + [self._send, self._send, self._attach, self._call_twice, self._queue, self._flow]
        draws += [self._asked, self._asked, self._cancelled_by_caller, self._cancelled_by_caller]
        draws += [self._unstarted, self._afterwards, self._cancelled_by_itself]
        yield from self._one(draws)(place)

    def _call(self, place: _Place) -> Iterator[Op]:
        options: dict[str, Any] = {}
        if self._chance(0.2):
            options["headers"] = {"x-conformance": self._fresh("header")}
        if self._chance(0.2):
            options["id"] = True
        number = self._child(place)
        if self._chance(0.2) and self._nodes[number]["kind"] != "workflow":
            options["idempotency_key"] = self._fresh("i")
        yield self._maybe_caught(["call", number, options], None)

    def _sending(self) -> dict[str, Any]:
        options: dict[str, Any] = {"id": True} if self._chance(0.5) else {}
        return options | ({"delay": self._one((0, 1, 20))} if self._chance(0.4) else {})

    def _send(self, place: _Place) -> Iterator[Op]:
        yield ["send", self._child(place, aside=True), self._sending()]

    def _attach(self, place: _Place) -> Iterator[Op]:
        number = self._child(place, aside=True)
        yield self._maybe_caught(["attach", number, self._sending() | self._between(place)], None)

    def _call_twice(self, place: _Place) -> Iterator[Op]:
        """Call one invocation twice: by its idempotency key, or since it is a workflow, which is refused."""
        number = self._child(place, aside=True)
        is_flow = self._nodes[number]["kind"] == "workflow"
        verb = self._one(("call_twice", "send_and_call"))
        options = {"delay": self._one((0, 20))} if verb == "send_and_call" and self._chance(0.5) else {}
        yield [verb, number, options if is_flow else options | {"idempotency_key": self._fresh("i")}]

    def _afterwards(self, place: _Place) -> Iterator[Op]:
        acts = self._one(({"signal": True}, {"cancel": True}, {"signal": True, "cancel": True}))
        yield ["afterwards", self._child(place), acts]

    def _queue(self, place: _Place) -> Iterator[Op]:
        """Send to an object several times; if it is not held, call it then."""
        kind, key = held = self._one(place.strand.keys)
        is_held = held in place.held
        place.strand.queued.add(held)
        there = _Place(kind, key, DEEPEST, place.held | {held}, place.strand)
        for _ in range(self._random.randint(1, 3)):
            yield ["send", self._node(there, self._message), {}]
        if not is_held:
            yield self._maybe_caught(["call", self._node(there, self._message), {}], None)

    def _message(self, place: _Place) -> list[Op]:
        """Draw a body that shows when it ran."""
        return [["get", "last"], ["set", "last", self._fresh("message")], *self._some_local(place)]

    def _flow(self, place: _Place) -> Iterator[Op]:
        """Run a workflow, and complete a promise of it before, or while it waits."""
        key, name = self._fresh("w"), self._fresh("promise")
        complete, outcome = self._complete_promise(name)
        flow = _Place("workflow", key, place.depth + 1, place.held | {("workflow", key)}, self._strand())
        beside = replace(flow, kind="workflow-shared")
        wait = self._maybe_caught(["promise", name], outcome)
        run = self._node(flow, lambda at: [*self._some_local(at), wait, *self._some_local(at)])
        poke = self._node(beside, lambda at: [complete, *self._some_local(replace(at, kind="service"))])
        look = self._node(beside, lambda at: [wait])
        before = self._chance(0.5)
        if before:
            yield ["call", poke, {}]
        else:
            yield ["send", run, self._sending()]
            yield ["call", poke, {}]
        if before:
            yield self._maybe_caught(["call", run, {}], outcome)
        if self._chance(0.6):
            yield self._maybe_caught(["call", look, {}], outcome)

    def _asked(self, place: _Place) -> Iterator[Op]:
        """Wait for an awakeable or a signal that another invocation completes or sends."""
        outcome = self._outcome()
        name = self._fresh("signal")
        by_signal = self._chance(0.5)
        act: Op = ["send_signal", name, outcome] if by_signal else ["complete", outcome]
        options: dict[str, Any] = self._one(({}, {"sent": True}, {"call_first": True}))

        def body(at: _Place) -> list[Op]:
            acts = [act, [*act[:-1], self._outcome()]] if "call_first" in options and self._chance(0.5) else [act]
            return [*self._some_local(at), *acts, *self._some_local(at)]

        number = self._node(self._below(place, aside=True), body)
        options = options | self._between(place)
        op = ["signal_by", number, name, options] if by_signal else ["awakeable_by", number, options]
        yield self._maybe_caught(op, outcome)

    # --- cancelling ---

    def _cancelled_by_caller(self, place: _Place) -> Iterator[Op]:
        verb = self._one(("cancel_call", "cancel_send"))
        number = self._node(self._below(place, aside=True), lambda at: self._chain(at, [], self._random.randint(0, 1)))
        yield [verb, number, {}]

    def _cancelled_by_client(self, place: _Place) -> list[Op]:
        """Draw the body of one that waits forever or calls one that does; the client cancels one of them."""
        chain: list[int] = [0]
        ops = list(self._several(place, self._random.randint(0, 2)))
        ops += self._chain(place, chain, self._random.randint(0, 2))
        self._client.append([f"block {chain[-1]}", "cancel", self._one(chain)])
        return ops

    def _killed_by_client(self, place: _Place) -> list[Op]:
        """Draw the same, but all that is below the one that is killed has to wait by then."""
        chain: list[int] = [0]
        ops = self._chain(place, chain, self._random.randint(0, 2), killed=True)
        self._client.append([f"block {chain[-1]}", "kill", self._one(chain)])
        return ops

    def _unstarted(self, place: _Place) -> Iterator[Op]:
        """Cancel what waits for its time or for the key, or send a signal to what waits for the key, which is lost."""
        holds = place.changes_state and not place.is_flow
        how = self._one(("scheduled", "queued", "called") if holds else ("scheduled",))
        below = self._queued(place) if holds else self._below(place, aside=True)
        if how == "queued" and self._chance(0.6):
            place.strand.queued.add((place.kind, place.key or ""))
            yield ["signal_queued", self._node(below, self._some_local), self._fresh("signal"), self._outcome()]
        else:
            yield ["cancel_unstarted", self._node(below, self._some_local), how]

    def _queued(self, place: _Place) -> _Place:
        """Return the place of one that waits for the key that is held here."""
        return replace(place, depth=DEEPEST)

    def _chain(self, place: _Place, chain: list[int], longer: int, *, killed: bool = False) -> list[Op]:
        """Draw a body that waits forever, or calls another one that does."""
        ops = self._some_local(place)
        if longer and place.depth < DEEPEST:
            number = len(self._nodes)
            chain.append(number)
            below = self._below(place, aside=True)
            self._node(below, lambda at: self._chain(at, chain, longer - 1, killed=killed))
            options: dict[str, Any] = {"refs": True}
            if self._chance(0.4):
                options["join"] = True
            wait: Op = ["call", number, options]
        elif killed:
            # No command is on its way then, of which the server could have heard or not.
            ops.append(["run", self._fresh("step"), "stored"])
            wait = ["block", self._one(("awakeable", "signal", "signal+awakeable"))]
        elif place.changes_state and not place.is_flow and place.depth < DEEPEST and self._chance(0.5):
            wait = ["block_queued", self._node(self._queued(place), self._some_local)]
        else:
            wait = ["block", self._one(_IN_FLOW if place.is_flow else _BLOCKS)]
        return [*ops, *self._maybe_survived(place, wait)]

    def _maybe_survived(self, place: _Place, wait: Op) -> list[Op]:
        return [["try", [wait]], *self._some_local(place)] if self._chance(0.5) else [wait]

    def _cancelled_by_itself(self, place: _Place) -> Iterator[Op]:
        wait: Op = ["cancel_self", self._one(_BLOCKS)]
        number = self._node(
            self._below(place, aside=True), lambda at: [*self._some_local(at), *self._maybe_survived(at, wait)]
        )
        yield self._maybe_caught(["call", number, {}], None)
