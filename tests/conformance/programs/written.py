"""Programs that are written by hand, and what their answers are.

They are the smallest ones that have shown a difference, or that show what few random ones would.
"""

from __future__ import annotations

from typing import Any

from tests.conformance.programs.program import Node, Op, Program

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
    "a killed invocation takes those that it has called with it": (
        _program(
            _service(["call", 1, {}]),
            _service(["call", 2, {}]),
            _object(["set", "a", 1], ["run", "step", 1], ["block", "awakeable"]),
            client=[["block 2", "kill", 0]],
        ),
        [409, {"code": 409, "message": "killed", "source": "invocation"}],
    ),
    "what is cleared is not there for the next invocation": (
        _program(
            _service(["call", 1, {}], ["call", 2, {}]),
            _object(["set", "a", 1], ["set", "b", 2], ["clear", "a"]),
            _object(["get", "a"], ["get", "b"], ["keys"]),
        ),
        [200, [[], [None, "2", ["b"]]]],
    ),
    "an empty value is not a missing one": (
        _program(
            _service(["call", 1, {}], ["call", 2, {}]),
            {"kind": "lazy", "key": "k", "body": [["set_raw", "a", ""]]},
            {"kind": "lazy", "key": "k", "body": [["get", "a"], ["get", "b"], ["keys"]]},
        ),
        [200, [[], ["", None, ["a"]]]],
    ),
    "a signal to a queued invocation is lost": (
        _program(_object(["signal_queued", 1, "early", ["value", 1]]), _object(["run", "step", 1])),
        [200, ["sent"]],
    ),
}
"""By what each shows."""
