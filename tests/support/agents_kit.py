"""Shared code of the agent tests: scripted models, and served handlers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any, Final, TypeAlias

import pytest
import restate
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel
from restate.exceptions import RetryableError

from tests.support.harness import Env

__all__ = [
    "SESSIONS_LEFT_OPEN",
    "Again",
    "Answer",
    "Call",
    "Crowd",
    "Decide",
    "Script",
    "Serve",
    "Served",
    "returned",
    "serve_handler",
    "steps",
    "turn",
]

SESSIONS_LEFT_OPEN: Final = [
    pytest.mark.usefixtures("collected"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings(
        "ignore:Exception ignored in. <function BaseSubprocessTransport.__del__:pytest.PytestUnraisableExceptionWarning"
    ),
]
"""Marks of tests in which an attempt, or the app, ends in the middle of a run: pydantic-ai's session with an MCP server
is closed by the garbage collector then, which warns of the pipes, of the process, and of the app's event loop, which is
closed by then."""

Serve: TypeAlias = Callable[..., Env]

Call: TypeAlias = tuple[str, dict[str, Any]]
"""A tool's name and its arguments."""

Answer: TypeAlias = str | Call | list[Call] | ModelResponse | Exception
"""A model's reply: text, one tool call, several, a complete response, or an error that it raises."""

Decide: TypeAlias = Callable[[list[ModelMessage]], Answer]


class Script:
    """A model that decides its answer from the messages alone, so that a repeated request gets the same answer.

    Args:
        decide: What it answers: a function of the messages, or the answers to the first request of a run, to the second
            and so on, of which the last one is repeated.
        name: The model's name.

    Attributes:
        requests: How often it was asked.
        model: The model itself, which answers in a stream too.
    """

    def __init__(self, *decide: Decide | Answer, name: str = "script") -> None:
        self.requests = 0
        self._decide = decide
        self.model = FunctionModel(self._answer, stream_function=self._stream, model_name=name)

    def _next(self, messages: list[ModelMessage]) -> str | list[Call] | ModelResponse:
        self.requests += 1
        chosen = self._decide[min(turn(messages), len(self._decide) - 1)]
        answer = chosen(messages) if callable(chosen) else chosen
        if isinstance(answer, Exception):
            raise answer
        return [answer] if isinstance(answer, tuple) else answer

    def _answer(self, messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        answer = self._next(messages)
        if isinstance(answer, ModelResponse):
            return answer
        if isinstance(answer, str):
            return ModelResponse(parts=[TextPart(answer)])
        place = turn(messages)
        calls = [ToolCallPart(*call, tool_call_id=f"{place}-{number}") for number, call in enumerate(answer)]
        return ModelResponse(parts=calls)

    async def _stream(self, messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
        answer = self._next(messages)
        if isinstance(answer, ModelResponse):
            raise TypeError("a complete response cannot be streamed; use text or tool calls")
        if isinstance(answer, str):
            for word in answer.split(" "):
                yield f"{word} "
            return
        place = turn(messages)
        for number, (name, arguments) in enumerate(answer):
            yield {number: DeltaToolCall(name, json.dumps(arguments), tool_call_id=f"{place}-{number}")}


def turn(messages: list[ModelMessage]) -> int:
    """Return the number of responses in the messages: 0 for the first request of a run without a history."""
    return sum(isinstance(message, ModelResponse) for message in messages)


def returned(messages: list[ModelMessage]) -> list[Any]:
    """Return the tool results so far, in order."""
    return [part.content for message in messages for part in message.parts if isinstance(part, ToolReturnPart)]


class Again:
    """Fails a handler the first time that it gets here, so that all that it did before is replayed, in both modes.

    Attributes:
        times: How often a handler got here.
    """

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> None:
        self.times += 1
        if self.times == 1:
            raise RetryableError("once more, from the journal", retry_after=timedelta(milliseconds=1))


class Served:
    """A handler that is served. Call it to get its answer.

    Attributes:
        env: The application.
    """

    def __init__(self, env: Env, name: str) -> None:
        self.env = env
        self._name = name

    def __call__(self, arg: Any = None) -> Any:
        return self.env.call(self._name, "run", arg)

    def send(self, arg: Any = None) -> str:
        """Start it without waiting, and return the id of the invocation."""
        return self.env.send(self._name, "run", arg)

    def with_steps(self, arg: Any = None) -> tuple[Any, list[str]]:
        """Call it, and return its answer and the names of its steps."""
        invocation = self.send(arg)
        return self.env.attach(invocation), steps(self.env, invocation)


def serve_handler(serve: Serve, name: str, handler: Callable[..., Any]) -> Served:
    """Serve one handler as the service ``name``."""
    service = restate.Service(name)
    service.handler(name="run")(handler)
    return Served(serve(service), name)


def steps(env: Env, invocation_id: str) -> list[str]:
    """The names of an invocation's steps, in the order of the journal."""
    return [str(entry.name) for entry in env.server.admin.journal(invocation_id) if entry.type == "Command: Run"]


class Crowd:
    """Lets bodies pass only together, and counts how many are inside at the same time.

    Args:
        size: How many pass together.

    Attributes:
        most: The highest number that was inside.
    """

    def __init__(self, size: int) -> None:
        self.most = 0
        self._inside = 0
        self._barrier = asyncio.Barrier(size)

    async def join(self) -> None:
        """Go in, and come out with the others."""
        self._inside += 1
        self.most = max(self.most, self._inside)
        try:
            await self._barrier.wait()
        finally:
            self._inside -= 1
