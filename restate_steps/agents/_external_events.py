"""Human in the loop: pydantic-ai's external events, implemented with Restate awakeables.

A wait has three parts in the journal. The awakeable comes first; its id is the token. Then a step passes the token to
the ``ask`` function, and records its answer, if any. The last part is the awakeable's answer, or the end of the timer.
While the run waits, nothing of it is in memory.

The step's result also describes the pending tool calls, which ``restate-steps approvals`` lists.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, Final, cast

import restate
from pydantic import JsonValue
from pydantic_ai.durable_exec import ExternalEventError, ExternalEventWaiter
from pydantic_ai.tools import DeferredToolRequests, DeferredToolResults
from restate import TerminalError
from restate.serde import BytesSerde

from restate_steps.agents._codec import UNIT_CODEC, VALUES
from restate_steps.agents._failures import is_cancellation
from restate_steps.agents._operation_backend import run_unit
from restate_steps.agents._run import Run
from restate_steps.context import restate_context
from restate_steps.serdes import serde

__all__ = ["ASK_STEP", "AwakeableWaiter", "answer_request"]

ASK_STEP: Final = "__external_event."
"""The part of an ask step's name between the agent's name and the wait's name."""


class AwakeableWaiter(ExternalEventWaiter):
    """A waiter that suspends on an awakeable, for as long as it takes."""

    def __init__(self, run: Run) -> None:
        self._run = run

    async def wait(
        self, name: str, *, ask: Callable[[str], Awaitable[JsonValue]], timeout: timedelta | None
    ) -> JsonValue:
        """Pass the token to ``ask``, and return the answer once it arrives."""
        requests, self._run.requests = self._run.requests, None
        token, answered = restate_context().awakeable(serde=BytesSerde())
        step_name = f"{self._run.agent_name}{ASK_STEP}{name}"
        question = await self._ask(f"{step_name}.ask", ask, token, requests)
        if question["answer"] is not None:
            return cast(JsonValue, question["answer"])
        try:
            if timeout is None:
                return _payload(await answered)
            late = restate_context().sleep(timeout, name=f"{step_name}.timeout")
            match await restate.select(answered=answered, late=late):
                case ["answered", data]:
                    return _payload(data)
                case _:
                    raise ExternalEventError(f"No resolution arrived within {timeout}.")
        except TerminalError as error:
            if is_cancellation(error):
                raise
            raise ExternalEventError(error.message) from error

    async def _ask(
        self,
        step_name: str,
        ask: Callable[[str], Awaitable[JsonValue]],
        token: str,
        requests: DeferredToolRequests | None,
    ) -> dict[str, Any]:
        async def asking() -> bytes:
            question = {"token": token, "answer": await ask(token), "calls": _described(requests)}
            return UNIT_CODEC.dump(dict[str, JsonValue], question)

        found: dict[str, Any] = UNIT_CODEC.load(dict[str, JsonValue], await run_unit(asking, step_name))
        return found


def _payload(data: bytes | None) -> JsonValue:
    try:
        return cast(JsonValue, json.loads(data)) if data else None
    except ValueError as error:
        # The answer is in the journal, so another attempt would fail too.
        raise ExternalEventError(f"The answer is not JSON: {error}.") from error


def _described(requests: DeferredToolRequests | None) -> list[dict[str, JsonValue]]:
    """Describe each pending tool call for the person who decides."""
    if requests is None:
        return []
    described: list[dict[str, JsonValue]] = []
    for kind, calls in (("approval", requests.approvals), ("call", requests.calls)):
        for call in calls:
            described.append(
                {"id": call.tool_call_id, "tool": call.tool_name, "kind": kind, "args": call.args_as_dict()}
            )
    return described


def answer_request(ctx: Any, token: str, results: DeferredToolResults) -> None:
    """Resolve, from a Restate handler, a request that an agent waits for.

    Outside a handler, POST the same JSON to ``/restate/awakeables/<token>/resolve``, or use ``restate-steps
    approvals``.

    Args:
        ctx: The context of the handler that gives the answer.
        token: The token that ``RequestInput`` passed to its ``ask`` function.
        results: The decisions, for example ``requests.build_results(approve_all=True)``.

    Example:
        ```python
        @svc.handler()
        async def approve(ctx: restate.Context, token: str) -> None:
            answer_request(ctx, token, DeferredToolResults(approvals={"call-1": True}))
        ```
    """
    ctx.resolve_awakeable(token, results, serde=serde(DeferredToolResults, codec=VALUES))
