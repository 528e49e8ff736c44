"""Models that follow a script, so that the tour runs offline, and says the same every time.

A script sees what a model sees, and decides by that alone. It keeps nothing from one request to the next, so a replay
gets the same answers, and concurrent runs do not mix.
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
"""What a model says: a text, an object of the agent's ``output_type``, or calls of tools."""


@dataclass(frozen=True)
class Seen:
    """What a model is shown.

    Attributes:
        prompts: What the user has said, oldest first.
        tools: What the tools have returned since the last prompt, by their names.
    """

    prompts: list[str]
    tools: dict[str, ToolReturnPart]

    @property
    def prompt(self) -> str:
        """What the user has said last."""
        return self.prompts[-1]


def call(tool: str, **arguments: Any) -> ToolCallPart:
    """Make a call of a tool, for a reply."""
    return ToolCallPart(tool, arguments)


def scripted(script: Callable[[Seen], Reply]) -> Model:
    """Make a model of a script, or return the model that ``TOUR_MODEL`` names."""

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
    # With several types of output there is a tool for each, named after its type.
    names = [tool.name for tool in info.output_tools]
    return next((name for name in names if name.endswith(type(reply).__name__)), names[0])
