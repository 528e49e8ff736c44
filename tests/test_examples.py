"""The examples, called as a client would call them."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from agents import ModelResponse, Usage
from langchain_core.messages import AIMessage
from openai.types.responses import ResponseFunctionToolCall, ResponseReasoningItem

from restate_steps.codec import DEFAULT_CODEC, Codec, verify
from tests.support import ROOT
from tests.support.harness import Env, InvocationFailed

Serve = Callable[..., Env]

ORDER = {"id": "order-7", "card": "4242", "prices": ["10.00", "0.50"], "placed_at": "2026-03-01T12:00:00Z"}


class Examples:
    """The examples, with a ledger of their own.

    Attributes:
        ledger: The module.
        payments: The module.
        services: The services of the application.
    """

    def __init__(self, folder: Path) -> None:
        self.ledger = importlib.import_module("examples.ledger")
        self.payments = importlib.import_module("examples.payments")
        self.services = [
            importlib.import_module("examples.greeting_agent").greeter,
            importlib.import_module("examples.checkout").shop,
            importlib.import_module("examples.langgraph_agent").trips,
            importlib.import_module("examples.openai_agent").trips,
        ]
        self._folder = folder

    def ran(self, invocation: str) -> Counter[str]:
        """How often the bodies of an invocation's steps ran."""
        noted = self.ledger.read(self._folder / "ledger")
        return Counter(started.step for started in noted if started.invocation == invocation)

    def charged(self) -> dict[str, str]:
        """What was charged, by idempotency key."""
        charged: dict[str, str] = self.payments.charges(self._folder / "payments")
        return charged


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Examples:
    """The examples, in no hurry to be slow."""
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("RESTATE_STEPS_PACE", "0")
    monkeypatch.setenv("RESTATE_STEPS_LEDGER", str(tmp_path / "ledger"))
    monkeypatch.setenv("RESTATE_STEPS_PAYMENTS", str(tmp_path / "payments"))
    return Examples(tmp_path)


@pytest.mark.parametrize("name", ["Ada", "O'Neill"])
def test_greeting_agent(env_factory: Serve, examples: Examples, name: str) -> None:
    """The agent greets by its tool, which runs once, and the model is asked twice."""
    env = env_factory(*examples.services)

    invocation = env.send("Greeter", "greet", name)

    assert f"Hello {name}!" == env.attach(invocation)
    assert {
        "agent__model.request": 2,
        "agent__function_toolset__<agent>.call_tool:greet": 1,
    } == examples.ran(invocation)


@pytest.mark.parametrize("service", ["LangGraphTrips", "OpenAITrips"])
def test_agents_of_other_libraries(env_factory: Serve, examples: Examples, service: str) -> None:
    """The model is asked twice, and each step of the tools that it calls in parallel runs once."""
    env = env_factory(*examples.services)

    invocation = env.send(service, "plan", "Lisbon")

    assert env.attach(invocation) == "Lisbon will be sunny; the 9:40 to Lisbon is reserved"
    assert {"ask_model": 2, "look_up_forecast": 1, "find_flight": 1, "reserve": 1} == examples.ran(invocation)


def test_checkout(env_factory: Serve, examples: Examples) -> None:
    """The checkout answers with a receipt; each of its five steps ran once, and the card was charged by its key."""
    env = env_factory(*examples.services)

    invocation = env.send("Shop", "checkout", ORDER)

    assert {
        "order_id": "order-7",
        "payment_id": "payment-1",
        "total": "10.50",
        "delivered_on": "2026-03-04T12:00:00Z",
    } == env.attach(invocation)
    steps = ["add_up", "reserve", "charge order-7", "ship", "send_receipt"]
    assert Counter(steps) == examples.ran(invocation)
    assert {f"{invocation}/2": "payment-1"} == examples.charged()


def test_checkout_with_a_declined_card(env_factory: Serve, examples: Examples) -> None:
    """A declined card is the handler's own exception: it gives the reservation back, and nothing else runs."""
    env = env_factory(*examples.services)

    invocation = env.send("Shop", "checkout", {**ORDER, "card": "0000"})

    with pytest.raises(InvocationFailed, match="card 0000 was declined: insufficient funds") as failed:
        env.attach(invocation)
    assert 402 == failed.value.status
    assert Counter(["add_up", "reserve", "charge order-7", "release"]) == examples.ran(invocation)
    assert {} == examples.charged()


async def test_examples_are_plain_code_outside_a_handler(examples: Examples, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside a handler the steps are plain calls, and note nothing; the fake payments are in memory."""
    monkeypatch.delenv("RESTATE_STEPS_PAYMENTS")
    checkout = importlib.import_module("examples.checkout")
    order = checkout.Order.model_validate(ORDER)

    assert Decimal("10.50") == await checkout.add_up(order)
    first = await examples.payments.charge("4242", Decimal(1), idempotency_key="k")
    assert first == await examples.payments.charge("4242", Decimal(1), idempotency_key="k")
    assert not examples.ran("")


@pytest.mark.parametrize("name", ["langgraph_agent", "openai_agent"])
async def test_agents_of_other_libraries_outside_a_handler(examples: Examples, name: str) -> None:
    """The agents run without Restate, and note nothing."""
    module = importlib.import_module(f"examples.{name}")

    assert await module.plan_trip("Lisbon") == "Lisbon will be sunny; the 9:40 to Lisbon is reserved"
    assert not examples.ran("")


def test_responses_of_openai_cross_the_journal_without_loss(examples: Examples) -> None:
    """A response is sent back to OpenAI as it came: fields that were not set are not set to null."""
    module = importlib.import_module("examples.openai_agent")
    call = ResponseFunctionToolCall(type="function_call", call_id="c", name="forecast", arguments="{}")
    thought = ResponseReasoningItem(type="reasoning", id="r", summary=[], encrypted_content="…")
    response = ModelResponse(output=[thought, call], usage=Usage(requests=1), response_id="id")
    codec = module.ResponseCodec()

    def sent_again(codec: Codec) -> list[Any]:
        read: ModelResponse = codec.load(ModelResponse, codec.dump(ModelResponse, response))
        return read.to_input_items()

    verify(codec, ModelResponse, response, codec.dump(ModelResponse, response))
    assert response.to_input_items() == sent_again(codec)
    assert response.to_input_items() != sent_again(DEFAULT_CODEC), "ResponseCodec is not needed any more"


def test_messages_of_langchain_cross_the_journal_without_loss() -> None:
    """The default codec compares what comes back, and finds no difference."""
    message = AIMessage(
        content=[{"type": "reasoning", "summary": [], "id": "r"}, {"type": "text", "text": "…", "annotations": []}],
        tool_calls=[{"name": "forecast", "args": {"days": 1.5}, "id": "c"}],
        invalid_tool_calls=[
            {"type": "invalid_tool_call", "name": "forecast", "args": "{", "id": "d", "error": "not JSON"}
        ],
        usage_metadata={"input_tokens": 1, "output_tokens": 2, "total_tokens": 3},
        response_metadata={"finish_reason": "stop", "logprobs": None},
        additional_kwargs={"refusal": None},
        id="run-1",
    )

    data = DEFAULT_CODEC.dump(AIMessage, message)

    verify(DEFAULT_CODEC, AIMessage, message, data)


def test_application_combines_the_services(examples: Examples) -> None:
    """What is served is an ASGI application with both services."""
    module: Any = importlib.import_module("examples.app")

    assert isinstance(module, ModuleType)
    assert callable(module.app)
