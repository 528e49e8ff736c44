"""Programs that are written by hand: the smallest ones that have shown a difference, and what their answers are."""

from __future__ import annotations

from typing import Any

from .program import Node, Op, Program

__all__ = ["PROGRAMS"]


def _object(*body: Op) -> Node:
    return {"kind": "object", "key": "k", "body": list(body)}


def _service(*body: Op) -> Node:
    return {"kind": "service", "key": None, "body": list(body)}


def _program(*nodes: Node, client: list[list[Any]] | None = None) -> Program:
    return {"seed": "written by hand", "nodes": list(nodes), "client": client or []}


_CANCELED, _NOT_FOUND = "409 canceled", "404 not found"

PROGRAMS: dict[str, tuple[Program, list[Any]]] = {
    "a scheduled invocation that a handler cancels is gone": (
        _program(_service(["cancel_unstarted", 1, "scheduled"]), _object(["run", "never", 1])),
        [200, [_NOT_FOUND]],
    ),
    "a queued invocation that a handler cancels is gone": (
        _program(_object(["cancel_unstarted", 1, "queued"]), _object(["run", "never", 1])),
        [200, [_NOT_FOUND]],
    ),
    "a queued invocation that is cancelled fails the call that waits for it": (
        _program(_object(["cancel_unstarted", 1, "called"]), _object(["run", "never", 1])),
        [200, [_CANCELED, _NOT_FOUND]],
    ),
    "a cancelled invocation takes a queued one that it has called with it": (
        _program(
            _object(["try", [["block_queued", 1]]], ["get", "a"]),
            _object(["set", "a", "never"]),
            client=[["block 0", "cancel", 0]],
        ),
        [200, [_NOT_FOUND, "409 cancelled", None]],
    ),
    "a signal to a scheduled invocation is lost": (
        _program(_service(["signal_unstarted", 1, "scheduled", "early", ["value", 1]]), _object(["run", "step", 1])),
        [200, ["sent"]],
    ),
    "a signal to a queued invocation is lost": (
        _program(_object(["signal_unstarted", 1, "queued", "early", ["value", 1]]), _object(["run", "step", 1])),
        [200, ["sent"]],
    ),
}
"""By what each shows."""
