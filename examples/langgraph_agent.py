"""A LangGraph agent whose model requests and tools are durable steps.

The model is ``gpt-5`` if ``OPENAI_API_KEY`` is set and ``langchain-openai`` is installed, otherwise a scripted one.
"""

# The types of LangGraph's methods are partially unknown to pyright.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import restate
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable, RunnableBinding
from langchain_core.tools import BaseTool, tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

import restate_steps
from examples.ledger import note, pretend_to_work
from restate_steps import durable_step


# The return annotation is enough: the journal stores an AIMessage without loss.
@durable_step
async def ask_model(model: BaseChatModel, messages: list[BaseMessage], options: dict[str, Any]) -> AIMessage:
    note()
    return await model.ainvoke(messages, **options)


class DurableChatModel(BaseChatModel):
    """A chat model that makes each request of another chat model a durable step."""

    model: BaseChatModel

    @property
    def _llm_type(self) -> str:
        return "durable"

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        message = await ask_model(self.model, messages, {"stop": stop, **kwargs})
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        raise NotImplementedError("Steps are async, so a durable model is async too. Call ainvoke instead of invoke.")

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable[Any, AIMessage]:
        # Only the wrapped model knows its tool format; it binds the tools as options of each request.
        bound = self.model.bind_tools(tools, **kwargs)
        assert isinstance(bound, RunnableBinding)
        return self.bind(**bound.kwargs)


class ScriptedChatModel(BaseChatModel):
    """Call all tools at once for the city in the question, then answer with their results."""

    @property
    def _llm_type(self) -> str:
        return "scripted"

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        *,
        tools: Sequence[BaseTool] = (),
        **kwargs: Any,
    ) -> ChatResult:
        await pretend_to_work(3)
        results = [message.text for message in messages if isinstance(message, ToolMessage)]
        city = messages[0].text.removeprefix("Plan a trip to ").removesuffix(".")
        calls = [{"name": tool.name, "args": {"city": city}, "id": f"call-{tool.name}"} for tool in tools]
        message = AIMessage("; ".join(results)) if results else AIMessage("", tool_calls=calls)
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        raise NotImplementedError

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable[Any, AIMessage]:
        return self.bind(tools=tools)


def choose_model() -> BaseChatModel:
    """Return the real model if it can be used, otherwise the scripted one."""
    if os.environ.get("OPENAI_API_KEY") and find_spec("langchain_openai"):
        real: BaseChatModel = import_module("langchain_openai").ChatOpenAI(model="gpt-5")
        return real
    return ScriptedChatModel()


@durable_step
async def look_up_forecast(city: str) -> str:
    note()
    await pretend_to_work()
    return f"{city} will be sunny"


@durable_step
async def find_flight(city: str) -> str:
    note()
    await pretend_to_work()
    return f"the 9:40 to {city}"


@durable_step
async def reserve(flight: str) -> str:
    note()
    await pretend_to_work()
    return f"{flight} is reserved"


@tool
async def forecast(city: str) -> str:
    """Return the weather forecast for a city."""
    return await look_up_forecast(city)


@tool
async def book_flight(city: str) -> str:
    """Book a flight to a city."""
    return await reserve(await find_flight(city))


TOOLS = [forecast, book_flight]
model = DurableChatModel(model=choose_model()).bind_tools(TOOLS)


async def call_model(state: MessagesState) -> dict[str, Any]:
    return {"messages": [await model.ainvoke(state["messages"])]}


graph = StateGraph(MessagesState)
graph.add_node("model", call_model)
graph.add_node("tools", ToolNode(TOOLS))  # runs the tools of a response in parallel
graph.add_edge(START, "model")
graph.add_conditional_edges("model", tools_condition)
graph.add_edge("tools", "model")
agent = graph.compile()


async def plan_trip(city: str) -> str:
    """Run the agent. Outside a handler the steps are plain calls."""
    result = await agent.ainvoke({"messages": [HumanMessage(f"Plan a trip to {city}.")]})
    answer: BaseMessage = result["messages"][-1]
    return answer.text


trips = restate.Service("LangGraphTrips")


@trips.handler()
async def plan(ctx: restate.Context, city: str) -> str:
    return await plan_trip(city)


app = restate_steps.app([trips])
