"""A step is a tool of an agent as it is: the model sees the function that was decorated."""

from __future__ import annotations
import __future__

import functools
import sys
import types
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import restate
from pydantic_ai import Agent
from pydantic_ai.models.test import TestModel
from pydantic_ai.tools import ToolDefinition
from restate.exceptions import RetryableError

from restate_steps import durable_step
from tests.support.harness import Env

SOURCE = '''
from decimal import Decimal
from pydantic import BaseModel
from pydantic_ai import RunContext

class Order(BaseModel):
    """What is ordered."""
    id: str
    price: Decimal = Decimal(1)

async def quote(order_id: str, amount: int = 1, *, rush: bool = False) -> str:
    """Quote an order.

    Args:
        order_id: Which order.
        amount: How many of it.
        rush: Whether it is urgent.
    """
    return f"{order_id} {amount} {rush}"

def stock(item: str) -> list[int]:
    """Count what is there."""
    return [len(item)]

async def place(order: Order) -> dict[str, str]:
    return {"id": order.id}

async def greet(ctx: RunContext[str], name: str) -> str:
    """Greet somebody.

    Args:
        name: Whom to greet.
    """
    return f"{ctx.deps} {name}"

def greet_plainly(ctx: RunContext[str], name: str) -> str:
    """Greet somebody from a thread."""
    return f"{ctx.deps} {name}"

class Shop:
    name = "shop"

    async def open(self, town: str) -> str:
        """Open a shop."""
        return f"{self.name} in {town}"
'''

NAMES = ["quote", "stock", "place", "greet", "greet_plainly"]
Module = dict[str, Any]


@pytest.fixture(params=["annotations as objects", "annotations as text"])
def module(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Module:
    """The same tools with and without ``from __future__ import annotations``."""
    flags = __future__.annotations.compiler_flag if request.param.endswith("text") else 0
    module = types.ModuleType("tools_of_an_agent")
    # Pydantic looks a class's names up in its module.
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(SOURCE, "tools.py", "exec", flags=flags, dont_inherit=True), vars(module))
    return vars(module)


async def offered(agent: Agent[Any, Any]) -> tuple[list[ToolDefinition], Any]:
    """What a model is offered by an agent, and what the agent answers after all tools were called."""
    model = TestModel()
    result = await agent.run("go", model=model, deps="hello")
    parameters = model.last_model_request_parameters
    assert parameters is not None
    return parameters.function_tools, result.output


@pytest.mark.parametrize("name", NAMES)
async def test_a_step_among_the_tools_of_an_agent(module: Module, name: str) -> None:
    """Name, description and schema are those of the function, and so is what the model gets to hear."""
    function = module[name]

    plain = await offered(Agent(tools=[function], deps_type=str))
    stepped = await offered(Agent(tools=[durable_step(function)], deps_type=str))

    assert plain == stepped
    assert name == stepped[0][0].name


@pytest.mark.parametrize("name", ["greet", "greet_plainly"])
@pytest.mark.parametrize("options", [{}, {"name": "greet {name}"}], ids=["bare", "named"])
async def test_a_step_under_agent_tool(module: Module, name: str, options: dict[str, Any]) -> None:
    """`@agent.tool` finds the `RunContext` that comes first, and hands it in."""
    plain: Agent[str, str] = Agent(deps_type=str)
    plain.tool(module[name])
    stepped: Agent[str, str] = Agent(deps_type=str)
    stepped.tool(durable_step(**options)(module[name]))

    assert await offered(plain) == await offered(stepped)


@pytest.mark.parametrize("name", ["quote", "stock", "place"])
async def test_a_step_under_agent_tool_plain(module: Module, name: str) -> None:
    """`@agent.tool_plain` takes it as well."""
    plain: Agent[str, str] = Agent(deps_type=str)
    plain.tool_plain(module[name])
    stepped: Agent[str, str] = Agent(deps_type=str)
    stepped.tool_plain(durable_step(module[name]))

    assert await offered(plain) == await offered(stepped)


async def test_the_schema_is_the_right_one(module: Module) -> None:
    """The model is told the parameters, which of them it must give, and what they mean."""
    [tool], answer = await offered(Agent(tools=[durable_step(module["quote"])], deps_type=str))

    assert {
        "type": "object",
        "properties": {
            "order_id": {"type": "string", "description": "Which order."},
            "amount": {"type": "integer", "default": 1, "description": "How many of it."},
            "rush": {"type": "boolean", "default": False, "description": "Whether it is urgent."},
        },
        "required": ["order_id"],
        "additionalProperties": False,
    } == tool.parameters_json_schema
    assert "Quote an order." == tool.description
    assert '{"quote":"a 1 False"}' == answer


async def test_methods_partials_and_objects_are_tools_too(module: Module) -> None:
    """Whatever can be a step can be a tool: a bound method has no ``self``, a partial only what it leaves open."""

    class Counter:
        def __init__(self) -> None:
            self.start = 1

        async def __call__(self, item: str) -> int:
            """Count letters."""
            return len(item) + self.start

    shop = type("Shop", (module["Shop"],), {"open": durable_step(module["Shop"].open)})()
    partial = durable_step(functools.partial(module["quote"], "a", rush=True))
    tools, answer = await offered(Agent(tools=[shop.open, partial, durable_step(Counter())], deps_type=str))

    seen = {tool.name: (tool.description, list(tool.parameters_json_schema["properties"])) for tool in tools}
    assert {
        "open": ("Open a shop.", ["town"]),
        "quote": ("Quote an order.", ["amount", "rush"]),
        "Counter": ("Count letters.", ["item"]),
    } == seen
    assert '{"open":"shop in a","quote":"a 1 True","Counter":2}' == answer


def test_a_tool_of_an_agent_in_a_handler_is_recorded(env_factory: Callable[..., Env]) -> None:
    """A step that an agent calls is a step of the handler that runs the agent: after a replay it has not run again."""
    ran: list[str] = []
    attempts: list[int] = []
    service = restate.Service("AgentTool")

    @durable_step
    async def look_up(city: str) -> str:
        """Look a city up."""
        ran.append(city)
        return f"sunny in {city}"

    @service.handler()
    async def run(ctx: restate.Context) -> str:
        result = await Agent(TestModel(), tools=[look_up]).run("go")
        attempts.append(1)
        if len(attempts) == 1:
            raise RetryableError("once more, as a replay", retry_after=timedelta(milliseconds=1))
        return result.output

    env = env_factory(service)
    invocation = env.send("AgentTool", "run")

    assert '{"look_up":"sunny in a"}' == env.attach(invocation)
    assert ["a"] == ran
    assert ["look_up"] == [entry.name for entry in env.server.admin.journal(invocation) if entry.type == "Command: Run"]
