"""Requests to models as steps, on the real server, with handlers that run through and with handlers that replay."""

# | no.  | scenario                            | tests                                                        |
# |------|-------------------------------------|--------------------------------------------------------------|
# | 1    | replays ask no model                | test_replay_asks_no_model                                    |
# | 2    | two runs in one handler             | test_runs_of_one_handler_have_steps_of_their_own             |
# | 3    | names of steps                      | test_name_of_a_step_tells_which_model_is_asked               |
# | 4    | settings that cannot be written     | test_settings_that_cannot_be_written_reach_the_model         |
# | 5    | images, documents, uploaded files   | test_files_reach_the_model_as_they_are                       |
# | 6    | several megabytes                   | test_long_response_is_recorded                               |
# | 7    | suspended, then complete            | test_each_part_of_a_suspended_response_is_a_step,            |
# |      |                                     | test_history_after_a_continuation_is_the_same_on_each_replay |
# | 8    | the delay of a poll                 | test_wait_for_a_suspended_response_is_a_durable_timer        |
# | 9    | over the limit in between           | test_suspended_response_over_the_limit_is_cancelled_once     |
# | 10   | a suspended tail in the history     | test_suspended_response_in_the_history_is_resumed            |
# | 11   | a journal written by hand           | test_journal_written_by_hand_is_understood                   |
# | 61   | by key, instance, override          | test_run_on_another_model,                                   |
# |      |                                     | test_model_that_is_overridden_by_its_key,                    |
# |      |                                     | test_model_that_overrides_without_a_key                      |
# | 62   | resolved and selected models        | test_model_chosen_for_each_request                           |
# | 63   | models that a resolver builds       | test_model_built_for_a_request_is_closed_after_it            |
# | 64   | fallback from one that always fails | test_fallback_is_asked_at_once, and those after it           |

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import restate
from pydantic_ai import Agent
from pydantic_ai.capabilities import ModelFallback, ResolveModelId, SelectModel
from pydantic_ai.exceptions import ModelHTTPError, UsageLimitExceeded
from pydantic_ai.messages import (
    BinaryImage,
    DocumentUrl,
    FilePart,
    ModelMessage,
    ModelRequest,
    ModelResponse,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    UploadedFile,
    UserPromptPart,
)
from pydantic_ai.models import Model, ModelResolutionContext, ModelSelectionContext
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.usage import RequestUsage, UsageLimits
from restate.serde import BytesSerde

from restate_steps import RetryPolicy, run_step
from restate_steps.agents import RestateAgent, RestateDurability
from tests.support.agents_kit import Again, Script, Serve, returned, serve_handler
from tests.support.harness import InvocationFailed

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def look() -> str:
    return "seen"


# --- requests ---------------------------------------------------------------------------------------------------


def test_replay_asks_no_model(env_factory: Serve) -> None:
    """Each request is a step, and a replay sends no request and runs no tool."""
    script = Script(("look", {}), lambda messages: f"I have {returned(messages)[0]} it")
    ran: Counter[str] = Counter()
    agent = Agent(script.model, name="plain")
    again = Again()

    @agent.tool_plain(name="look")
    def look_once() -> str:
        ran["look"] += 1
        return "seen"

    async def handler(ctx: restate.Context) -> str:
        result = await RestateAgent(agent, restate_context=ctx).run("go")
        again()
        return result.output

    answer, names = serve_handler(env_factory, "PlainRun", handler).with_steps()

    assert "I have seen it" == answer
    assert ["plain__model.request", "plain__function_toolset__<agent>.call_tool:look", "plain__model.request"] == names
    assert (2, 2, {"look": 1}) == (again.times, script.requests, ran)


def test_runs_of_one_handler_have_steps_of_their_own(env_factory: Serve) -> None:
    """Two runs of the same agent in one handler are two steps, and each replays its own answer."""
    script = Script(lambda messages: f"{messages[0].parts[0].content}!")
    agent = Agent(script.model, name="twice")
    again = Again()

    async def handler(ctx: restate.Context) -> list[str]:
        durable = RestateAgent(agent, restate_context=ctx)
        answers = [(await durable.run(prompt)).output for prompt in ("one", "two")]
        again()
        return answers

    answer, names = serve_handler(env_factory, "TwoRuns", handler).with_steps()

    assert ["one!", "two!"] == answer
    assert ["twice__model.request"] * 2 == names
    assert (2, 2) == (again.times, script.requests)


def test_name_of_a_step_tells_which_model_is_asked(env_factory: Serve) -> None:
    """The step of the agent's own model has no suffix, be it given by its name; that of another has its key."""
    script = Script("fast")
    agent = Agent("test", name="keyed")
    again = Again()

    async def handler(ctx: restate.Context) -> list[str]:
        durable = RestateAgent(agent, restate_context=ctx, models={"quick": script.model})
        answers = [(await durable.run("go")).output, (await durable.run("go", model="quick")).output]
        again()
        return answers

    answer, names = serve_handler(env_factory, "KeyedModels", handler).with_steps()

    assert ["success (no tool calls)", "fast"] == answer
    assert ["keyed__model.request", "keyed__model.request.quick"] == names
    assert (2, 1) == (again.times, script.requests)


def test_settings_that_cannot_be_written_reach_the_model(env_factory: Serve) -> None:
    """Settings that are objects of the program reach the model unchanged, because a request stays in the process."""
    token = object()
    seen: list[Any] = []

    def respond(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        seen.append(dict(info.model_settings or {}))
        return ModelResponse(parts=[TextPart("done")])

    agent = Agent(FunctionModel(respond), name="settings", model_settings={"temperature": 0.5})

    async def handler(ctx: restate.Context) -> str:
        settings: Any = {"extra_body": token, "call me": look}
        return (await RestateAgent(agent, restate_context=ctx).run("go", model_settings=settings)).output

    assert "done" == serve_handler(env_factory, "CustomSettings", handler)()
    assert [{"temperature": 0.5, "extra_body": token, "call me": look}] == seen


def test_files_reach_the_model_as_they_are(env_factory: Serve) -> None:
    """Files of every kind come back from the journal with their media type, be it a tool's result or the model's."""
    files = [
        BinaryImage(data=b"\x89PNG\x00", media_type="image/png", identifier="map", vendor_metadata={"detail": "high"}),
        DocumentUrl("https://example.org/report", media_type="application/pdf"),
        UploadedFile("file-1", provider_name="openai", media_type="text/csv"),
    ]
    drawn = BinaryImage(data=b"GIF89a\xff", media_type="image/gif", identifier="drawn")
    answers = [[ToolCallPart("fetch", {})], [FilePart(drawn), TextPart("done")]]
    agent: Agent[None, str] = Agent(
        Script(*[ModelResponse(parts=parts) for parts in answers]).model, name="files", tools=[]
    )
    attempts: list[list[Any]] = []
    again = Again()

    @agent.tool_plain
    def fetch() -> list[Any]:
        return files

    async def handler(ctx: restate.Context) -> str:
        result = await RestateAgent(agent, restate_context=ctx).run(["look", *files])
        found = [part for message in result.all_messages() for part in message.parts]
        attempts.append(
            [
                next(part.content[1:] for part in found if part.part_kind == "user-prompt"),
                next(part.content for part in found if part.part_kind == "tool-return"),
                next(part.content for part in found if part.part_kind == "file"),
            ]
        )
        again()
        return result.output

    assert "done" == serve_handler(env_factory, "Files", handler)()
    assert 2 == again.times
    for attempt in attempts:
        prompted, fetched, made = attempt
        assert [files, files, drawn] == attempt
        for one in (prompted, fetched):
            assert ["image/png", "application/pdf", "text/csv"] == [file.media_type for file in one]
            assert [file.identifier for file in files] == [file.identifier for file in one]
        assert ("image/gif", "drawn", BinaryImage) == (made.media_type, made.identifier, type(made))


def test_long_response_is_recorded(env_factory: Serve) -> None:
    """A response of several megabytes goes into the journal and comes out of it."""
    length = 4 * 1024 * 1024
    script = Script("ä" * (length // 2))
    agent = Agent(script.model, name="long")
    again = Again()

    async def handler(ctx: restate.Context) -> int:
        output = (await RestateAgent(agent, restate_context=ctx).run("go")).output
        again()
        return len(output.encode())

    assert length == serve_handler(env_factory, "LongResponse", handler)()
    assert (2, 1) == (again.times, script.requests)


# --- responses that the model suspends --------------------------------------------------------------------------


class Pausing(FunctionModel):
    """A model that suspends its responses, waits before it continues, and counts its requests.

    Args:
        segments: The responses, in order; how many of them there are in the messages says which one is next.
        delay: Seconds to wait before a suspended response is continued.
    """

    def __init__(self, *segments: ModelResponse, delay: float | None = None) -> None:
        self.asked: list[list[ModelMessage]] = []
        self.cancelled: list[str | None] = []
        self._segments = segments
        self._delay = delay
        super().__init__(self._respond, model_name="pausing")

    def _respond(self, messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        self.asked.append(list(messages))
        so_far = sum(len(message.parts) for message in messages if message.kind == "response")
        return self._segments[min(so_far, len(self._segments) - 1)]

    def continuation_delay(self, response: ModelResponse) -> float | None:
        return self._delay

    async def cancel_suspended_response(self, response: ModelResponse) -> None:
        self.cancelled.append(response.provider_response_id)


def segment(text: str, *, suspended: bool = True) -> ModelResponse:
    """One part of a response, which bills ten tokens."""
    return ModelResponse(
        parts=[TextPart(text)],
        usage=RequestUsage(input_tokens=3, output_tokens=7),
        provider_response_id=f"job-{text}",
        state="suspended" if suspended else "complete",
    )


def test_each_part_of_a_suspended_response_is_a_step(env_factory: Serve) -> None:
    """A response in three parts is three steps and one request, whose usage is summed."""
    model = Pausing(segment("a"), segment("b"), segment("c", suspended=False))
    agent = Agent(model, name="pausing")
    again = Again()

    async def handler(ctx: restate.Context) -> list[Any]:
        result = await RestateAgent(agent, restate_context=ctx).run("go")
        again()
        usage = result.usage
        return [result.output, len(result.all_messages()), usage.requests, usage.input_tokens, usage.output_tokens]

    answer, names = serve_handler(env_factory, "Suspended", handler).with_steps()

    assert ["abc", 2, 1, 9, 21] == answer
    assert ["pausing__model.request"] * 3 == names
    assert (2, 3, []) == (again.times, len(model.asked), model.cancelled)


def test_wait_for_a_suspended_response_is_a_durable_timer(env_factory: Serve) -> None:
    """The time to wait between two parts of a response is slept by Restate, once."""
    model = Pausing(segment("a"), segment("b", suspended=False), delay=0.01)
    agent = Agent(model, name="polling")
    again = Again()

    async def handler(ctx: restate.Context) -> str:
        output = (await RestateAgent(agent, restate_context=ctx).run("go")).output
        again()
        return output

    served = serve_handler(env_factory, "Polling", handler)
    invocation = served.send()

    assert "ab" == served.env.attach(invocation)
    entries = [entry.type for entry in served.env.server.admin.journal(invocation) if entry.type.startswith("Command")]
    assert ["Command: Input", "Command: Run", "Command: Sleep", "Command: Run", "Command: Output"] == entries
    assert (2, 2) == (again.times, len(model.asked))


def test_suspended_response_over_the_limit_is_cancelled_once(env_factory: Serve) -> None:
    """A response that is over the run's limit before it is complete is cancelled at the provider, in a step."""
    model = Pausing(segment("a"), segment("b"), segment("c"))
    agent = Agent(model, name="costly")
    again = Again()

    async def handler(ctx: restate.Context) -> str:
        try:
            limits = UsageLimits(output_tokens_limit=10)
            await RestateAgent(agent, restate_context=ctx).run("go", usage_limits=limits)
        except UsageLimitExceeded as error:
            await run_step(lambda: None, name="caught")
            again()
            return error.message
        return "unreachable"

    answer, names = serve_handler(env_factory, "OverLimit", handler).with_steps()

    assert "output_tokens_limit of 10" in answer
    assert [*["costly__model.request"] * 2, "costly__model.cancel_suspended_response", "caught"] == names
    assert (2, 2, ["job-b"]) == (again.times, len(model.asked), model.cancelled)


def test_suspended_response_in_the_history_is_resumed(env_factory: Serve) -> None:
    """A run whose history ends in a suspended response continues it, and bills only its own requests."""
    model = Pausing(segment("a"), segment("b"), segment("c", suspended=False))
    history: list[ModelMessage] = [
        ModelRequest(parts=[UserPromptPart("go", timestamp=NOON)], timestamp=NOON),
        segment("a"),
    ]
    agent = Agent(model, name="resumed")
    again = Again()

    async def handler(ctx: restate.Context) -> list[Any]:
        result = await RestateAgent(agent, restate_context=ctx).run(message_history=history)
        again()
        return [result.output, len(result.all_messages()), result.usage.output_tokens]

    answer, names = serve_handler(env_factory, "Resumed", handler).with_steps()

    assert ["abc", 2, 14] == answer
    assert ["resumed__model.request"] * 2 == names
    assert [["a"], ["a", "b"]] == [[part.content for part in messages[-1].parts] for messages in model.asked]
    assert 2 == again.times


# --- the journal ------------------------------------------------------------------------------------------------


HAND_WRITTEN: list[tuple[str, dict[str, Any]]] = [
    (
        "written__model.request",
        {
            "parts": [
                {"content": "hm", "part_kind": "thinking"},
                {"tool_name": "look", "args": {"where": None}, "tool_call_id": "1", "part_kind": "tool-call"},
            ],
            "timestamp": "2026-03-01T12:00:00Z",
        },
    ),
    ("written__function_toolset__<agent>.call_tool:look", {"kind": "tool_return", "result": "seen"}),
    (
        "written__model.request",
        {
            "parts": [
                {
                    "content": "read",
                    "id": None,
                    "provider_name": None,
                    "provider_details": None,
                    "part_kind": "text",
                }
            ],
            "usage": {
                "input_tokens": 5,
                "cache_write_tokens": 0,
                "cache_read_tokens": 0,
                "output_tokens": 2,
                "input_audio_tokens": 0,
                "cache_audio_read_tokens": 0,
                "output_audio_tokens": 0,
                "details": {},
            },
            "model_name": "written",
            "timestamp": "2026-03-01T12:00:01Z",
            "kind": "response",
            "provider_name": None,
            "provider_url": None,
            "provider_details": None,
            "provider_response_id": None,
            "finish_reason": "stop",
            "run_id": None,
            "conversation_id": None,
            "metadata": None,
            "state": "complete",
        },
    ),
]
"""The names and payloads of an earlier version's journal, which later versions must understand."""


def test_journal_written_by_hand_is_understood(env_factory: Serve) -> None:
    """An agent continues from a journal with these names and payloads, with and without nulls."""
    script = Script("asked")
    agent = Agent(script.model, name="written")
    again = Again()

    @agent.tool_plain(name="look")
    def never(where: str | None) -> str:
        raise AssertionError("it is in the journal")

    async def handler(ctx: restate.Context) -> list[Any]:
        if again.times == 0:
            for name, payload in HAND_WRITTEN:

                async def record(payload: dict[str, Any] = payload) -> bytes:
                    return json.dumps(payload).encode()

                await ctx.run_typed(name, record, restate.RunOptions(serde=BytesSerde()))
            again()
        result = await RestateAgent(agent, restate_context=ctx).run("go")
        first = result.all_messages()[1]
        assert isinstance(first, ModelResponse)
        assert ThinkingPart("hm") == first.parts[0]
        last = result.response
        return [result.output, returned(result.all_messages()), last.usage.input_tokens, last.finish_reason]

    answer, names = serve_handler(env_factory, "HandWritten", handler).with_steps()

    assert ["read", ["seen"], 5, "stop"] == answer
    assert [name for name, _ in HAND_WRITTEN] == names
    assert 0 == script.requests


# --- more than one model ----------------------------------------------------------------------------------------


def test_run_on_another_model(env_factory: Serve) -> None:
    """A run may ask another model: one by its key, an instance, be it named or not, one that overrides its own."""
    own, keyed, given = (Script(name, name=name) for name in ("own", "keyed", "given"))
    agent = Agent(own.model, name="switch")
    again = Again()

    async def handler(ctx: restate.Context) -> list[str]:
        durable = RestateAgent(agent, restate_context=ctx, models={"key": keyed.model})
        answers = [(await durable.run("go")).output]
        answers.append((await durable.run("go", model="key")).output)
        answers.append((await durable.run("go", model=keyed.model)).output)
        answers.append((await durable.run("go", model=given.model)).output)
        with durable.override(model=keyed.model):
            answers.append((await durable.run("go")).output)
        again()
        return answers

    answer, names = serve_handler(env_factory, "Switch", handler).with_steps()

    assert ["own", "keyed", "keyed", "given", "keyed"] == answer
    assert ["", ".key", ".key", ".given", ".key"] == [name.removeprefix("switch__model.request") for name in names]
    assert (2, [1, 3, 1]) == (again.times, [script.requests for script in (own, keyed, given)])


@pytest.mark.parametrize("way", ["wrapper", "capability"])
def test_model_that_is_overridden_by_its_key(env_factory: Serve, way: str) -> None:
    """A key of ``models=`` names a model for ``override`` too, not only for ``run``."""
    own, keyed = Script("own"), Script("keyed")
    agent = Agent(own.model, name="overridden")
    if way == "capability":
        agent = Agent(own.model, name="overridden", capabilities=[RestateDurability(models={"key": keyed.model})])

    async def handler(ctx: restate.Context) -> str:
        durable = agent if way == "capability" else RestateAgent(agent, models={"key": keyed.model})
        with durable.override(model="key"):
            return (await durable.run("go")).output

    assert "keyed" == serve_handler(env_factory, "OverriddenByKey", handler)()
    assert (0, 1) == (own.requests, keyed.requests)


def test_model_that_overrides_without_a_key(env_factory: Serve) -> None:
    """A model that overrides the agent's needs no key, as one that is given to ``run``: so agents are tested."""
    own, other = Script("own"), Script("other", name="other")
    agent = Agent(own.model, name="tested")

    async def handler(ctx: restate.Context) -> str:
        with agent.override(model=other.model):
            return (await RestateAgent(agent, restate_context=ctx).run("go")).output

    assert "other" == serve_handler(env_factory, "OverriddenByInstance", handler)()
    assert (0, 1) == (own.requests, other.requests)


def test_model_chosen_for_each_request(env_factory: Serve) -> None:
    """A model that a capability resolves from an alias or selects for one request is built with the run's deps."""
    scripts = {name: Script(("look", {}), f"said {name}", name=name) for name in ("eu-small", "eu-big")}
    resolved: Counter[str] = Counter()

    def resolve(ctx: ModelResolutionContext[str], model_id: str) -> Model | None:
        resolved[model_id] += 1
        script = scripts.get(f"{ctx.deps}-{model_id}")
        return script.model if script is not None else None

    def select(ctx: ModelSelectionContext[str]) -> str:
        return "big" if returned(list(ctx.messages)) else "small"

    agent = Agent(
        "small",
        name="chosen",
        deps_type=str,
        tools=[look],
        capabilities=[ResolveModelId(resolve), SelectModel(select)],
    )
    again = Again()

    async def handler(ctx: restate.Context) -> str:
        output = (await RestateAgent(agent, restate_context=ctx).run("go", deps="eu")).output
        again()
        return output

    answer, names = serve_handler(env_factory, "Chosen", handler).with_steps()

    assert "said eu-big" == answer
    assert ["chosen__model.request", "chosen__model.request.big"] == [name for name in names if "model" in name]
    assert (2, [1, 1]) == (again.times, [script.requests for script in scripts.values()])
    assert {"small", "big"} == resolved.keys()


class Opened(FunctionModel):
    """A model that has to be opened before it is asked, and closed."""

    def __init__(self, script: Script, ledger: list[str]) -> None:
        self._ledger = ledger
        super().__init__(self._respond, model_name="opened")
        self._script = script

    async def _respond(self, messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        self._ledger.append("asked")
        return await self._script.model.request(messages, None, info.model_request_parameters)

    async def __aenter__(self) -> Opened:
        self._ledger.append("opened")
        return self

    async def __aexit__(self, *error: object) -> None:
        self._ledger.append("closed")


def test_model_built_for_a_request_is_closed_after_it(env_factory: Serve) -> None:
    """A model that a resolver builds is opened and closed once for each request, inside the step."""
    ledger: list[str] = []
    script = Script(("look", {}), "done")
    agent = Agent(
        "made",
        name="built",
        tools=[look],
        capabilities=[ResolveModelId(lambda ctx, model_id: Opened(script, ledger))],
    )
    again = Again()

    async def handler(ctx: restate.Context) -> str:
        output = (await RestateAgent(agent, restate_context=ctx).run("go")).output
        again()
        return output

    assert "done" == serve_handler(env_factory, "Built", handler)()
    assert ["opened", "asked", "closed"] * 2 == ledger
    assert 2 == again.times


def test_fallback_is_asked_at_once(env_factory: Serve) -> None:
    """With a fallback model, a model that always answers 503 gets each request once."""
    primary = Script(ModelHTTPError(503, "primary"), name="primary")
    second = Script(("look", {}), "done", name="second")
    agent = Agent(primary.model, name="falls", tools=[look], capabilities=[ModelFallback(second.model)])
    again = Again()

    async def handler(ctx: restate.Context) -> list[Any]:
        durable = RestateAgent(agent, restate_context=ctx, models={"second": second.model})
        result = await durable.run("go")
        again()
        attempts = result.response.failed_attempts or []
        return [result.output, [attempt.model_name for attempt in attempts], attempts[0].error]

    answer, names = serve_handler(env_factory, "FallsBack", handler).with_steps()

    assert ["done", ["primary"]] == answer[:2]
    assert answer[2].startswith("ModelHTTPError: status_code: 503")
    assert ["falls__model.request", "falls__model.request.second"] * 2 == [name for name in names if "model" in name]
    assert (2, 2, 2) == (again.times, primary.requests, second.requests)


def test_a_fallback_with_the_name_of_a_known_model(env_factory: Serve) -> None:
    """Two models of one name are two models: the one in ``models`` does not take the place of the fallback."""
    primary = Script(ModelHTTPError(503, "primary"), name="primary")
    second, known = Script("fallback", name="shared"), Script("known", name="shared")
    agent = Agent(primary.model, name="shares", capabilities=[ModelFallback(second.model)])

    async def handler(ctx: restate.Context) -> str:
        durable = RestateAgent(agent, restate_context=ctx, models={"shared": known.model})
        return (await durable.run("go")).output

    assert "fallback" == serve_handler(env_factory, "Shares", handler)()
    assert (1, 0) == (second.requests, known.requests)


def test_fallback_after_the_attempts_of_a_policy(env_factory: Serve) -> None:
    """With a retry policy for the model, the fallback gets the request when the attempts are used up."""
    primary = Script(ModelHTTPError(503, "primary"), name="primary")
    second = Script("done", name="second")
    agent = Agent(primary.model, name="patient", capabilities=[ModelFallback(second.model)])
    policy = RetryPolicy(max_attempts=3, initial_retry_interval=timedelta(milliseconds=1))

    async def handler(ctx: restate.Context) -> str:
        durable = RestateAgent(agent, restate_context=ctx, models={"second": second.model}, model_retry=policy)
        return (await durable.run("go")).output

    assert "done" == serve_handler(env_factory, "Patient", handler)()
    assert (3, 1) == (primary.requests, second.requests)


def test_history_after_a_fallback_is_the_same_on_each_replay(env_factory: Serve) -> None:
    """The failed attempts in the history are the same on every replay, so it may be stored in the state."""
    primary = Script(ModelHTTPError(503, "primary"), name="primary")
    second = Script(("look", {}), "done", name="second")
    agent = Agent(primary.model, name="kept", tools=[look], capabilities=[ModelFallback(second.model)])
    again = Again()
    histories: list[bytes] = []

    async def handler(ctx: restate.Context) -> int:
        result = await RestateAgent(agent, restate_context=ctx, models={"second": second.model}).run("go")
        histories.append(result.all_messages_json())
        again()
        return len(result.all_messages())

    assert 4 == serve_handler(env_factory, "KeptHistory", handler)()
    assert 2 == again.times
    assert b'"failed_attempts":[{' in histories[0]
    assert 1 == len(set(histories))


def test_history_after_a_continuation_is_the_same_on_each_replay(env_factory: Serve) -> None:
    """A response that was put together from several is the same on each replay."""
    model = Pausing(segment("a"), segment("b", suspended=False), delay=0.001)
    agent = Agent(model, name="together")
    again = Again()
    histories: list[bytes] = []

    async def handler(ctx: restate.Context) -> None:
        histories.append((await RestateAgent(agent, restate_context=ctx).run("go")).all_messages_json())
        again()

    serve_handler(env_factory, "KeptTogether", handler)()

    assert 2 == again.times
    assert 1 == len(set(histories))


def test_fallback_that_is_not_named(env_factory: Serve) -> None:
    """Models to fall back to need no key: the capability has the instances at hand, in this process."""
    primary = Script(ModelHTTPError(503, "primary"), name="primary")
    second = Script("done", name="second")
    agent = Agent(primary.model, name="unnamed", capabilities=[ModelFallback(second.model)])

    async def handler(ctx: restate.Context) -> str:
        return (await RestateAgent(agent, restate_context=ctx).run("go")).output

    assert "done" == serve_handler(env_factory, "UnnamedFallback", handler)()


def test_every_model_fails(env_factory: Serve) -> None:
    """When the last model fails too, the run ends with what each of them said, and the invocation with it."""
    scripts = [Script(ModelHTTPError(status, name), name=name) for name, status in (("one", 503), ("two", 400))]
    models = [script.model for script in scripts]
    agent = Agent(models[0], name="none", capabilities=[ModelFallback(models[1])])
    seen: list[list[str]] = []

    async def handler(ctx: restate.Context) -> str:
        try:
            return (await RestateAgent(agent, restate_context=ctx, models={"two": models[1]}).run("go")).output
        except ExceptionGroup as group:
            seen.append([f"{type(error).__name__} {error.status_code}" for error in group.exceptions])
            await run_step(lambda: None, name="caught")
            raise

    with pytest.raises(InvocationFailed, match="FallbackExceptionGroup"):
        serve_handler(env_factory, "EveryModelFails", handler)()
    assert [1, 1] == [script.requests for script in scripts]
    assert all(["ModelHTTPError 503", "ModelHTTPError 400"] == one for one in seen)
