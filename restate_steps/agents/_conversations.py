"""A store for pydantic-ai conversations in the state of a virtual object.

1. State must be the same on every replay, or Restate rejects the write. pydantic-ai generates the ids of entries, the
   revisions and the times of saving. :meth:`RestateConversationStore.write_record` replaces all of them with stable
   values. Ids consist of the invocation's id and the write's number in it. The time is that of the last message, or
   else a recorded time. It changes the objects it receives, because the caller's objects have to match the stored ones.
2. A write stores its entries under new keys, several per key, and does not touch older ones. So the cost of appending
   depends on the new entries alone, and reading a history takes fewer reads than it has messages.
3. Permanent errors are terminal, unless the handler catches them; retrying a conflict would block the object.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias, TypeVar, cast

from pydantic_ai.conversation import Conversation
from pydantic_ai.conversation_store import (
    ConversationConflict,
    ConversationEntry,
    ConversationRecord,
    ConversationStore,
)
from pydantic_ai.exceptions import UserError
from restate import ObjectContext, ObjectSharedContext, TerminalError, WorkflowContext, WorkflowSharedContext

from restate_steps.codec import JsonCodec
from restate_steps.context import Invocation, current_invocation, running_step
from restate_steps.errors import ContextInStepError
from restate_steps.serdes import serde
from restate_steps.step import run_step

__all__ = ["RestateConversationStore"]

Method = TypeVar("Method", bound=Callable[..., Coroutine[Any, Any, Any]])
StateContext: TypeAlias = ObjectContext | ObjectSharedContext | WorkflowContext | WorkflowSharedContext

_RECORDS: Final = "conversations/record/"
_ENTRIES: Final = "conversations/entries/"
_TOGETHER: Final = 16
"""The number of entries of one write that share a key; part of the stored format."""

# pydantic-ai expects stored messages to include computed fields, such as the identifier of a file. An encoding error is
# retryable, so that a redeploy can fix it: a retry repeats no step here.
_CODEC: Final = JsonCodec(round_trip=False)
_RECORD_SERDE: Final = serde(ConversationRecord | None, codec=_CODEC, terminal=False)
_ENTRIES_SERDE: Final = serde(list[ConversationEntry], codec=_CODEC, terminal=False)


def _terminal_in_handler(method: Method) -> Method:
    """Make errors of the store terminal inside a handler; they keep their types for its ``except``."""

    @functools.wraps(method)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return await method(*args, **kwargs)
        except UserError as error:
            if error.__cause__ is None and current_invocation() is not None:
                status = 409 if isinstance(error, ConversationConflict) else 500
                # The SDK looks for a terminal error among the causes.
                error.__cause__ = TerminalError(str(error), status_code=status)
            raise

    return cast(Method, wrapper)


class RestateConversationStore(ConversationStore):
    """A store that keeps conversations in the state of the virtual object whose handler is running.

    Load a conversation, run an agent with it, and save the result. Each object has its own conversations and lists only
    those. Shared handlers can read them. A workflow has state too, and can be used like an object.

    A saved conversation must be the same on every replay. The messages of a :class:`RestateAgent` are. Other messages
    need fixed timestamps, and a new conversation needs an id that is not random, such as the object's key. The store
    assigns the ids of entries and the revisions, and ``fork`` generates a stable id.

    ``delete`` removes the entries that no other conversation of the object has in its history or in a branch it left.
    In a handler, an error that is not caught ends the invocation; a conflict ends it with status 409.

    Args:
        ctx: The context of the running handler, found automatically by default. If you pass it, using the store in any
            other handler is an error.

    Example:
        ```python
        from pydantic_ai import Agent, Conversation
        from pydantic_ai.models.test import TestModel

        from restate_steps.agents import RestateAgent

        agent = Agent(TestModel(), instructions="You're a helpful assistant.")
        chat = restate.VirtualObject("Chat")


        @chat.handler()
        async def say(ctx: restate.ObjectContext, prompt: str) -> str:
            store = RestateConversationStore(ctx)
            conversation = await store.load(ctx.key()) or Conversation(conversation_id=ctx.key())
            result = await RestateAgent(agent).run(prompt, conversation=conversation)
            await store.save(result)
            return result.output
        ```
    """

    def __init__(self, ctx: StateContext | None = None) -> None:
        self._ctx = ctx

    branch = _terminal_in_handler(ConversationStore.branch)
    delete = _terminal_in_handler(ConversationStore.delete)
    list_conversations = _terminal_in_handler(ConversationStore.list_conversations)
    load = _terminal_in_handler(ConversationStore.load)
    load_entries = _terminal_in_handler(ConversationStore.load_entries)
    save = _terminal_in_handler(ConversationStore.save)

    @_terminal_in_handler
    async def fork(
        self,
        conversation_id: str,
        *,
        at: int | None = None,
        from_entry: str | None = None,
        new_conversation_id: str | None = None,
        scope: str | None = None,
        source_scope: str | None = None,
    ) -> Conversation:
        """Start a new conversation from the history of a stored one, with an id that is the same on every replay.

        Args:
            conversation_id: The conversation to fork.
            at: The number of its messages that the fork keeps; all of them by default.
            from_entry: The entry to fork from instead, in the conversation's history or in a branch it left.
            new_conversation_id: The fork's id.
            scope: The fork's scope; the forked conversation's by default.
            source_scope: Only fork the conversation if it was saved with this scope.

        Returns:
            The new conversation.

        Raises:
            UserError: The conversation does not exist, or the point in it does not.
            ConversationConflict: A conversation with ``new_conversation_id`` already exists.
        """
        return await super().fork(
            conversation_id,
            at=at,
            from_entry=from_entry,
            new_conversation_id=_new_id(self._writing()) if new_conversation_id is None else new_conversation_id,
            scope=scope,
            source_scope=source_scope,
        )

    @_terminal_in_handler
    async def read_record(self, conversation_id: str) -> ConversationRecord | None:
        """Return the record of a conversation, or None if the object does not have it."""
        return await self._reading().context.get(_RECORDS + conversation_id, _RECORD_SERDE)

    @_terminal_in_handler
    async def read_records(self, *, scope: str | None = None, limit: int | None = None) -> Sequence[ConversationRecord]:
        """Return the object's records, optionally only those of one scope, newest first."""
        state = self._reading().context
        records = [await state.get(key, _RECORD_SERDE) for key in await state.state_keys() if key.startswith(_RECORDS)]
        found = [record for record in records if record is not None and scope in (None, record.scope)]
        return sorted(found, key=lambda record: record.updated_at, reverse=True)[:limit]

    @_terminal_in_handler
    async def write_record(
        self,
        record: ConversationRecord,
        *,
        new_entries: Sequence[ConversationEntry] = (),
        expected_revision: str | None,
    ) -> None:
        """Store a record and its new entries, with stable ids, a stable revision and a stable time.

        Args:
            record: The record. Its revision, time and entry ids are replaced.
            new_entries: The entries, each after its parent. Their ids are replaced.
            expected_revision: The revision to replace, or None if the record must not exist yet.

        Raises:
            ConversationConflict: Another revision is stored, or the record's newest entry is not stored.
        """
        invocation = self._writing()
        updated_at = await _time_of(new_entries)
        head, added = record.head_id, {entry.id for entry in new_entries}
        is_there = head is None or head in added or await _Entries(invocation.context).find(head) is not None
        stored = await self.read_record(record.conversation_id)
        # Do not await from here on, so that no other task of the handler can write in between.
        if not is_there or (stored.revision if stored is not None else None) != expected_revision:
            raise ConversationConflict(record.conversation_id)
        _stabilize(record, new_entries, _new_id(invocation), updated_at)
        for first in range(0, len(new_entries), _TOGETHER):
            together = list(new_entries[first : first + _TOGETHER])
            invocation.context.set(_key_of(together[0].id), together, _ENTRIES_SERDE)
        invocation.context.set(_RECORDS + record.conversation_id, record, _RECORD_SERDE)

    @_terminal_in_handler
    async def delete_record(self, conversation_id: str, *, expected_revision: str) -> None:
        """Delete a record, and the entries that no other record of the object reaches.

        Args:
            conversation_id: The conversation.
            expected_revision: The revision to delete.

        Raises:
            ConversationConflict: Another revision is stored, or no record.
        """
        state = self._writing().context
        stored = await self.read_record(conversation_id)
        if stored is None or stored.revision != expected_revision:
            raise ConversationConflict(conversation_id)
        state.clear(_RECORDS + conversation_id)
        entries = _Entries(state)
        reached: dict[str, ConversationEntry] = {}
        for record in await self.read_records():
            for entry_id in (record.head_id, *record.branches):
                while entry_id is not None and entry_id not in reached:
                    reached[entry_id] = await entries.read(entry_id)
                    entry_id = reached[entry_id].parent_id
        for key in await state.state_keys():
            if key.startswith(_ENTRIES):
                together = await entries.under(key)
                if kept := [entry for entry in together if entry.id in reached]:
                    if len(kept) < len(together):
                        state.set(key, kept, _ENTRIES_SERDE)
                else:
                    state.clear(key)

    @_terminal_in_handler
    async def read_entry(self, entry_id: str) -> ConversationEntry:
        """Return an entry by its id.

        Raises:
            LookupError: The object has no entry with this id.
        """
        return await _Entries(self._reading().context).read(entry_id)

    @_terminal_in_handler
    async def read_history(self, head_id: str | None, *, limit: int | None = None) -> list[ConversationEntry]:
        """Return the history that ends with an entry, oldest first.

        Args:
            head_id: The id of the last entry; None returns an empty history.
            limit: The maximum number of entries, counted from the end.

        Raises:
            LookupError: An entry of the history is missing.
        """
        entries = _Entries(self._reading().context)
        history: list[ConversationEntry] = []
        while head_id is not None and (limit is None or len(history) < limit):
            history.append(await entries.read(head_id))
            head_id = history[-1].parent_id
        return history[::-1]

    def _reading(self) -> Invocation:
        if (step := running_step.get()) is not None:
            raise ContextInStepError("RestateConversationStore", step.name)
        invocation = current_invocation()
        if invocation is None:
            raise UserError(
                "RestateConversationStore stores conversations in the state of the virtual object whose handler is "
                "running, and no handler is running. Use it inside a handler; elsewhere, for example in a test without "
                "Restate, use pydantic_ai.conversation_store.InMemoryConversationStore."
            )
        if self._ctx is not None and self._ctx is not invocation.context:
            raise UserError(
                "ctx is not the context of the running handler, so its state cannot be used here. Create the "
                "RestateConversationStore inside the handler, with the handler's own context, or omit ctx."
            )
        if invocation.context.handler.kind is None:
            raise UserError(
                "RestateConversationStore stores conversations in the state of a virtual object, but "
                f"{invocation.context.handler.service_tag.name!r} is a restate.Service, which has no state. Make it a "
                "restate.VirtualObject, keyed by session or user for example."
            )
        return invocation

    def _writing(self) -> Invocation:
        invocation = self._reading()
        if invocation.context.handler.kind == "shared":
            raise UserError(
                f"the handler {invocation.context.handler.name!r} is shared and runs at the same time as others, so it "
                "can read conversations but cannot save or delete them. Register it without kind='shared', or save in "
                "another handler."
            )
        return invocation


class _Entries:
    """A reader of entries that reads each state key only once."""

    def __init__(self, state: ObjectContext) -> None:
        self._state = state
        self._read: dict[str, list[ConversationEntry]] = {}

    async def under(self, key: str) -> list[ConversationEntry]:
        if key not in self._read:
            self._read[key] = await self._state.get(key, _ENTRIES_SERDE) or []
        return self._read[key]

    async def find(self, entry_id: str) -> ConversationEntry | None:
        together = await self.under(_key_of(entry_id))
        return next((entry for entry in together if entry.id == entry_id), None)

    async def read(self, entry_id: str) -> ConversationEntry:
        if (entry := await self.find(entry_id)) is None:
            raise LookupError(f"the state of this object has no entry {entry_id!r}")
        return entry


def _new_id(invocation: Invocation) -> str:
    return f"{invocation.id}.{invocation.number('conversation')}"


def _key_of(entry_id: str) -> str:
    """Return the state key of an entry, which it shares with its neighbours from the same write."""
    write, _, number = entry_id.rpartition(".")
    return f"{_ENTRIES}{write}.{int(number) // _TOGETHER if number.isdecimal() else number}"


def _stabilize(
    record: ConversationRecord, entries: Sequence[ConversationEntry], write: str, updated_at: datetime
) -> None:
    stable = {entry.id: f"{write}.{number}" for number, entry in enumerate(entries)}
    for entry in entries:
        # Entries are frozen, but these were created for this write, and no caller has seen their ids yet.
        object.__setattr__(entry, "id", stable[entry.id])
        object.__setattr__(entry, "parent_id", stable.get(entry.parent_id or "", entry.parent_id))
    record.head_id = stable.get(record.head_id or "", record.head_id)
    record.branches = [stable.get(tip, tip) for tip in record.branches]
    record.revision = write
    record.updated_at = updated_at


async def _time_of(entries: Sequence[ConversationEntry]) -> datetime:
    """Return the timestamp of the last message that has one, or the current time, recorded as a step."""
    for entry in reversed(entries):
        if entry.message.timestamp is not None and entry.message.timestamp.tzinfo is not None:
            return entry.message.timestamp
    return await run_step(_now, name="conversation saved at")


async def _now() -> datetime:
    return datetime.now(UTC)
