"""Conversations in the state of an object, on the real server, with handlers that run through and that replay."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import restate
from pydantic_ai import Agent, Conversation
from pydantic_ai.conversation_store import (
    ConversationConflict,
    ConversationRecord,
    ConversationStore,
    InMemoryConversationStore,
)
from pydantic_ai.exceptions import UserError
from pydantic_ai.messages import (
    BinaryContent,
    ModelMessage,
    ModelRequest,
    ModelResponse,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.tools import DeferredToolRequests
from pydantic_ai.usage import RunUsage

from restate_steps import gather, run_step
from restate_steps.agents import RestateAgent, RestateConversationStore
from tests.support import ROOT
from tests.support.harness import Env, InvocationFailed

Serve = Callable[..., Env]

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def turn(prompt: str, at: datetime = NOON) -> list[ModelMessage]:
    """A request and its response, the same on every attempt of a handler."""
    return [
        ModelRequest(parts=[UserPromptPart(prompt, timestamp=at)], timestamp=at),
        ModelResponse(parts=[TextPart(f"{prompt}!")], timestamp=at),
    ]


def texts(messages: list[ModelMessage]) -> list[str]:
    """Return the texts in messages."""
    said = [getattr(part, "content", None) for message in messages for part in message.parts]
    return [str(content) for content in said if content is not None]


async def be_replayed(ctx: restate.ObjectContext) -> None:
    """Have the handler replayed up to here, at least in the mode that replays."""
    await ctx.sleep(timedelta(milliseconds=1))


def serve_object(serve: Serve, name: str, *handlers: Callable[..., Any], **shared: Callable[..., Any]) -> Env:
    """Serve an object with exclusive handlers by the names of their functions, and shared ones by the names given."""
    service = restate.VirtualObject(name)
    for handler in handlers:
        service.handler()(handler)
    for handler_name, handler in shared.items():
        service.handler(name=handler_name, kind="shared")(handler)
    return serve(service)


# --- turns ------------------------------------------------------------------------------------------------------


def test_each_turn_is_appended(env_factory: Serve) -> None:
    """A later invocation loads what earlier ones saved, in order, and adds to it."""

    async def say(ctx: restate.ObjectContext, prompt: str) -> list[str]:
        store = RestateConversationStore(ctx)
        conversation = await store.load(ctx.key()) or Conversation(conversation_id=ctx.key())
        conversation.messages += turn(prompt)
        conversation.usage += RunUsage(requests=1)
        await store.save(conversation)
        await be_replayed(ctx)
        return [*texts(conversation.messages), str(conversation.usage.requests)]

    env = serve_object(env_factory, "Turns", say)

    assert ["a", "a!", "1"] == env.call("Turns", "say", "a", key="ann")
    assert ["b", "b!", "1"] == env.call("Turns", "say", "b", key="bob")
    assert ["a", "a!", "c", "c!", "2"] == env.call("Turns", "say", "c", key="ann")


def test_what_the_caller_has_agrees_with_the_state(env_factory: Serve) -> None:
    """Entries and revisions that save returns are those that are stored, and a conversation can be saved again."""

    async def talk(ctx: restate.ObjectContext) -> list[bool]:
        store = RestateConversationStore()
        conversation = Conversation(conversation_id="c", messages=turn("a"))
        first = await store.save(conversation)
        await be_replayed(ctx)
        conversation.messages += turn("b")
        second = await store.save(conversation)
        await be_replayed(ctx)
        loaded = await store.load("c")
        return [
            first + second == await store.load_entries("c"),
            loaded == conversation,
            [None, first[0].id, first[1].id, second[0].id] == [entry.parent_id for entry in first + second],
            [] == await store.save(conversation),
        ]

    env = serve_object(env_factory, "Agreeing", talk)

    assert [True] * 4 == env.call("Agreeing", "talk", key="k")


def test_appending_costs_what_is_appended(env_factory: Serve) -> None:
    """A turn is two writes, of its own messages and of the record, however long the conversation is."""

    async def say(ctx: restate.ObjectContext, prompt: str) -> None:
        store = RestateConversationStore(ctx)
        conversation = await store.load("c") or Conversation(conversation_id="c")
        conversation.messages += turn(prompt)
        await store.save(conversation)

    env = serve_object(env_factory, "Appending", say)
    invocations = [env.send("Appending", "say", prompt * 1000, key="k") for prompt in "abcd"]
    for invocation in invocations:
        env.attach(invocation)

    written = env.server.admin.state("Appending", "k")
    assert sorted(
        [f"conversations/entries/{invocation}.0.0" for invocation in invocations] + ["conversations/record/c"]
    ) == list(written)
    commands = [entry.type for entry in env.server.admin.journal(invocations[-1])]
    assert 2 == commands.count("Command: SetState")


def test_long_history_in_one_save(env_factory: Serve) -> None:
    """Many messages at once are kept in several pieces, and the last few are read from the last ones alone."""

    async def talk(ctx: restate.ObjectContext) -> list[Any]:
        store = RestateConversationStore(ctx)
        messages = [message for number in range(20) for message in turn(str(number))]
        await store.save(Conversation(conversation_id="c", messages=messages))
        await be_replayed(ctx)
        whole, last = await store.load("c"), await store.load("c", limit=3)
        assert whole is not None
        assert last is not None
        return [whole.messages == messages, texts(last.messages)]

    env = serve_object(env_factory, "LongHistory", talk)
    invocation = env.send("LongHistory", "talk", key="k")

    assert [True, ["18!", "19", "19!"]] == env.attach(invocation)


def test_everything_in_a_message_survives(env_factory: Serve) -> None:
    """Files, bytes and calls that wait for an approval come back as they were."""
    call = ToolCallPart("pay", {"total": 7}, tool_call_id="t1")
    answer = ToolReturnPart("pay", {"paid": [1.5, None]}, tool_call_id="t0", timestamp=NOON)
    film = BinaryContent(b"\xff\xd8", media_type="video/mp4", vendor_metadata={"fps": 5})
    messages: list[ModelMessage] = [
        ModelRequest(parts=[UserPromptPart(["look", film], timestamp=NOON), answer], timestamp=NOON),
        ModelResponse(parts=[call], timestamp=NOON, model_name="m", provider_details={"id": "x"}),
    ]
    waiting = DeferredToolRequests(approvals=[call], metadata={"t1": {"why": "much"}})

    async def talk(ctx: restate.ObjectContext) -> bool:
        store = RestateConversationStore(ctx)
        conversation = Conversation(
            conversation_id="c",
            messages=list(messages),
            usage=RunUsage(requests=2, details={"cached": 3}),
            deferred_tool_requests=waiting,
        )
        await store.save(conversation)
        await be_replayed(ctx)
        return conversation == await store.load("c")

    env = serve_object(env_factory, "RichMessages", talk)

    assert env.call("RichMessages", "talk", key="k") is True


# --- replays ----------------------------------------------------------------------------------------------------


def test_everything_that_is_made_up_is_stable(env_factory: Serve) -> None:
    """Ids, revisions and times are the same on every attempt, in two stores of one handler too."""
    attempts: list[list[Any]] = []

    async def talk(ctx: restate.ObjectContext) -> list[Any]:
        store = RestateConversationStore(ctx)
        conversation = Conversation(conversation_id="c", messages=turn("a") + turn("b"))
        entries = await store.save(conversation)
        fork = await RestateConversationStore().fork("c", at=2)
        branched = await store.branch("c", at=2, expected_revision=conversation.revision)
        await be_replayed(ctx)
        records = await store.list_conversations()
        seen: list[Any] = [entry.id for entry in entries]
        seen += [fork.conversation_id, fork.revision, conversation.revision, branched.revision]
        seen += [record.updated_at.isoformat() for record in records]
        attempts.append(seen)
        await be_replayed(ctx)
        return seen

    env = serve_object(env_factory, "Stable", talk)
    seen = env.call("Stable", "talk", key="k")

    assert len(seen) == len(set(seen))
    assert all(attempt == seen for attempt in attempts)


def test_time_of_saving(env_factory: Serve) -> None:
    """A conversation was saved when its last message was made; the time is recorded if no message tells it."""
    silent: list[ModelMessage] = [ModelRequest(parts=[UserPromptPart("a", timestamp=NOON)])]

    async def talk(ctx: restate.ObjectContext) -> list[str]:
        store = RestateConversationStore(ctx)
        await store.save(Conversation(conversation_id="told", messages=turn("a")))
        await store.save(Conversation(conversation_id="silent", messages=silent))
        await be_replayed(ctx)
        records = await store.list_conversations()
        return [record.conversation_id for record in records if record.updated_at >= NOON] + [
            record.conversation_id for record in records if record.updated_at == NOON
        ]

    env = serve_object(env_factory, "TimeOfSaving", talk)
    invocation = env.send("TimeOfSaving", "talk", key="k")

    assert ["silent", "told", "told"] == env.attach(invocation)
    steps = [entry.name for entry in env.server.admin.journal(invocation) if entry.type == "Command: Run"]
    assert ["conversation saved at"] == steps


def test_runs_of_an_agent_can_be_saved(env_factory: Serve) -> None:
    """The messages of an agent's runs, parallel tool calls included, are the same on every replay."""
    asked: Counter[str] = Counter()

    def respond(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        asked["model"] += 1
        if any(isinstance(part, ToolReturnPart) for part in messages[-1].parts):
            return ModelResponse(parts=[TextPart(f"{len(messages)} messages")])
        return ModelResponse(parts=[ToolCallPart("look", {"place": place}) for place in ("near", "far")])

    agent = Agent(FunctionModel(respond), name="keeper", instructions="Look around.")

    @agent.tool_plain
    async def look(place: str) -> str:
        return f"{place} is empty"

    async def say(ctx: restate.ObjectContext, prompt: str) -> list[Any]:
        store = RestateConversationStore(ctx)
        conversation = await store.load("c") or Conversation(conversation_id="c")
        result = await RestateAgent(agent, restate_context=ctx).run(prompt, conversation=conversation)
        await store.save(result)
        await be_replayed(ctx)
        again = await RestateAgent(agent, restate_context=ctx).run("again", conversation=result.conversation)
        entries = await store.save(again)
        await be_replayed(ctx)
        loaded = await store.load("c")
        assert loaded is not None
        return [result.output, again.output, len(entries), loaded == again.conversation]

    env = serve_object(env_factory, "AgentRuns", say)

    assert ["3 messages", "7 messages", 4, True] == env.call("AgentRuns", "say", "go", key="k")
    assert ["11 messages", "15 messages", 4, True] == env.call("AgentRuns", "say", "on", key="k")
    assert {"model": 8} == asked


# --- branches and forks -----------------------------------------------------------------------------------------


async def explore_alternatives(store: ConversationStore) -> list[Any]:
    """Branch, rewrite and fork a conversation, and tell what each way looks like."""
    seen: list[Any] = []
    conversation = Conversation(conversation_id="c", messages=turn("a") + turn("b") + turn("c"))
    entries = await store.save(conversation, scope="ann")

    branched = await store.branch("c", at=2, expected_revision=conversation.revision)
    branched.messages += turn("other b")
    await store.save(branched)
    seen.append(texts((await store.load("c") or conversation).messages))

    back = await store.branch("c", from_entry=entries[3].id, expected_revision=branched.revision)
    seen.append(texts(back.messages))

    rewritten = await store.load("c")
    assert rewritten is not None
    rewritten.messages[1] = turn("edited a")[1]
    await store.save(rewritten)
    seen.append(texts((await store.load("c") or conversation).messages))

    fork = await store.fork("c", from_entry=entries[0].id, new_conversation_id="f", scope="bob")
    fork.messages += turn("fork")[1:]
    await store.save(fork)
    seen.append(texts((await store.load("f", scope="bob") or conversation).messages))

    for record in sorted(await store.list_conversations(), key=lambda record: record.conversation_id):
        at = [number for number, entry in enumerate(entries) if entry.id == record.forked_at]
        seen.append([record.conversation_id, record.scope, record.forked_from, at, len(record.branches)])
    return seen


async def test_alternatives_are_those_of_the_store_in_memory(env_factory: Serve) -> None:
    """Branches, rewritten histories and forks are what they are in pydantic-ai's own store."""

    async def talk(ctx: restate.ObjectContext) -> list[Any]:
        seen = await explore_alternatives(RestateConversationStore(ctx))
        await be_replayed(ctx)
        return seen

    env = serve_object(env_factory, "Alternatives", talk)

    assert await explore_alternatives(InMemoryConversationStore()) == env.call("Alternatives", "talk", key="k")


def test_listing(env_factory: Serve) -> None:
    """Conversations are listed newest first, by scope, and only those of the same object."""

    async def fill(ctx: restate.ObjectContext) -> None:
        store = RestateConversationStore(ctx)
        for number, scope in enumerate(["ann", "bob", "ann"]):
            messages = turn("a", NOON + timedelta(hours=number))
            await store.save(Conversation(conversation_id=f"c{number}", messages=messages), scope=scope)
        ctx.set("something else", 1)

    async def listed(ctx: restate.ObjectSharedContext, scope: str | None) -> list[str]:
        records = await RestateConversationStore(ctx).list_conversations(scope=scope, limit=2)
        return [record.conversation_id for record in records]

    env = serve_object(env_factory, "Listing", fill, list=listed)
    env.call("Listing", "fill", key="k")

    assert ["c2", "c1"] == env.call("Listing", "list", key="k")
    assert ["c2", "c0"] == env.call("Listing", "list", "ann", key="k")
    assert [] == env.call("Listing", "list", "ann", key="other")


def test_scope_keeps_a_conversation_to_its_owner(env_factory: Serve) -> None:
    """With another scope a conversation is not there, and cannot be saved over."""

    async def talk(ctx: restate.ObjectContext) -> list[Any]:
        store = RestateConversationStore(ctx)
        conversation = Conversation(conversation_id="c", messages=turn("a"))
        await store.save(conversation, scope="ann")
        await store.delete("c", scope="bob")
        with pytest.raises(ConversationConflict):
            await store.save(conversation, scope="bob")
        await be_replayed(ctx)
        loaded = await store.load("c", scope="ann")
        return [await store.load("c", scope="bob"), texts(loaded.messages if loaded is not None else [])]

    env = serve_object(env_factory, "Scopes", talk)

    assert [None, ["a", "a!"]] == env.call("Scopes", "talk", key="k")


def test_delete_erases_what_nothing_else_reaches(env_factory: Serve) -> None:
    """Of a deleted conversation those messages stay that a fork shares, and none besides."""

    async def talk(ctx: restate.ObjectContext) -> list[str]:
        store = RestateConversationStore(ctx)
        messages = [message for word in "abcdefghi" for message in turn(word)]
        await store.save(Conversation(conversation_id="c", messages=messages))
        fork = await store.fork("c", at=3)
        await store.delete("c")
        await be_replayed(ctx)
        left = await store.load(fork.conversation_id)
        assert left is not None
        return [*texts(left.messages), str(await store.load("c"))]

    async def forget(ctx: restate.ObjectContext) -> None:
        store = RestateConversationStore(ctx)
        for record in await store.list_conversations():
            await store.delete(record.conversation_id)
        await be_replayed(ctx)

    def state() -> str:
        rows = env.server.admin.query("SELECT value_utf8 FROM state WHERE service_name = 'Deleting'")
        return " ".join(row["value_utf8"] for row in rows)

    env = serve_object(env_factory, "Deleting", talk, forget)

    assert ["a", "a!", "b", "None"] == env.call("Deleting", "talk", key="k")
    assert '"content":"b"' in state()
    assert not [text for text in ("b!", "c", "i!") if f'"content":"{text}"' in state()]
    env.call("Deleting", "forget", key="k")
    assert "" == state()


# --- the example ------------------------------------------------------------------------------------------------


def test_chat(env_factory: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example remembers what was said in a session, and shows it; another session knows nothing of it."""
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    env = env_factory(importlib.import_module("examples.chat").chat)

    assert "You said: I like tea." == env.call("Chat", "say", "I like tea.", key="ada")
    assert "You said: I like tea. What do I like?" == env.call("Chat", "say", "What do I like?", key="ada")
    assert [
        {"who": "user", "text": "I like tea."},
        {"who": "assistant", "text": "You said: I like tea."},
        {"who": "user", "text": "What do I like?"},
        {"who": "assistant", "text": "You said: I like tea. What do I like?"},
    ] == env.call("Chat", "history", key="ada")
    assert [] == env.call("Chat", "history", key="bob")


# --- conflicts and mistakes -------------------------------------------------------------------------------------


def test_conflict_can_be_caught(env_factory: Serve) -> None:
    """Saving over what was saved since is a conflict; loaded again, the conversation can be saved."""

    async def talk(ctx: restate.ObjectContext) -> list[str]:
        store = RestateConversationStore(ctx)
        await store.save(Conversation(conversation_id="c", messages=turn("a")))
        mine, theirs = await store.load("c"), await store.load("c")
        assert mine is not None
        assert theirs is not None
        theirs.messages += turn("theirs")
        await store.save(theirs)
        try:
            await store.save(mine)
        except ConversationConflict:
            again = await store.load("c")
            assert again is not None
            again.messages += turn("mine")
            await store.save(again)
        await be_replayed(ctx)
        return texts((await store.load("c") or mine).messages)

    env = serve_object(env_factory, "CaughtConflict", talk)

    assert ["a", "a!", "theirs", "theirs!", "mine", "mine!"] == env.call("CaughtConflict", "talk", key="k")


def test_branches_of_a_handler_conflict_as_well(env_factory: Serve) -> None:
    """If two branches continue the same conversation, the second to save it gets a conflict."""
    silent: list[ModelMessage] = [ModelRequest(parts=[UserPromptPart("b", timestamp=NOON)])]

    async def talk(ctx: restate.ObjectContext) -> list[str]:
        store = RestateConversationStore(ctx)
        await store.save(Conversation(conversation_id="c", messages=turn("a")))

        async def go_on() -> str:
            conversation = await store.load("c")
            assert conversation is not None
            conversation.messages += silent
            try:
                await store.save(conversation)
            except ConversationConflict:
                return "conflict"
            return "saved"

        outcomes = await gather(go_on(), go_on())
        await be_replayed(ctx)
        loaded = await store.load("c")
        return [*sorted(outcomes), *texts(loaded.messages if loaded is not None else [])]

    env = serve_object(env_factory, "BranchConflict", talk)

    assert ["conflict", "saved", "a", "a!", "b"] == env.call("BranchConflict", "talk", key="k")


def test_conflict_that_is_not_caught_ends_the_invocation(env_factory: Serve) -> None:
    """A client with an outdated revision gets status 409, and the object is free for the next one."""

    async def regenerate(ctx: restate.ObjectContext, revision: str) -> str:
        store = RestateConversationStore(ctx)
        await store.branch("c", at=0, expected_revision=revision)
        return "branched"

    async def start(ctx: restate.ObjectContext) -> str | None:
        conversation = Conversation(conversation_id="c", messages=turn("a"))
        await RestateConversationStore(ctx).save(conversation)
        return conversation.revision

    env = serve_object(env_factory, "Conflict", regenerate, start)
    revision = env.call("Conflict", "start", key="k")

    with pytest.raises(InvocationFailed, match="was saved or deleted since it was loaded") as failed:
        env.call("Conflict", "regenerate", "outdated", key="k")
    assert 409 == failed.value.status
    assert "branched" == env.call("Conflict", "regenerate", revision, key="k")


def test_record_of_a_history_that_is_gone(env_factory: Serve) -> None:
    """A record whose newest entry is not there is a conflict, and is not stored; the entry itself cannot be read."""

    async def talk(ctx: restate.ObjectContext) -> None:
        store = RestateConversationStore(ctx)
        with pytest.raises(LookupError, match="no entry 'gone'"):
            await store.read_entry("gone")
        await store.write_record(ConversationRecord(conversation_id="c", head_id="gone"), expected_revision=None)

    env = serve_object(env_factory, "GoneHistory", talk)

    with pytest.raises(InvocationFailed, match="Load it again before saving") as failed:
        env.call("GoneHistory", "talk", key="k")
    assert 409 == failed.value.status


def test_fork_into_a_conversation_that_exists(env_factory: Serve) -> None:
    """A fork does not replace another conversation, and a conversation that is not there has no forks."""

    async def talk(ctx: restate.ObjectContext) -> None:
        store = RestateConversationStore(ctx)
        await store.save(Conversation(conversation_id="c", messages=turn("a")))
        with pytest.raises(ConversationConflict):
            await store.fork("c", new_conversation_id="c")
        await store.fork("nothing")

    env = serve_object(env_factory, "Forking", talk)

    with pytest.raises(InvocationFailed, match="'nothing' is not in the store") as failed:
        env.call("Forking", "talk", key="k")
    assert 500 == failed.value.status


def test_shared_handler_reads_and_does_not_write(env_factory: Serve) -> None:
    """A shared handler loads what was saved, and an attempt to save ends it with an error that says why."""

    async def start(ctx: restate.ObjectContext) -> None:
        await RestateConversationStore(ctx).save(Conversation(conversation_id="c", messages=turn("a")))

    async def history(ctx: restate.ObjectSharedContext) -> list[str]:
        conversation = await RestateConversationStore(ctx).load("c")
        return [] if conversation is None else texts(conversation.messages)

    async def rename(ctx: restate.ObjectSharedContext) -> None:
        await RestateConversationStore(ctx).fork("c", new_conversation_id="d")

    env = serve_object(env_factory, "Sharing", start, history=history, rename=rename)

    assert [] == env.call("Sharing", "history", key="k")
    env.call("Sharing", "start", key="k")
    assert ["a", "a!"] == env.call("Sharing", "history", key="k")
    with pytest.raises(InvocationFailed, match="the handler 'rename' is shared and runs at the same time as"):
        env.call("Sharing", "rename", key="k")


def test_workflow_has_state_too(env_factory: Serve) -> None:
    """The main handler of a workflow saves, and its shared handlers load."""
    workflow = restate.Workflow("Flow")

    @workflow.main()
    async def run(ctx: restate.WorkflowContext) -> None:
        await RestateConversationStore(ctx).save(Conversation(conversation_id=ctx.key(), messages=turn("a")))

    @workflow.handler()
    async def history(ctx: restate.WorkflowSharedContext) -> list[str]:
        conversation = await RestateConversationStore(ctx).load(ctx.key())
        return [] if conversation is None else texts(conversation.messages)

    env = env_factory(workflow)
    env.call("Flow", "run", key="k")

    assert ["a", "a!"] == env.call("Flow", "history", key="k")


def test_handler_without_state_is_refused(env_factory: Serve) -> None:
    """A handler of a service does not have state to store a conversation in."""
    service = restate.Service("Stateless")

    @service.handler()
    async def talk(ctx: restate.Context) -> None:
        await RestateConversationStore().load("c")

    env = env_factory(service)

    with pytest.raises(InvocationFailed, match=r"'Stateless' is a restate\.Service"):
        env.call("Stateless", "talk")


def test_inside_a_step_is_refused(env_factory: Serve) -> None:
    """The body of a step is one entry of the journal, and cannot read the state."""

    async def talk(ctx: restate.ObjectContext) -> None:
        store = RestateConversationStore(ctx)

        async def body() -> None:
            try:
                await store.load("c")
            except RuntimeError as error:
                raise restate.TerminalError(str(error)) from error

        await run_step(body, name="load it")

    env = serve_object(env_factory, "InStep", talk)

    with pytest.raises(InvocationFailed, match="RestateConversationStore was called inside the body of step 'load it'"):
        env.call("InStep", "talk", key="k")


def test_context_of_another_handler_is_refused(env_factory: Serve) -> None:
    """A store that is kept from one invocation to the next says so."""
    kept: list[RestateConversationStore] = []

    async def talk(ctx: restate.ObjectContext) -> None:
        if not kept:
            kept.append(RestateConversationStore(ctx))
            return
        await kept[0].load("c")

    env = serve_object(env_factory, "KeptStore", talk)
    env.call("KeptStore", "talk", key="k")

    with pytest.raises(InvocationFailed, match="ctx is not the context of the running handler"):
        env.call("KeptStore", "talk", key="k")


async def test_outside_a_handler_is_refused() -> None:
    """Outside a handler the store does not work, and the error names one that works everywhere."""
    with pytest.raises(UserError, match="InMemoryConversationStore"):
        await RestateConversationStore().load("c")
