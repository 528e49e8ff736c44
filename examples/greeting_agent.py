"""A durable agent that greets through a tool.

The model is ``openai:gpt-5`` if ``OPENAI_API_KEY`` is set and ``openai`` is installed, otherwise a scripted one.
"""

from __future__ import annotations

import os
from ast import literal_eval
from importlib.util import find_spec

import restate
from pydantic_ai import Agent, ModelSettings, RunContext
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart, UserPromptPart
from pydantic_ai.models import Model, ModelRequestParameters, infer_model
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.wrapper import WrapperModel

from examples.ledger import note, pretend_to_work
from restate_steps.agents import RestateAgent


async def scripted(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    """Call the tool with the name in the prompt, then answer with what it returned."""
    await pretend_to_work(3)
    for part in messages[-1].parts:
        if isinstance(part, ToolReturnPart):
            return ModelResponse(parts=[TextPart(str(part.content))])
        if isinstance(part, UserPromptPart):
            name = literal_eval(str(part.content).removeprefix("Use the greet tool for ").removesuffix("."))
            return ModelResponse(parts=[ToolCallPart("greet", {"name": name})])
    raise ValueError("the script has no answer to this")


class NotingModel(WrapperModel):
    """A model that notes every request in the ledger."""

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        note()
        return await super().request(messages, model_settings, model_request_parameters)


def choose_model() -> Model:
    """Return the real model if it can be used, otherwise the scripted one."""
    if os.environ.get("OPENAI_API_KEY") and find_spec("openai"):
        return NotingModel(infer_model("openai:gpt-5"))
    return NotingModel(FunctionModel(scripted, model_name="scripted"))


agent = Agent(
    choose_model(),
    instructions="You're a helpful assistant.",
)


@agent.tool
async def greet(ctx: RunContext, name: str) -> str:
    note()
    return f"Hello {name}!"


greeter = restate.Service("Greeter")


@greeter.handler(name="greet")
async def handler(ctx: restate.Context, name: str) -> str:
    durable_agent = RestateAgent(agent, restate_context=ctx)
    result = await durable_agent.run(f"Use the greet tool for {name!r}.")
    return result.output
