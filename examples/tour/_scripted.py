"""Scripted models, so that the tour runs offline and gives the same answers every time.

A script sees what a model sees, and nothing else. It has no state between requests, so a replay gets the same answers,
and concurrent runs do not mix.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from pydantic import BaseModel
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart, UserPromptPart
from pydantic_ai.models import Model, infer_model
from pydantic_ai.models.function import AgentInfo, FunctionModel

Reply: TypeAlias = str | BaseModel | list[ToolCallPart]
"""A model's reply: a text, an object of the agent's ``output_type``, or tool calls."""


@dataclass(frozen=True)
class Seen:
    """The conversation, as a model sees it.

    Attributes:
        prompts: The user's prompts, oldest first.
        tools: The tool results since the last prompt, by tool name.
    """

    prompts: list[str]
    tools: dict[str, ToolReturnPart]

    @property
    def prompt(self) -> str:
        """The user's last prompt."""
        return self.prompts[-1]


def call(tool: str, **arguments: Any) -> ToolCallPart:
    """Return a tool call, for use in a reply."""
    return ToolCallPart(tool, arguments)


def scripted(script: Callable[[Seen], Reply]) -> Model:
    """Return a model that follows a script, or the model that ``TOUR_MODEL`` names."""

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        reply = script(_seen(messages))
        if isinstance(reply, str):
            return ModelResponse(parts=[TextPart(reply)])
        if isinstance(reply, BaseModel):
            reply = [ToolCallPart(_output_tool(reply, info), reply.model_dump(mode="json"))]
        return ModelResponse(parts=reply)

    name = os.environ.get("TOUR_MODEL")
    return infer_model(name) if name else FunctionModel(answer, model_name=script.__name__)


def _seen(messages: list[ModelMessage]) -> Seen:
    seen = Seen([], {})
    for part in (part for message in messages for part in message.parts):
        if isinstance(part, UserPromptPart):
            seen.prompts.append(str(part.content))
            seen.tools.clear()
        elif isinstance(part, ToolReturnPart):
            seen.tools[part.tool_name] = part
    return seen


def _output_tool(reply: BaseModel, info: AgentInfo) -> str:
    # With several output types, each has its own tool, named after the type.
    names = [tool.name for tool in info.output_tools]
    return next((name for name in names if name.endswith(type(reply).__name__)), names[0])
