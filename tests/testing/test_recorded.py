"""Recorded journals: what is kept, what a replay compares, and how a difference reads."""

from __future__ import annotations

import asyncio
import inspect
import json
import subprocess
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import restate
from pydantic import BaseModel

import restate_steps
from restate_steps import durable_step, gather
from restate_steps._protocol.types import MessageType
from restate_steps._protocol.wire import Frame, decode, make
from restate_steps.cli import main
from restate_steps.errors import ServerError
from restate_steps.server import AppServer, RestateServer
from restate_steps.testing import (
    Journal,
    NotReplaySafeError,
    RecordedJournal,
    ReplayDifferenceError,
    SimulationError,
    export_journal,
    load_journals,
    record,
    replay,
    simulate,
)
from restate_steps.testing._recording.attempt import _NO_COMMAND
from restate_steps.testing._recording.difference import _FRAMES
from restate_steps.testing._recording.recorded import as_recorded
from tests.support.harness import Env, Harness, eventually

# The compiled half of the SDK comes without type information.
COMMANDS = sorted(n for n in dir(import_module("restate._internal").PyVM) if n.startswith("sys_") or "attach" in n)

Handler = Callable[[restate.Context, int], Awaitable[Any]]
App = Any


class Answer(BaseModel):
    a: int
    b: int


class Order(BaseModel):
    id: str


class Receipt(BaseModel):
    paid: int


@durable_step(name="{tag}")
async def step(tag: str) -> str:
    return tag.upper()


def shop(handler: Handler, name: str = "checkout", service: str = "Shop") -> App:
    """An application whose only handler is this one, which is called the same whatever its function is called."""
    made = restate.Service(service)
    made.handler(name)(handler)
    return restate.app([made])


def ran(handler: Handler, *, version: int = 6) -> RecordedJournal:
    """The journal of a run to the end."""
    with simulate(shop(handler), version=version) as sim:
        return as_recorded(asyncio.run(sim.call("Shop/checkout", 1)))


def in_flight(handler: Handler) -> RecordedJournal:
    """The journal of a run that goes as far as it can without anybody's help."""
    with simulate(shop(handler)) as sim:
        return as_recorded(asyncio.run(sim.send("Shop/checkout", 1)))


def differs(journal: RecordedJournal, handler: Handler) -> ReplayDifferenceError:
    with pytest.raises(ReplayDifferenceError) as caught:
        replay(journal, shop(handler))
    return caught.value


async def recorded(ctx: restate.Context, value: int) -> str:
    first = await step("reserve")
    second, third = await gather(step("charge"), step("mail"))
    return first + second + third


class TestFile:
    """What is kept."""

    def test_one_entry_a_line(self, tmp_path: Path) -> None:
        """A file has a head, and then a line for each entry, with values as JSON."""

        async def handler(ctx: restate.Context, value: int) -> dict[str, int]:
            await step("a")
            return {"b": value}

        journal = record(ran(handler), tmp_path / "some" / "where.json")
        text = (tmp_path / "some" / "where.json").read_text()

        head, entries = text.split('  "entries": [\n')
        assert {"format": 1, "protocol": 6, "target": {"service": "Shop", "handler": "checkout"}}.items() <= {
            **json.loads(head + '"entries": []}')
        }.items()
        assert (
            '    {"type": "INPUT", "value": {"json": 1}},\n'
            '    {"type": "RUN", "completion_id": 1, "name": "a"},\n'
            '    {"type": "RUN_COMPLETION", "completion_id": 1, "value": {"json": "A"}},\n'
            '    {"type": "OUTPUT", "value": {"json": {"b": 1}, "style": "spaced"}}\n'
            "  ]\n}\n"
        ) == entries
        assert str(tmp_path / "some" / "where.json") == str(journal) == journal.name

    def test_says_what_made_it(self) -> None:
        """Whoever looks at an old file sees which versions it is from."""
        assert {"restate_sdk", "restate_steps", "server"} == ran(recorded).made_by.keys()
        assert "simulator" == ran(recorded).made_by["server"]

    @pytest.mark.parametrize(
        ("value", "kept"),
        [
            (b'{"a":[1,"\xc3\xbc"]}', {"json": {"a": [1, "ü"]}}),
            (b'{"a": [1, "\\u00fc"]}', {"json": {"a": [1, "ü"]}, "style": "spaced"}),
            (b'{ "a":1}', '{ "a":1}'),
            (b'{"a":1,"a":1}', '{"a":1,"a":1}'),
            (b"1.10", "1.10"),
            (b"NaN", "NaN"),
            (b'"\\ud800"', '"\\ud800"'),
            (b"no JSON", "no JSON"),
            (b"\xff\x00", {"base64": "/wA="}),
            (b"null", {"json": None}),
            (b"", ""),
            (b'{"base64":"/wA="}', {"json": {"base64": "/wA="}}),
            (b'{"json":1}', {"json": {"json": 1}}),
        ],
    )
    def test_bytes_come_back_unchanged(self, value: bytes, kept: object, tmp_path: Path) -> None:
        """A replay compares bytes, so the same bytes come out of a file, however they are shown in it."""
        frames = [
            make(MessageType.INPUT, value={"content": value}, headers=[{"key": "k", "value": "v"}]),
            make(
                MessageType.CALL,
                service="S",
                handler="h",
                parameter=value,
                completion_id=2,
                invocation_id_completion_id=1,
            ),
            make(MessageType.SET_STATE, key=b"value", value={"content": value}),
            make(MessageType.GET_EAGER_STATE_KEYS, value={"keys": [b"a", b"b"]}),
        ]
        journal = record(Journal(frames, ran(recorded).origin), tmp_path / "j.json")

        assert [decode(frame) for frame in frames] == [decode(frame) for frame in journal.frames]
        entry = json.loads((tmp_path / "j.json").read_text())["entries"][0]
        assert kept == entry["value"]

    def test_has_no_secrets_of_clients(self, tmp_path: Path) -> None:
        """What lets a client in is not written to a file that goes into a repository."""
        with simulate(shop(recorded)) as sim:
            headers = {"Authorization": "Bearer 1", "Cookie": "a=b", "x-reason": "test"}
            result = asyncio.run(sim.call("Shop/checkout", 1, headers=headers))
        record(result, tmp_path / "j.json")

        text = (tmp_path / "j.json").read_text()
        assert (False, False, True) == ("Bearer 1" in text, "a=b" in text, "test" in text)

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("no JSON", "is not a recorded journal: JSONDecodeError"),
            ("{}", "is not a recorded journal: KeyError: 'format'"),
            ("[]", "is not a recorded journal: TypeError"),
            ('{"format": 2}', "has the format 2, but this version of restate-steps reads 1"),
        ],
    )
    def test_what_is_no_journal_is_refused(self, text: str, said: str, tmp_path: Path) -> None:
        """A file of something else is an error that names it."""
        path = tmp_path / "other.json"
        path.write_text(text)

        with pytest.raises(SimulationError, match=rf"other\.json {said}"):
            RecordedJournal.load(path)

    def test_no_file(self) -> None:
        """A file that is not there is an error, and no empty journal."""
        with pytest.raises(SimulationError, match=r"nowhere\.json cannot be read"):
            RecordedJournal.load("nowhere.json")

    def test_a_part_of_a_journal_is_refused(self) -> None:
        """Without its input a run cannot begin."""
        text = ran(recorded).to_text().replace('    {"type": "INPUT", "value": {"json": 1}},\n', "")

        with pytest.raises(SimulationError, match="not a complete journal"):
            RecordedJournal.from_text(text)

    def test_a_journal_of_nobody_is_refused(self, tmp_path: Path) -> None:
        """A journal alone does not say which handler it is from."""
        with pytest.raises(SimulationError, match="does not say which handler it is from"):
            record(Journal([]), tmp_path / "j.json")


class TestSameWay:
    """What a replay lets pass."""

    @pytest.mark.parametrize("version", [6, 7])
    def test_the_same_code(self, version: int) -> None:
        """The code that has recorded a journal can replay it."""
        replay(ran(recorded, version=version), shop(recorded))

    def test_every_beginning_of_a_journal(self) -> None:
        """A run in flight can be anywhere; none of the places is a difference."""
        journal = ran(recorded)

        for end in range(1, len(journal.frames)):
            replay(RecordedJournal(journal.origin, journal.frames[:end]), shop(recorded))

    def test_no_body_runs(self) -> None:
        """A replay does nothing to the world, even where a step of the journal has no result yet."""
        bodies: list[str] = []

        @durable_step(name="effect {tag}")
        async def effect(tag: str) -> None:
            bodies.append(tag)

        async def handler(ctx: restate.Context, value: int) -> None:
            await gather(effect("a"), effect("b"))
            await effect("c")

        journal = ran(handler)
        bodies.clear()
        for end in range(1, len(journal.frames) + 1):
            replay(RecordedJournal(journal.origin, journal.frames[:end]), shop(handler))

        assert [] == bodies

    def test_what_comes_after_the_wait_may_change(self) -> None:
        """A run in flight has not been there yet."""

        async def before(ctx: restate.Context, value: int) -> str:
            await step("ask")
            _, answer = ctx.awakeable(type_hint=str)
            return await answer

        async def after(ctx: restate.Context, value: int) -> int:
            await step("ask")
            _, answer = ctx.awakeable(type_hint=str)
            return len(await answer) + len(await step("new"))

        replay(in_flight(before), shop(after))

    def test_a_body_may_change(self) -> None:
        """What a step does is not in the journal."""

        @durable_step(name="reserve")
        async def reserve() -> str:
            raise AssertionError("it does not run")

        async def before(ctx: restate.Context, value: int) -> str:
            return await step("reserve")

        async def after(ctx: restate.Context, value: int) -> str:
            return await reserve()

        replay(ran(before), shop(after))

    def test_how_long_a_sleep_lasts_may_change(self) -> None:
        """The end of a sleep is recorded; a replay does not ask for another one."""

        async def before(ctx: restate.Context, value: int) -> None:
            await ctx.sleep(timedelta(days=1))

        async def after(ctx: restate.Context, value: int) -> None:
            await ctx.sleep(timedelta(days=2))

        replay(ran(before), shop(after))

    def test_how_an_answer_is_spelled_may_change(self) -> None:
        """Nobody compares the bytes of an answer but whoever reads it, as JSON."""

        async def before(ctx: restate.Context, value: int) -> dict[str, int]:
            return {"b": 2, "a": 1}

        async def after(ctx: restate.Context, value: int) -> Answer:
            return Answer(a=1, b=2)

        replay(ran(before), shop(after))

    def test_the_way_may_depend_on_the_random_seed(self) -> None:
        """Random numbers and the ids of awakeables are the ones that the run had."""

        async def handler(ctx: restate.Context, value: int) -> list[str]:
            awakeable, _ = ctx.awakeable()
            ctx.resolve_awakeable(awakeable, None)
            return [await step(f"{ctx.random().random()}"), await step(f"{ctx.uuid()}")]

        replay(ran(handler), shop(handler))

    def test_state(self) -> None:
        """What a handler has read of its state is in the journal, so a replay needs no state."""
        counter = restate.VirtualObject("Counter")

        @counter.handler()
        async def add(ctx: restate.ObjectContext, by: int) -> list[Any]:
            before = await ctx.get("count", type_hint=int)
            ctx.set("count", (before or 0) + by)
            await step("added")
            return [before, await ctx.get("count", type_hint=int), await ctx.state_keys()]

        app = restate.app([counter])
        with simulate(app) as sim:
            asyncio.run(sim.call(add, 1, key="k"))
            result = asyncio.run(sim.call(add, 2, key="k"))

        assert [1, 3, ["count"]] == result.value
        replay(result, app)

    def test_inside_a_running_loop(self) -> None:
        """A test may be a coroutine."""
        journal = ran(recorded)

        async def test() -> None:
            replay(journal, shop(recorded))

        asyncio.run(test())

    @pytest.mark.parametrize("made", [restate.app, restate_steps.app], ids=["restate", "restate_steps"])
    @pytest.mark.parametrize("start", [asyncio.to_thread, anyio.to_thread.run_sync], ids=["asyncio", "anyio"])
    def test_threads_outside_of_steps(self, start: Any, made: Callable[[list[Any]], App]) -> None:
        """They are waited for, although nothing else happens meanwhile."""
        service = restate.Service("Threads")

        def slowly() -> str:
            time.sleep(0.05)
            return "thought"

        @service.handler()
        async def think(ctx: restate.Context) -> str:
            thought: str = await start(slowly)
            return thought + await ctx.run_typed("step", lambda: "!") + await start(slowly)

        app = made([service])
        with simulate(app) as sim:
            replay(as_recorded(asyncio.run(sim.call(think))), app)


class TestOtherWay:
    """How a difference reads."""

    def test_renamed(self) -> None:
        """A step with another name: both names, the entries around, the line of the code, and what to do."""

        async def handler(ctx: restate.Context, value: int) -> str:
            await step("book")
            return "never"

        error = differs(ran(recorded), handler)

        assert (1, "run reserve", "run book") == (error.entry, error.recorded, error.today)
        text = str(error)
        assert "Shop/checkout: today's code diverges from the journal" in text
        assert "at entry 1 the journal has  run reserve\n  and today's code issues     run book" in text
        assert "      0  input 1\n  →   1  run reserve  → 1\n      2  run completion 1 = 'RESERVE'" in text
        assert "test_recorded.py:" in text
        assert 'await step("book")' in text
        assert "keep its old name in journals: @durable_step(name='reserve')" in text
        assert "the error 570" in text
        assert "register it as a new deployment" in text

    def test_renamed_in_a_branch(self) -> None:
        """A branch that is nothing but a step: the line is that of the wait for it."""

        async def handler(ctx: restate.Context, value: int) -> str:
            await step("reserve")
            return "".join(await gather(step("charge"), step("post")))

        error = differs(ran(recorded), handler)

        assert (4, "run mail", "run post") == (error.entry, error.recorded, error.today)
        assert 'gather(step("charge"), step("post"))' in str(error)

    def test_another_kind(self) -> None:
        """A sleep where a step was."""

        async def handler(ctx: restate.Context, value: int) -> str:
            await ctx.sleep(timedelta(seconds=1), name="nap")
            return await recorded(ctx, value)

        error = differs(ran(recorded), handler)

        assert ("run reserve", "sleep nap") == (error.recorded, error.today)
        assert "issues a new command here, or the same commands in another order" in str(error)

    def test_left_out(self) -> None:
        """What is no longer asked for is named, if the journal goes on behind it."""

        async def handler(ctx: restate.Context, value: int) -> str:
            return "".join(await gather(step("charge"), step("mail")))

        error = differs(ran(recorded), handler)

        assert (1, "run charge") == (error.entry, error.today)
        assert "The journal has it at entry 3. So today's code no longer issues the entries 1 to 2" in str(error)

    def test_argument(self) -> None:
        """A call with another argument: both arguments."""
        other = restate.Service("Bank")

        @other.handler()
        async def pay(ctx: restate.Context, amount: dict[str, int]) -> None: ...

        def app(amount: int, idempotency_key: str | None) -> App:
            async def handler(ctx: restate.Context, value: int) -> None:
                await ctx.service_call(pay, {"amount": amount}, idempotency_key=idempotency_key)

            service = restate.Service("Shop")
            service.handler("checkout")(handler)
            return restate.app([service, other])

        with simulate(app(1, None)) as sim:
            result = asyncio.run(sim.call("Shop/checkout", 1))
        with pytest.raises(ReplayDifferenceError) as caught:
            replay(result, app(2, "k"))

        text = str(caught.value)
        assert "at entry 1 the journal has  call Bank/pay" in text
        assert '  parameter recorded  {"amount": 1}\n            today     {"amount": 2}' in text
        assert "  idempotency_key recorded  nothing\n                  today     k" in text

    def test_state(self) -> None:
        """Another value of the state: both values."""

        def app(value: int) -> App:
            counter = restate.VirtualObject("Counter")

            @counter.handler()
            async def put(ctx: restate.ObjectContext) -> None:
                ctx.set("count", value)

            return restate.app([counter])

        with simulate(app(1)) as sim:
            result = asyncio.run(sim.call("Counter/put", key="k"))
        with pytest.raises(ReplayDifferenceError, match=r"(?s)set state count.*value recorded  1\n +today     2"):
            replay(result, app(2))

    def test_ends_too_early(self) -> None:
        """A handler that returns before it has asked for all of it."""

        async def handler(ctx: restate.Context, value: int) -> str:
            return await step("reserve")

        error = differs(ran(recorded), handler)

        assert (3, "run charge", 'the answer "RESERVE"') == (error.entry, error.recorded, error.today)
        assert "ends here, and never issues this entry and those after it" in str(error)

    def test_waits_too_early(self) -> None:
        """A wait that the recorded run did not have at this point."""

        async def before(ctx: restate.Context, value: int) -> str:
            _, answer = ctx.awakeable(type_hint=str)
            await step("charge")
            return await answer

        async def after(ctx: restate.Context, value: int) -> str:
            _, answer = ctx.awakeable(type_hint=str)
            text = await answer
            await step("charge")
            return text

        error = differs(in_flight(before), after)

        assert (1, "run charge") == (error.entry, error.recorded)
        assert "a wait for something that the journal does not have" == error.today
        assert "today's code waits before it issues that" in str(error).lower()
        assert "text = await answer" in str(error)

    def test_goes_on_after_the_end(self) -> None:
        """A run that had ended asks for more today; that harms nobody in flight, and is said to."""

        async def handler(ctx: restate.Context, value: int) -> str:
            text = await recorded(ctx, value)
            await step("audit")
            return text

        error = differs(ran(recorded), handler)

        assert (7, "run audit") == (error.entry, error.today)
        assert "continues where the recorded run ended" in str(error)
        assert 'await step("audit")' in str(error)
        assert "570" not in str(error)

    def test_waits_after_the_end(self) -> None:
        """A run that had ended waits today."""

        async def handler(ctx: restate.Context, value: int) -> str:
            await recorded(ctx, value)
            _, answer = ctx.awakeable(type_hint=str)
            return await answer

        error = differs(ran(recorded), handler)

        assert "a wait" == error.today
        assert "waits where the recorded run ended" in str(error)
        assert "return await answer" in str(error)

    def test_another_answer(self) -> None:
        """Everything is asked for as before, and the answer is another."""

        async def handler(ctx: restate.Context, value: int) -> str:
            return (await recorded(ctx, value)).lower()

        error = differs(ran(recorded), handler)

        assert ('"RESERVECHARGEMAIL"', '"reservechargemail"') == (error.recorded, error.today)
        assert "today's code answers differently" in str(error)
        assert "runs in flight can continue" in str(error)

    def test_a_failure_for_an_answer(self) -> None:
        """A handler that ends with an error where it ended with a value."""

        async def handler(ctx: restate.Context, value: int) -> str:
            await recorded(ctx, value)
            raise restate.TerminalError("sold out", 409)

        assert "failure 409: sold out" == differs(ran(recorded), handler).today

    def test_an_argument_that_does_not_fit(self) -> None:
        """The input is recorded too, and today's handler cannot read it."""

        async def handler(ctx: restate.Context, order: Order) -> str:
            return await recorded(ctx, 1)

        error = differs(ran(recorded), handler)  # type: ignore[arg-type]

        assert "run reserve" == error.recorded
        assert "failure 500: Unable to parse an input argument" in error.today

    def test_a_result_that_does_not_fit(self) -> None:
        """A recorded result that today's type does not take: the error, the line, the entry, and what to do."""

        @durable_step(name="reserve")
        async def reserve() -> Receipt:
            raise AssertionError("it does not run")

        async def handler(ctx: restate.Context, value: int) -> str:
            return str(await reserve())

        error = differs(ran(recorded), handler)

        text = str(error)
        assert "today's code fails with\n\n  DecodeError" in text
        assert "the journaled result of step 'reserve' does not fit" in text
        assert "return str(await reserve())" in text
        assert "      2  run completion 1 = 'RESERVE'\n\n" in text
        assert "with a default for a new field" in text

    def test_an_exception(self) -> None:
        """An exception is shown with the lines of the user's code only."""

        async def handler(ctx: restate.Context, value: int) -> str:
            raise ValueError(await step("reserve"))

        text = str(differs(ran(recorded), handler))

        assert "ValueError('RESERVE')" in text
        assert 'raise ValueError(await step("reserve"))' in text
        assert "restate/server_context.py" not in text

    def test_an_exception_in_flight(self) -> None:
        """A run that fails again and again is a journal too; a replay shows whether today's code mends it."""

        async def broken(ctx: restate.Context, value: int) -> int:
            return len(await step("reserve")) // (value - 1)

        async def mended(ctx: restate.Context, value: int) -> int:
            return len(await step("reserve"))

        with simulate(shop(broken)) as sim:
            journal = as_recorded(asyncio.run(sim.send("Shop/checkout", 1)))

        assert "ZeroDivisionError" in str(differs(journal, broken))
        replay(journal, shop(mended))

    def test_hangs(self) -> None:
        """A wait for something of asyncio's, which nobody will do."""

        async def handler(ctx: restate.Context, value: int) -> None:
            await step("reserve")
            await asyncio.Event().wait()

        async def before(ctx: restate.Context, value: int) -> None:
            await step("reserve")
            await step("charge")

        for journal in (in_flight(before), ran(before)):
            error = differs(RecordedJournal(journal.origin, journal.frames[:3]), handler)
            assert "waits for something outside Restate" in str(error)
            assert "await asyncio.Event().wait()" in str(error)

    def test_no_such_handler(self) -> None:
        """A handler that is gone: which there are."""
        with pytest.raises(ReplayDifferenceError, match=r"no handler Shop/checkout today, only Shop/pay") as caught:
            replay(ran(recorded), shop(recorded, "pay"))

        assert "Restore the handler under its old name" in str(caught.value)

    def test_no_such_service(self) -> None:
        """A service that is gone: which there are."""
        with pytest.raises(ReplayDifferenceError, match=r"no handler Shop/checkout today, only Store"):
            replay(ran(recorded), shop(recorded, service="Store"))

    def test_no_key(self) -> None:
        """A service that has become an object."""
        thing = restate.VirtualObject("Shop")

        @thing.handler()
        async def checkout(ctx: restate.ObjectContext, value: int) -> None: ...

        with pytest.raises(ReplayDifferenceError, match=r"Shop needs a key today"):
            replay(ran(recorded), restate.app([thing]))

    def test_random_seed_that_is_not_known(self) -> None:
        """Without the seed a difference may be none, and the message says so."""

        async def handler(ctx: restate.Context, value: int) -> str:
            return await step(f"{ctx.random().random()}")

        known = ran(handler)
        text = known.to_text().replace(f'"random_seed": {known.origin.random_seed}', '"random_seed": null')

        assert "The random seed of this run is not known" in str(differs(RecordedJournal.from_text(text), handler))

    @pytest.mark.parametrize("operation", COMMANDS)
    def test_every_command_can_be_told(self, operation: str) -> None:
        """A newer SDK may have commands that a message could not name."""
        assert (operation in _FRAMES) != (operation in _NO_COMMAND)


class TestMany:
    """Several journals at once."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        async def other(ctx: restate.Context, value: int) -> str:
            return await step("other")

        record(ran(recorded), tmp_path / "b.json")
        record(ran(other), tmp_path / "a.json")
        record(ran(other), tmp_path / "old" / "c.json")
        return tmp_path

    def test_one_summary(self, folder: Path) -> None:
        """All differences are in one message, which begins with a list of the files."""
        with pytest.raises(NotReplaySafeError) as caught:
            replay(folder, shop(recorded))

        text = str(caught.value)
        assert text.startswith(
            "2 of 3 journals cannot be replayed with today's code:\n"
            f"  {folder / 'a.json'}\n  {folder / 'old' / 'c.json'}\n\n"
        )
        assert 2 == text.count("at entry 1 the journal has  run other")

    def test_pattern(self, folder: Path) -> None:
        """A pattern, and a list of what could be given alone."""
        replay(str(folder / "b*.json"), shop(recorded))
        replay([folder / "b.json", ran(recorded), ran(recorded).journal], shop(recorded))
        with pytest.raises(NotReplaySafeError, match="1 of 2 journals"):
            replay(f"{folder}/*.json", shop(recorded))

    def test_one_test_each(self, folder: Path) -> None:
        """What a parametrized test takes: sorted, and named by path."""
        assert ["a.json", "b.json", "old/c.json"] == [
            str(each).removeprefix(f"{folder}/") for each in load_journals(folder)
        ]

    @pytest.mark.parametrize("journals", ["", "*.json"])
    def test_nothing_is_an_error(self, journals: str, tmp_path: Path) -> None:
        """A test that replays nothing would pass for ever."""
        with pytest.raises(SimulationError, match="there is no recorded journal at"):
            replay(str(tmp_path / journals), shop(recorded))
        with pytest.raises(SimulationError, match="no journal was passed"):
            replay([], shop(recorded))


# --- real servers -----------------------------------------------------------------------------------------------

kept = restate.Service("KeptOnServer")
broken = True


@kept.handler()
async def completes(ctx: restate.Context, value: int) -> list[Any]:
    first, second = await gather(step("a"), step("b"))
    await ctx.sleep(timedelta(milliseconds=5))
    await step(f"{ctx.random().random()}")
    awakeable, answer = ctx.awakeable(type_hint=int)
    ctx.resolve_awakeable(awakeable, value)
    return [first, second, str(ctx.uuid()), await answer]


@kept.handler()
async def waits(ctx: restate.Context, value: int) -> int:
    await step("before")
    _, answer = ctx.awakeable(type_hint=int)
    return await answer + value


@kept.handler()
async def fails(ctx: restate.Context, value: int) -> int:
    await step("before")
    if broken:
        raise ValueError("not yet")
    return value


@kept.handler(journal_retention=timedelta(0))
async def forgets(ctx: restate.Context, value: int) -> int:
    return value


everything = restate.Workflow("EverythingOnServer")


@everything.main()
async def commands(ctx: restate.WorkflowContext, value: int) -> list[Any]:
    ctx.set("value", value)
    ctx.set("other", "x")
    ctx.clear("other")
    found = [await ctx.get("value"), await ctx.get("other"), await ctx.state_keys()]
    called = ctx.service_call(completes, value, idempotency_key="called")
    ctx.service_send(completes, value)
    found += [await called]
    await ctx.sleep(timedelta(milliseconds=1), name="nap")
    await ctx.promise("done").resolve(value)
    found += [await ctx.promise("done").value(), await ctx.promise("done").peek()]
    with suppress(restate.TerminalError):
        await ctx.run_typed("refuses", refuses)
    await step("last")
    awakeable, answer = ctx.awakeable(type_hint=int)
    ctx.reject_awakeable(awakeable, "never")
    with suppress(restate.TerminalError):
        await answer
    ctx.resolve_signal(ctx.request().id, "go", value)
    return [*found, await ctx.signal("go", type_hint=int)]


def refuses() -> None:
    raise restate.TerminalError("no", status_code=418)


kept_app = restate.app([kept, everything])


def status(env: Env, invocation_id: str) -> str:
    return str(env.server.admin.invocation(invocation_id)["status"])


def has(env: Env, invocation_id: str, entries: int) -> bool:
    return len(env.server.admin.journal(invocation_id)) >= entries


class TestExport:
    """Journals of real servers."""

    @pytest.fixture
    def env(self, harness: Harness) -> Iterator[Env]:
        with harness.serve(kept_app) as env:
            yield env

    def test_completed(self, env: Env, tmp_path: Path) -> None:
        """A completed run, with the random seed worked out from its id."""
        invocation_id = env.send("KeptOnServer", "completes", 4, idempotency_key="once")
        answer = env.attach(invocation_id)

        journal = record(export_journal(env.server, invocation_id), tmp_path / "j.json")

        assert (True, "KeptOnServer/completes", "once") == (
            journal.ended,
            journal.target,
            journal.origin.idempotency_key,
        )
        assert answer == journal.journal[-1].value
        assert env.server.admin.version()["version"] == journal.made_by["server"]
        replay(journal, kept_app)

    def test_entries_are_those_of_the_server(self, env: Env) -> None:
        """Every kind of entry, with its name, its value or failure, and whether it has one."""
        key = uuid.uuid4().hex
        invocation_id = env.send("EverythingOnServer", "commands", 4, key=key)
        env.attach(invocation_id)

        assert env.server.admin.journal(invocation_id) == export_journal(env.server, invocation_id).journal.entries

    def test_in_flight(self, env: Env) -> None:
        """A run that waits, running or suspended."""
        invocation_id = env.send("KeptOnServer", "waits", 4)
        eventually(lambda: has(env, invocation_id, 3))

        journal = export_journal(env.server, invocation_id)

        assert (False, ["before"]) == (journal.ended, journal.journal.names)
        replay(journal, kept_app)

    def test_failing(self, env: Env, monkeypatch: pytest.MonkeyPatch) -> None:
        """A run that is tried again and again; a replay shows whether a change mends it."""
        invocation_id = env.send("KeptOnServer", "fails", 4)
        eventually(lambda: status(env, invocation_id) == "backing-off")

        journal = export_journal(env.server, invocation_id)

        with pytest.raises(ReplayDifferenceError, match="not yet"):
            replay(journal, kept_app)
        monkeypatch.setattr(sys.modules[__name__], "broken", False)
        replay(journal, kept_app)

    def test_no_journal(self, env: Env) -> None:
        """A journal that is not kept, and an invocation that is not known."""
        invocation_id = env.send("KeptOnServer", "forgets", 4, idempotency_key="forgets")
        env.attach(invocation_id)
        with pytest.raises(ServerError, match=r"no journal of the invocation .* which is completed.*journal_retention"):
            export_journal(env.server, invocation_id)
        with pytest.raises(ServerError, match="does not know the invocation"):
            export_journal(env.server, "inv_1hE48kUaAOCi3acv1vMrexTV9iUyzGaabq")

    def test_command_line(self, env: Env, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """`journal export` writes a file, or shows it."""
        invocation_id = env.send("KeptOnServer", "waits", 4)
        eventually(lambda: has(env, invocation_id, 3))
        path = tmp_path / "j.json"

        assert 0 == main(["journal", "export", invocation_id, "--admin", env.server.admin_url, "-o", str(path)])
        said = capsys.readouterr().out
        assert f"wrote the journal of KeptOnServer/waits (in flight, 3 entries) to {path}\n" == said
        assert 0 == main(["journal", "export", invocation_id, "--admin", env.server.admin_url])
        assert path.read_text() == capsys.readouterr().out
        assert 1 == main(["journal", "export", "inv_1nobody", "--admin", env.server.admin_url])
        assert "error: " in capsys.readouterr().err

    def test_newer_protocol_and_unknown_seeds(self) -> None:
        """The next version of the protocol, on a server whose seeds cannot be worked out."""
        features = {
            "RESTATE_EXPERIMENTAL_ENABLE_PROTOCOL_V7": "true",
            "RESTATE_EXPERIMENTAL_ENABLE_UNIQUE_RANDOM_SEEDS": "true",
        }
        with (
            RestateServer(env=features) as server,
            AppServer(kept_app) as served,
            httpx.Client(trust_env=False) as client,
        ):
            env = Env(server, served, client)
            server.admin.register(served.url)
            waiting = env.send("KeptOnServer", "waits", 4)
            eventually(lambda: has(env, waiting, 3))
            drawing = env.send("KeptOnServer", "completes", 4)
            env.attach(drawing)
            journal, other = export_journal(server, waiting), export_journal(server, drawing)
            server.admin.kill(waiting)

        assert (7, None) == (journal.origin.protocol, journal.origin.random_seed)
        assert '"random_seed": null' in journal.to_text()
        replay(journal, kept_app)
        with pytest.raises(ReplayDifferenceError, match="The random seed of this run is not known"):
            replay(other, kept_app)


APP = """
import restate
from restate_steps import durable_step

service = restate.Service("Shop")

@durable_step(name="{name}")
async def pay() -> str: ...

@service.handler()
async def checkout(ctx: restate.Context, value: int) -> str:
    return await pay()

app = restate.app([service])
"""


class TestCommandLine:
    """`restate-steps journal replay`, as continuous integration runs it."""

    def replays(self, name: str, folder: Path) -> subprocess.CompletedProcess[str]:
        async def handler(ctx: restate.Context, value: int) -> str:
            return await step("pay")

        record(ran(handler), folder / "journals" / "paid.json")
        (folder / "shop.py").write_text(APP.format(name=name))
        command = [sys.executable, "-m", "restate_steps", "journal", "replay", "shop:app", "journals"]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)

    def test_the_same_way(self, tmp_path: Path) -> None:
        """What can be replayed is counted."""
        done = self.replays("pay", tmp_path)

        assert (0, "1 journal replayed\n", "") == (done.returncode, done.stdout, done.stderr)

    def test_another_way(self, tmp_path: Path) -> None:
        """What cannot ends with the difference, and with an exit code that stops a release."""
        done = self.replays("charge", tmp_path)

        assert (1, "") == (done.returncode, done.stdout)
        assert "error: journals/paid.json: Shop/checkout: today's code diverges from the journal" in done.stderr
        assert "Traceback" not in done.stderr

    def test_no_journal(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """A folder without journals is an error."""
        assert 1 == main(["journal", "replay", "shop:app", str(tmp_path)])
        assert "there is no recorded journal at" in capsys.readouterr().err


def test_nothing_but_journal_messages_is_kept() -> None:
    """What passes between an attempt and the server, and is no entry, is no part of a journal."""
    frames = [*ran(recorded).frames, Frame(MessageType.END, b"")]

    assert MessageType.END not in [frame.type for frame in as_recorded(Journal(frames, ran(recorded).origin)).frames]


async def test_the_line_of_a_sleep() -> None:
    """A timer is made by the event loop; the report shows the line that waits for it."""
    svc = restate.Service("SleepLine")
    changed = False

    @durable_step
    async def first() -> None: ...

    @svc.handler()
    async def wait(ctx: restate.Context) -> None:
        if not changed:
            await first()
        await asyncio.sleep(5)

    app = restate_steps.app([svc])
    async with simulate(app) as sim:
        invocation = await sim.send(wait)
    changed = True

    with pytest.raises(ReplayDifferenceError, match=r"and today's code issues +sleep") as caught:
        replay(invocation, app)

    line = inspect.unwrap(wait).__code__.co_firstlineno + 4
    assert caught.value.line.endswith(f"test_recorded.py:{line}")
