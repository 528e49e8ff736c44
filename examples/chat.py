"""A chat with memory: each session is a virtual object that stores the conversation in its state.

The model is ``openai:gpt-5`` if ``OPENAI_API_KEY`` is set and ``openai`` is installed, otherwise a scripted one.

    $ restate-steps dev examples.chat:app
    $ curl localhost:8080/Chat/ada/say --json '"I like tea."'
    $ curl localhost:8080/Chat/ada/say --json '"What do I like?"'
    $ curl localhost:8080/Chat/ada/history
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Literal

import restate
from pydantic import BaseModel
from pydantic_ai import Agent, Conversation
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, UserPromptPart
from pydantic_ai.models import Model, infer_model
from pydantic_ai.models.function import AgentInfo, FunctionModel

import restate_steps
from restate_steps import typed_handler
from restate_steps.agents import RestateAgent, RestateConversationStore


class Line(BaseModel):
    """A line of the conversation."""

    who: Literal["user", "assistant"]
    text: str


def lines(messages: list[ModelMessage]) -> list[Line]:
    """Return the lines that messages contain."""
    said: list[Line] = []
    for message in messages:
        for part in message.parts:
            if isinstance(part, UserPromptPart):
                said.append(Line(who="user", text=str(part.content)))
            elif isinstance(part, TextPart):
                said.append(Line(who="assistant", text=part.content))
    return said


async def scripted(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    """Repeat everything that the user said in the session."""
    said = [line.text for line in lines(messages) if line.who == "user"]
    return ModelResponse(parts=[TextPart(f"You said: {' '.join(said)}")])


def choose_model() -> Model:
    """Return the real model if it can be used, otherwise the scripted one."""
    if os.environ.get("OPENAI_API_KEY") and find_spec("openai"):
        return infer_model("openai:gpt-5")
    return FunctionModel(scripted, model_name="scripted")


agent = Agent(choose_model(), instructions="You're a helpful assistant.")
chat = restate.VirtualObject("Chat")


@chat.handler()
async def say(ctx: restate.ObjectContext, prompt: str) -> str:
    store = RestateConversationStore(ctx)
    conversation = await store.load(ctx.key()) or Conversation(conversation_id=ctx.key())
    result = await RestateAgent(agent, restate_context=ctx).run(prompt, conversation=conversation)
    await store.save(result)
    return result.output


@typed_handler(chat, kind="shared")
async def history(ctx: restate.ObjectSharedContext) -> list[Line]:
    # A shared handler runs concurrently with the others, even while the model responds.
    conversation = await RestateConversationStore(ctx).load(ctx.key())
    return [] if conversation is None else lines(conversation.messages)


app = restate_steps.app([chat])
