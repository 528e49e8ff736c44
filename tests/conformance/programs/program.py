"""The form of a program: plain lists and dicts, so that JSON can store one and a failure can print one.

A program is a dict with ``seed``, ``nodes``, ``client`` and perhaps ``idempotency_key``. A node is an invocation: a
dict with ``kind`` (see :data:`KINDS`), ``key`` and ``body``. The first one is called by the client. A body is a list of
operations, and an operation is a list: its name (a method of :class:`.handlers.Interpreter`), and its operands. The
client has actions: ``[MARK, VERB, ...]``, each done when its mark was published.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, TypeAlias

__all__ = ["KINDS", "Node", "Op", "Program", "children", "depth", "is_orderly", "text"]

Op: TypeAlias = list[Any]
Node: TypeAlias = dict[str, Any]
Program: TypeAlias = dict[str, Any]

KINDS = {
    "service": ("Programs", "run"),
    "object": ("EagerPrograms", "run"),
    "object-shared": ("EagerPrograms", "look"),
    "lazy": ("LazyPrograms", "run"),
    "lazy-shared": ("LazyPrograms", "look"),
    "workflow": ("FlowPrograms", "run"),
    "workflow-shared": ("FlowPrograms", "look"),
}
"""The handler that interprets a node of each kind."""

_STARTS_NODE = {
    *("call", "call_twice", "send", "send_and_call", "attach", "afterwards", "cancel_call", "cancel_send"),
    *("cancel_unstarted", "signal_queued", "block_queued", "awakeable_by", "signal_by"),
}
"""Operations whose first operand is the number of a node."""

_GROUPS = {"gather", "as_completed", "select", "wait_completed"}
_ORDERLY = {
    *("set", "set_raw", "get", "keys", "clear", "clear_all", "peek", "resolve", "reject"),
    *("run", "run_sync", "refuse", "retried", "exhausted", "crash", "sleep", "fail", "call", "send"),
}


def _inner(op: Op) -> list[Op]:
    """Return the operations inside of another."""
    if op[0] == "try":
        return list(op[1])
    if op[0] in _GROUPS:
        return [inner for inner in op[1] if inner[0] != "never"]
    return [inner for part in op[1:] if isinstance(part, dict) for inner in part.get("between", ())]


def children(body: list[Op]) -> Iterator[int]:
    """Yield the numbers of the nodes that a body starts."""
    for op in body:
        if op[0] in _STARTS_NODE:
            yield op[1]
        yield from children(_inner(op))


def depth(program: Program, at: int = 0) -> int:
    """Return how many levels of invocations there are."""
    return 1 + max((depth(program, child) for child in children(program["nodes"][at]["body"])), default=0)


def is_orderly(body: list[Op]) -> bool:
    """Return whether a body waits for each command before the next, so that every entry has one place."""
    return all(op[0] in _ORDERLY or (op[0] == "try" and is_orderly(op[1])) for op in body)


def text(program: Program) -> str:
    """Return a program as text that a person can read."""
    lines = [f"program {program['seed']}"]
    if program.get("idempotency_key"):
        lines[0] += f", called with the idempotency key {program['idempotency_key']!r}"
    known: set[int] = set()

    def show(number: int, indent: str) -> None:
        node = program["nodes"][number]
        known.add(number)
        key = "" if node["key"] is None else f" of key {node['key']!r}"
        lines.append(f"{indent}#{number} {node['kind']}{key}:")
        body(node["body"], indent + "  ")

    def body(ops: list[Op], indent: str) -> None:
        for op in ops:
            operands = [part for part in op[1:] if not isinstance(part, list) or not _inner([op[0], part])]
            if op[0] == "try" or op[0] in _GROUPS:
                operands = op[2:]
            words = [
                f"#{part}" if op[0] in _STARTS_NODE and at == 0 else _word(part) for at, part in enumerate(operands)
            ]
            lines.append(" ".join([indent + op[0], *words]))
            if op[0] in _GROUPS:
                body(op[1], indent + "  ")
            else:
                body(_inner(op), indent + "  ")
            if op[0] in _STARTS_NODE and op[1] not in known:
                show(op[1], indent + "  ")

    show(0, "  ")
    for when, *what in program["client"]:
        lines.append(f"  client, at {when!r}: {' '.join(_word(part) for part in what)}")
    for number in range(len(program["nodes"])):
        if number not in known:
            show(number, "  ")
    return "\n".join(lines)


def _word(part: Any) -> str:
    if isinstance(part, dict):
        part = {name: value for name, value in part.items() if name != "between"}
        return json.dumps(part) if part else ""
    return part if isinstance(part, str) and part else json.dumps(part, ensure_ascii=False)
