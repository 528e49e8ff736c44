"""Function tools, and what they do besides returning: the scenarios 22 to 40 of agents, on the real server."""

# | no.  | scenario                                   | tests; t_a means test_agent.py                           |
# |------|--------------------------------------------|----------------------------------------------------------|
# | 22   | the body runs once, its step names it      | t_a: test_nothing_runs_twice,                            |
# |      |                                            | t_a: test_first_example_runs_as_written                  |
# | 23   | sync tools run in threads, and overlap     | test_sync_tools_overlap_in_threads                       |
# | 24   | an opted-out tool has no entry             | t_a: test_metadata_leaves_a_tool_to_itself               |
# | 25   | bad configuration of a tool                | t_a: test_wrong_metadata_ends_the_invocation,            |
# |      |                                            | test_tool_with_wrong_options_does_not_run                |
# | 26   | the same toolset twice                     | test_same_toolset_twice                                  |
# | 27   | a capability's toolset takes its id        | test_toolset_of_a_capability                             |
# | 28   | prepare, and a renamed tool                | test_prepare_runs_in_the_handler                         |
# | 29   | args_validator has its own step            | test_args_validator_has_a_step,                          |
# |      |                                            | test_args_validator_of_an_unwrapped_tool                 |
# | 31   | the context inside a wrapped tool          | t_a: test_context_in_a_wrapped_tool_is_refused           |
# | 32   | ModelRetry is a value                      | t_a: test_model_retry_is_a_value,                        |
# |      |                                            | test_budget_of_retries_is_the_agents                     |
# | 33   | metadata of a deferral                     | test_metadata_of_deferrals                               |
# | 34   | approval, deferral, plain tool; resumed    | test_deferred_calls_are_resumed                          |
# | 35   | a question keeps its kind                  | test_question_keeps_its_kind                             |
# | 36   | ToolFailed is a value                      | test_tool_failed_is_a_value                              |
# | 37   | UserError is terminal                      | t_a: test_mistake_in_a_tool_ends_the_invocation          |
# | 38   | only the step that failed runs again       | test_only_the_step_that_failed_runs_again                |
# | 39   | a sub-agent is cancelled, or times out     | test_sub_agent_that_is_cancelled,                        |
# |      |                                            | test_sub_agent_that_times_out_in_a_step,                 |
# |      |                                            | test_sub_agent_that_times_out                            |
# | 40   | ctx.cancel()                               | test_cancelling_in_a_wrapped_tool_is_refused,            |
# |      |                                            | test_cancelling_in_an_unwrapped_tool                     |
# |      | options by metadata                        | t_a: test_metadata_sets_the_options_of_a_tool,           |
# |      |                                            | test_timeout_of_a_tool_limits_an_attempt                 |
# |      | tools that make their own steps            | t_a: test_tools_decorated_as_steps,                      |
# |      |                                            | test_durable_steps_as_tools                              |
# |      | on_tool_error                              | test_model_is_told_of_a_failure,                         |
# |      |                                            | test_function_decides_who_is_told,                       |
# |      |                                            | test_mistakes_are_never_told_to_the_model                |

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import restate
from pydantic import JsonValue
from pydantic_ai import Agent, ModelRetry, RunContext
from pydantic_ai.capabilities import AbstractCapability, Capability, WebSearch
from pydantic_ai.exceptions import (
    ApprovalRequired,
    CallDeferred,
    RunCancelled,
    ToolFailed,
    UnexpectedModelBehavior,
    UserError,
)
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.tools import DeferredToolRequests, DeferredToolResults, Tool, ToolApproved, ToolDefinition
from pydantic_ai.toolsets import FunctionToolset

from restate_steps import RetryPolicy, durable_step, restate_context, run_step, step_info
from restate_steps.agents import RestateAgent
from tests.support.agents_kit import Script, Serve, returned, serve_handler
from tests.support.harness import InvocationFailed, eventually

ONCE = RetryPolicy(max_attempts=1)


def say(messages: list[ModelMessage]) -> str:
    """Repeat what the tools returned."""
    return "; ".join(str(content) for content in returned(messages))


def outcomes(messages: list[ModelMessage]) -> list[str]:
    """Return the outcomes of the calls, and what the model got."""
    parts = [part for message in messages for part in message.parts if isinstance(part, ToolReturnPart)]
    return [f"{part.outcome}: {part.content}" for part in parts]


def in_a_step() -> bool:
    """Return whether the body of a step is running."""
    try:
        step_info()
    except RuntimeError:
        return False
    return True


# --- function tools ---------------------------------------------------------------------------------------------


def test_sync_tools_overlap_in_threads(env_factory: Serve) -> None:
    """Two sync tools of one response run at the same time, each in a thread, and each once."""
    script = Script([("left", {}), ("right", {})], say)
    both = threading.Barrier(2)
    ran: Counter[str] = Counter()
    threads: set[int] = set()
    agent = Agent(script.model, name="threads")

    @agent.tool_plain
    def left() -> str:
        ran["left"] += 1
        threads.add(threading.get_ident())
        both.wait(timeout=20)
        return "l"

    @agent.tool_plain
    def right() -> str:
        ran["right"] += 1
        threads.add(threading.get_ident())
        both.wait(timeout=20)
        return "r"

    loops: set[int] = set()

    async def handler(ctx: restate.Context) -> str:
        loops.add(threading.get_ident())
        return (await RestateAgent(agent, restate_context=ctx).run("go")).output

    assert "l; r" == serve_handler(env_factory, "SyncTools", handler)()
    assert {"left": 1, "right": 1} == ran
    assert 2 == len(threads - loops)


def test_tool_with_wrong_options_does_not_run(env_factory: Serve) -> None:
    """A tool with invalid options does not run, and the error is terminal on the first attempt."""
    script = Script(("look", {}), say)
    ran: Counter[str] = Counter()
    agent = Agent(script.model, name="wrong")

    @agent.tool_plain(metadata={"restate": {"retry": 3}})
    async def look() -> str:
        ran["look"] += 1
        return "seen"

    async def handler(ctx: restate.Context) -> str:
        ran["handler"] += 1
        try:
            return (await RestateAgent(agent, restate_context=ctx).run("go")).output
        except UserError as error:
            return str(error)

    answer = serve_handler(env_factory, "WrongOptions", handler)()

    assert "metadata of tool 'look' is invalid under 'restate'" in answer
    assert 0 == ran["look"]
    assert 1 == script.requests


@pytest.mark.parametrize("toolset_id", [None, "mine"])
def test_same_toolset_twice(env_factory: Serve, toolset_id: str | None) -> None:
    """One toolset instance that an agent has under two prefixes works under both."""
    script = Script([("a_look", {}), ("b_look", {})], say)
    ran: Counter[str] = Counter()
    toolset: FunctionToolset[None] = FunctionToolset(id=toolset_id)

    @toolset.tool
    async def look(ctx: RunContext[None]) -> str:
        ran[str(ctx.tool_call_id)] += 1
        return "seen"

    agent = Agent(script.model, name="twice", toolsets=[toolset.prefixed("a"), toolset.prefixed("b")])

    async def handler(ctx: restate.Context) -> str:
        return (await RestateAgent(agent, restate_context=ctx).run("go")).output

    answer, names = serve_handler(env_factory, f"Twice{toolset_id}", handler).with_steps()

    assert "seen; seen" == answer
    assert {"0-0": 1, "0-1": 1} == ran
    prefix = f"twice__function_toolset__{toolset_id or 'unnamed-1'}.call_tool:look"
    assert 2 == len([name for name in names if name.startswith(prefix)])
    assert 4 == len(names)


async def look_up(word: str) -> str:
    return word.upper()


def make_library(ctx: RunContext[None]) -> FunctionToolset[None]:
    return FunctionToolset([look_up])


@pytest.mark.parametrize(
    ("capability", "step"),
    [
        (Capability(id="library", tools=[look_up]), "function_toolset__library"),
        (WebSearch(id="library", native=False, local=look_up), "function_toolset__library"),
        (Capability(id="library", toolsets=[make_library]), "dynamic_toolset__library_0"),
    ],
    ids=["tools", "rebuilt", "dynamic"],
)
def test_toolset_of_a_capability(env_factory: Serve, capability: AbstractCapability[None], step: str) -> None:
    """A capability's toolset is named after the capability, even if it is rebuilt for every run."""
    script = Script(("look_up", {"word": "hi"}), say)
    agent = Agent(script.model, name="reader", capabilities=[capability])

    async def handler(ctx: restate.Context) -> str:
        return (await RestateAgent(agent, restate_context=ctx).run("go")).output

    answer, names = serve_handler(env_factory, "OfCapability", handler).with_steps()

    assert "HI" == answer
    assert f"reader__{step}.call_tool:look_up" in names
    assert 2 == script.requests


def test_prepare_runs_in_the_handler(env_factory: Serve) -> None:
    """A tool's `prepare` runs in the handler for every request, and may rename the tool."""
    script = Script(("day_1", {}), ("day_2", {}), say)
    prepared: list[tuple[int, bool]] = []
    ran: Counter[str] = Counter()

    async def rename(ctx: RunContext[None], tool_def: ToolDefinition) -> ToolDefinition:
        prepared.append((ctx.run_step, in_a_step()))
        return replace(tool_def, name=f"day_{ctx.run_step}")

    async def day(ctx: RunContext[None]) -> str:
        ran[str(ctx.tool_name)] += 1
        return f"{ctx.tool_name} of step {ctx.run_step}"

    agent = Agent(script.model, name="prepared", tools=[Tool(day, takes_ctx=True, prepare=rename)])

    async def handler(ctx: restate.Context) -> str:
        return (await RestateAgent(agent, restate_context=ctx).run("go")).output

    served = serve_handler(env_factory, "Prepared", handler)
    answer, names = served.with_steps()

    assert "day_1 of step 1; day_2 of step 2" == answer
    assert {"day_1": 1, "day_2": 1} == ran
    assert {(1, False), (2, False), (3, False)} == set(prepared)
    assert [
        "prepared__function_toolset__<agent>.call_tool:day_1",
        "prepared__function_toolset__<agent>.call_tool:day_2",
    ] == [name for name in names if "model" not in name]


def test_args_validator_has_a_step(env_factory: Serve) -> None:
    """A validator of arguments runs once a call, in a step of its own, and its refusal is a retry prompt."""
    script = Script(("book", {"day": 1}), ("book", {"day": 2}), say)
    ran: Counter[str] = Counter()

    async def check(ctx: RunContext[None], day: int) -> None:
        ran[f"check {day} {in_a_step()}"] += 1
        if day == 1:
            raise ModelRetry("day 1 is full")

    async def book(ctx: RunContext[None], day: int) -> str:
        ran[f"book {day}"] += 1
        return f"booked {day}"

    agent = Agent(script.model, name="checked", tools=[Tool(book, takes_ctx=True, args_validator=check)])

    async def handler(ctx: restate.Context) -> list[str]:
        return outcomes((await RestateAgent(agent, restate_context=ctx).run("go")).all_messages())

    (refused, booked), names = serve_handler(env_factory, "Checked", handler).with_steps()

    assert refused.startswith("retried: ")
    assert "day 1 is full" in refused
    assert "success: booked 2" == booked
    assert {"check 1 True": 1, "check 2 True": 1, "book 2": 1} == ran
    assert [
        "checked__model.request",
        "checked__function_toolset__<agent>.validate_args",
        "checked__model.request",
        "checked__function_toolset__<agent>.validate_args",
        "checked__function_toolset__<agent>.call_tool:book",
        "checked__model.request",
    ] == names


def test_args_validator_of_an_unwrapped_tool(env_factory: Serve) -> None:
    """The validator of a tool that is left to itself may make steps of its own."""
    script = Script(("book", {"day": 1}), ("book", {"day": 2}), say)

    async def check(ctx: RunContext[None], day: int) -> None:
        if not await run_step(lambda: day > 1, name=f"is {day} free"):
            raise ModelRetry(f"day {day} is full")

    async def book(ctx: RunContext[None], day: int) -> str:
        await restate_context().sleep(timedelta(0))
        return f"booked {day}"

    tool = Tool(book, takes_ctx=True, args_validator=check, metadata={"restate": False})
    agent = Agent(script.model, name="free", tools=[tool])

    async def handler(ctx: restate.Context) -> list[str]:
        return outcomes((await RestateAgent(agent, restate_context=ctx).run("go")).all_messages())

    (refused, booked), names = serve_handler(env_factory, "CheckedInHandler", handler).with_steps()

    assert "day 1 is full" in refused
    assert "success: booked 2" == booked
    assert ["is 1 free", "is 2 free"] == [name for name in names if "model" not in name]


# --- options ----------------------------------------------------------------------------------------------------


def test_timeout_of_a_tool_limits_an_attempt(env_factory: Serve) -> None:
    """An attempt of a tool that outlasts the tool's timeout is cancelled and, while there are any left, made again."""
    script = Script(("wait", {}), say)
    ran: Counter[str] = Counter()
    agent = Agent(script.model, name="limited")
    retry = RetryPolicy(max_attempts=2, initial_retry_interval=timedelta(milliseconds=1))

    @agent.tool_plain(metadata={"restate": {"timeout": timedelta(milliseconds=20), "retry": retry}})
    async def wait() -> str:
        ran["started"] += 1
        try:
            await asyncio.Event().wait()
        finally:
            ran["ended"] += 1
        return "unreachable"

    async def handler(ctx: restate.Context) -> str:
        return (await RestateAgent(agent, restate_context=ctx).run("go")).output

    with pytest.raises(InvocationFailed, match="wait"):
        serve_handler(env_factory, "LimitedTool", handler)()
    assert {"started": 2, "ended": 2} == ran


def test_durable_steps_as_tools(env_factory: Serve) -> None:
    """Methods and functions that are durable steps serve as tools, with names, values and retries of their own."""
    # What runs beside a step that fails may run again.
    script = Script([("weigh", {"parcel": "p1"}), ("weigh", {"parcel": "p22"})], ("send", {"to": "Rome"}), say)
    ran: Counter[str] = Counter()

    class Post:
        @durable_step(name="weigh {parcel}")
        async def weigh(self, parcel: str) -> int:
            ran[parcel] += 1
            return len(parcel)

    @durable_step(retry=RetryPolicy(max_attempts=3, initial_retry_interval=timedelta(milliseconds=1)))
    async def send(to: str) -> str:
        ran["send"] += 1
        if ran["send"] < 3:
            raise OSError("no connection")
        return f"sent to {to}"

    agent = Agent(script.model, name="own", tools=[Post().weigh, send])

    async def handler(ctx: restate.Context) -> str:
        own = RestateAgent(agent, restate_context=ctx, disable_auto_wrapping_tools=True)
        return (await own.run("go")).output

    answer, names = serve_handler(env_factory, "StepsAsTools", handler).with_steps()

    assert "2; 3; sent to Rome" == answer
    assert {"p1": 1, "p22": 1, "send": 3} == ran
    assert ["weigh p1", "weigh p22", "send"] == [name for name in names if "model" not in name]


def test_model_is_told_of_a_failure(env_factory: Serve) -> None:
    """With on_tool_error="tell_model" a permanent failure of a tool is a failed call, and the run continues."""
    script = Script([("broken", {}), ("whole", {}), ("ended", {})], "did without")
    ran: Counter[str] = Counter()
    agent = Agent(script.model, name="told")

    @agent.tool_plain(metadata={"restate": {"retry": ONCE}})
    async def broken() -> str:
        ran["broken"] += 1
        raise OSError("out of paper")

    @agent.tool_plain
    async def whole() -> str:
        ran["whole"] += 1
        return "printed"

    @agent.tool_plain(metadata={"restate": False})
    async def ended() -> str:
        raise restate.TerminalError("gave up", status_code=418)

    async def handler(ctx: restate.Context) -> list[str]:
        run = await RestateAgent(agent, restate_context=ctx, on_tool_error="tell_model").run("go")
        return [*outcomes(run.all_messages()), run.output]

    broke, printed, gave_up, output = serve_handler(env_factory, "Told", handler)()

    assert broke.startswith("failed: ")
    assert "out of paper" in broke
    assert "success: printed" == printed
    assert gave_up.startswith("failed: ")
    assert "gave up" in gave_up
    assert "did without" == output
    assert {"broken": 1, "whole": 1} == ran


def test_function_decides_who_is_told(env_factory: Serve) -> None:
    """A function gets the exception of each failed tool; what it is not for ends the run with that error."""
    script = Script(("first", {}), ("second", {}), "unreachable")
    seen: list[str] = []
    agent = Agent(script.model, name="judged")

    @agent.tool_plain
    async def first() -> str:
        raise restate.TerminalError("small matter", status_code=418)

    @agent.tool_plain
    async def second() -> str:
        raise restate.TerminalError("disaster", status_code=503)

    def is_small(error: Exception) -> bool:
        seen.append(str(getattr(error, "status_code", "none")))
        return isinstance(error, restate.TerminalError) and error.status_code == 418

    async def handler(ctx: restate.Context) -> str:
        return (await RestateAgent(agent, restate_context=ctx, on_tool_error=is_small).run("go")).output

    with pytest.raises(InvocationFailed, match="disaster") as failed:
        serve_handler(env_factory, "Judged", handler)()
    assert 503 == failed.value.status
    assert 2 == script.requests
    assert {"418", "503"} == set(seen)


def test_mistakes_are_never_told_to_the_model(env_factory: Serve) -> None:
    """A programming error ends the run even with on_tool_error."""
    script = Script(("look", {}), "unreachable")
    ran: Counter[str] = Counter()
    agent = Agent(script.model, name="mistaken")

    @agent.tool_plain
    async def look() -> str:
        ran["look"] += 1
        raise UserError("the tool is not set up")

    async def handler(ctx: restate.Context) -> str:
        return (await RestateAgent(agent, restate_context=ctx, on_tool_error="tell_model").run("go")).output

    with pytest.raises(InvocationFailed, match="the tool is not set up"):
        serve_handler(env_factory, "MistakeNotTold", handler)()
    assert {"look": 1} == ran
    assert 1 == script.requests


# --- control flow -----------------------------------------------------------------------------------------------


def test_budget_of_retries_is_the_agents(env_factory: Serve) -> None:
    """A tool that never stops asking for a retry runs as often as the agent's budget says, then the run fails."""
    script = Script(("book", {}))
    ran: Counter[str] = Counter()
    agent = Agent(script.model, name="booker", retries=2)

    @agent.tool_plain
    async def book() -> str:
        ran["book"] += 1
        raise ModelRetry("full")

    async def handler(ctx: restate.Context) -> str:
        try:
            return (await RestateAgent(agent, restate_context=ctx).run("go")).output
        except UnexpectedModelBehavior as error:
            await run_step(lambda: None, name="caught")
            return str(error)

    answer, names = serve_handler(env_factory, "Budget", handler).with_steps()

    assert "2" in answer
    assert {"book": 3} == ran
    assert 3 == script.requests
    assert "caught" == names[-1]


def test_metadata_of_deferrals(env_factory: Serve) -> None:
    """The metadata of a call that a tool defers, or wants approved, reaches the handler."""
    script = Script([("order", {}), ("pay", {"total": 7})], say)
    ran: Counter[str] = Counter()
    agent = Agent(script.model, name="deferring", output_type=[str, DeferredToolRequests])

    @agent.tool_plain
    async def order() -> str:
        ran["order"] += 1
        raise CallDeferred(metadata={"queue": "slow", "tags": [1, None]})

    @agent.tool_plain
    async def pay(total: int) -> str:
        ran["pay"] += 1
        raise ApprovalRequired(metadata={"limit": 5})

    async def handler(ctx: restate.Context) -> dict[str, Any]:
        output = (await RestateAgent(agent, restate_context=ctx).run("go")).output
        assert isinstance(output, DeferredToolRequests)
        await ctx.sleep(timedelta(0))
        return {
            "calls": [call.tool_name for call in output.calls],
            "approvals": [[call.tool_name, call.args_as_dict()] for call in output.approvals],
            "metadata": output.metadata,
        }

    assert {
        "calls": ["order"],
        "approvals": [["pay", {"total": 7}]],
        "metadata": {"0-0": {"queue": "slow", "tags": [1, None]}, "0-1": {"limit": 5}},
    } == serve_handler(env_factory, "Deferring", handler)()
    assert {"order": 1, "pay": 1} == ran


def test_deferred_calls_are_resumed(env_factory: Serve) -> None:
    """A second run continues with an external result and an approval that changes arguments, and repeats nothing."""
    script = Script([("pay", {"total": 7}), ("order", {}), ("look", {})], say)
    ran: Counter[str] = Counter()
    agent = Agent(script.model, name="resumed", output_type=[str, DeferredToolRequests])

    @agent.tool
    async def pay(ctx: RunContext[None], total: int) -> str:
        ran[f"pay {total}"] += 1
        if not ctx.tool_call_approved:
            raise ApprovalRequired()
        return f"paid {total}"

    @agent.tool_plain
    async def order() -> str:
        ran["order"] += 1
        raise CallDeferred()

    @agent.tool_plain
    async def look() -> str:
        ran["look"] += 1
        return "seen"

    async def handler(ctx: restate.Context) -> str:
        durable = RestateAgent(agent, restate_context=ctx)
        first = await durable.run("go")
        assert isinstance(first.output, DeferredToolRequests)
        results = DeferredToolResults()
        for call in first.output.approvals:
            results.approvals[call.tool_call_id] = ToolApproved(override_args={"total": 5})
        for call in first.output.calls:
            results.calls[call.tool_call_id] = "ordered"
        second = await durable.run(message_history=first.all_messages(), deferred_tool_results=results)
        assert isinstance(second.output, str)
        return second.output

    answer = serve_handler(env_factory, "Resumed", handler)()

    assert ["ordered", "paid 5", "seen"] == sorted(answer.split("; "))
    assert {"pay 7": 1, "pay 5": 1, "order": 1, "look": 1} == ran
    assert 2 == script.requests


def test_question_keeps_its_kind(env_factory: Serve) -> None:
    """A call that is deferred as a question is one for the handler too."""
    script = Script([("ask", {"what": "which day"}), ("order", {})], say)
    agent = Agent(script.model, name="asking", output_type=[str, DeferredToolRequests])

    @agent.tool_plain
    async def ask(what: str) -> str:
        raise CallDeferred(kind="question")

    @agent.tool_plain
    async def order() -> str:
        raise CallDeferred()

    async def handler(ctx: restate.Context) -> dict[str, str]:
        output = (await RestateAgent(agent, restate_context=ctx).run("go")).output
        assert isinstance(output, DeferredToolRequests)
        return {call.tool_name: output.kind(call.tool_call_id) for call in output.calls}

    assert {"ask": "question", "order": "external"} == serve_handler(env_factory, "Asking", handler)()


@pytest.mark.parametrize("metadata", [None, {"restate": False}], ids=["wrapped", "unwrapped"])
def test_tool_failed_is_a_value(env_factory: Serve, metadata: dict[str, JsonValue] | None) -> None:
    """A tool that says that it has failed is a failed call: it is not tried again, and the model is told."""
    script = Script(("find", {}), "nothing there")
    ran: Counter[str] = Counter()
    agent = Agent(script.model, name="failing")

    @agent.tool_plain(metadata=metadata)
    async def find() -> str:
        await run_step(lambda: ran.update(["body"]), name="look")
        raise ToolFailed("no such file")

    async def handler(ctx: restate.Context) -> list[str]:
        run = await RestateAgent(agent, restate_context=ctx).run("go")
        return [*outcomes(run.all_messages()), run.output]

    name = "FailedUnwrapped" if metadata else "FailedWrapped"
    assert ["failed: no such file", "nothing there"] == serve_handler(env_factory, name, handler)()
    assert {"body": 1} == ran
    assert 2 == script.requests


def test_only_the_step_that_failed_runs_again(env_factory: Serve) -> None:
    """An exception in a tool repeats the body of that tool, and neither what came before nor the model's request."""
    script = Script(("before", {}), ("flaky", {}), say)
    ran: Counter[str] = Counter()
    agent = Agent(script.model, name="again")
    retry = RetryPolicy(initial_retry_interval=timedelta(milliseconds=1))

    @agent.tool_plain
    async def before() -> str:
        ran["before"] += 1
        return "b"

    @agent.tool_plain(metadata={"restate": {"retry": retry}})
    async def flaky() -> str:
        ran["flaky"] += 1
        if ran["flaky"] < 3:
            raise KeyError("not yet")
        return "f"

    async def handler(ctx: restate.Context) -> str:
        return (await RestateAgent(agent, restate_context=ctx).run("go")).output

    assert "b; f" == serve_handler(env_factory, "OnlyThatStep", handler)()
    assert {"before": 1, "flaky": 3} == ran
    assert 3 == script.requests


@pytest.mark.parametrize("metadata", [None, {"restate": False}], ids=["wrapped", "unwrapped"])
def test_sub_agent_that_is_cancelled(env_factory: Serve, metadata: dict[str, JsonValue] | None) -> None:
    """A sub-agent whose run cancels itself is a failed call of the tool that runs it, and the outer run continues."""
    script = Script(("ask", {}), "did without")
    inner_script = Script(("stop", {}), "unreachable")
    ran: Counter[str] = Counter()
    inner = Agent(inner_script.model, name="inner")
    outer = Agent(script.model, name="outer")

    @inner.tool(metadata={"restate": False})
    async def stop(ctx: RunContext[None]) -> str:
        ran["stop"] += 1
        ctx.cancel()
        await asyncio.sleep(0)
        return "unreachable"

    @outer.tool_plain(metadata=metadata)
    async def ask() -> str:
        return (await RestateAgent(inner).run("go")).output

    async def handler(ctx: restate.Context) -> list[str]:
        run = await RestateAgent(outer, restate_context=ctx).run("go")
        return [*outcomes(run.all_messages()), run.output]

    name = "InnerCancelUnwrapped" if metadata else "InnerCancelWrapped"
    failed, output = serve_handler(env_factory, name, handler)()

    assert failed.startswith("failed: ")
    assert "did without" == output
    assert 1 == inner_script.requests
    assert 2 == script.requests
    if metadata is None:
        assert {"stop": 1} == ran


def test_sub_agent_that_times_out_in_a_step(env_factory: Serve) -> None:
    """A sub-agent in a wrapped tool whose run times out is a failed call, and the outer run continues."""
    script = Script(("ask", {}), "did without")
    asked: Counter[str] = Counter()

    async def never(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        asked["inner"] += 1
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    inner = Agent(FunctionModel(never), name="inner")
    outer = Agent(script.model, name="outer")

    @outer.tool_plain
    async def ask() -> str:
        return (await RestateAgent(inner).run("go", timeout=0.05)).output

    async def handler(ctx: restate.Context) -> list[str]:
        run = await RestateAgent(outer, restate_context=ctx).run("go")
        return [*outcomes(run.all_messages()), run.output]

    failed, output = serve_handler(env_factory, "InnerTimeoutWrapped", handler)()

    assert failed.startswith("failed: ")
    assert "did without" == output
    assert {"inner": 1} == asked
    assert 2 == script.requests


def test_sub_agent_that_times_out(env_factory: Serve) -> None:
    """A sub-agent that is left to its own steps takes too long for a durable timer, so that a replay agrees."""
    script = Script(("ask", {}), "did without")
    asked: Counter[str] = Counter()
    late = threading.Event()

    def slow(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        asked["inner"] += 1
        late.wait(timeout=30)
        return ModelResponse(parts=[TextPart("too late")])

    inner = Agent(FunctionModel(slow), name="inner")
    outer = Agent(script.model, name="outer")

    @outer.tool_plain(metadata={"restate": False})
    async def ask() -> str:
        return (await RestateAgent(inner).run("go", timeout=0.05)).output

    async def handler(ctx: restate.Context) -> list[str]:
        run = await RestateAgent(outer, restate_context=ctx).run("go")
        return [*outcomes(run.all_messages()), run.output]

    served = serve_handler(env_factory, "InnerTimeoutUnwrapped", handler)
    invocation = served.send()
    try:
        eventually(
            lambda: "Notification: Sleep" in [entry.type for entry in served.env.server.admin.journal(invocation)]
        )
    finally:
        late.set()
    failed, output = served.env.attach(invocation)

    assert failed.startswith("failed: ")
    assert "did without" == output
    assert {"inner": 1} == asked
    assert 2 == script.requests


def test_cancelling_in_a_wrapped_tool_is_refused(env_factory: Serve) -> None:
    """A wrapped tool cannot cancel the run, which a replay would not do again; the error is terminal and says so."""
    script = Script(("stop", {}), "unreachable")
    ran: Counter[str] = Counter()
    agent = Agent(script.model, name="stopping")

    @agent.tool
    async def stop(ctx: RunContext[None]) -> str:
        ran["stop"] += 1
        ctx.cancel()
        return "unreachable"

    async def handler(ctx: restate.Context) -> str:
        return (await RestateAgent(agent, restate_context=ctx).run("go")).output

    with pytest.raises(InvocationFailed, match="`cancel` is not supported inside a durable step"):
        serve_handler(env_factory, "CancelWrapped", handler)()
    assert {"stop": 1} == ran


@pytest.mark.parametrize("siblings", [0, 2])
def test_cancelling_in_an_unwrapped_tool(env_factory: Serve, siblings: int) -> None:
    """An unwrapped tool can cancel the run, alone or beside others, and the handler can continue."""
    calls = [("stop", {}), *[("wait", {"number": number}) for number in range(siblings)]]
    script = Script(calls, "unreachable")
    ran: Counter[str] = Counter()
    agent = Agent(script.model, name="stopping")

    @agent.tool(metadata={"restate": False})
    async def stop(ctx: RunContext[None]) -> str:
        await run_step(lambda: ran.update(["before"]), name="before")
        ctx.cancel()
        await run_step(lambda: ran.update(["after"]), name="after")
        return "unreachable"

    @agent.tool_plain(metadata={"restate": False})
    async def wait(number: int) -> str:
        _, answer = restate_context().awakeable()
        return str(await answer)

    async def handler(ctx: restate.Context) -> str:
        try:
            return (await RestateAgent(agent, restate_context=ctx).run("go")).output
        except RunCancelled:
            return await run_step(lambda: "cancelled", name="clean up")

    assert "cancelled" == serve_handler(env_factory, f"CancelUnwrapped{siblings}", handler)()
    assert {"before": 1} == ran
    assert 1 == script.requests
