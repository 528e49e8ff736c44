"""``restate_steps.app``, ``restate_steps.local`` and the event loop that handlers see, as their users meet them.

Whether plain asyncio survives every order and crash is explored in ``tests/test_exploration.py``. What is refused under
``restate.app``, and beside the handler, is in ``tests/concurrency/test_refused.py``.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from datetime import timedelta
from typing import Any

import pytest
import restate
from pydantic import BaseModel
from restate import JournalValueCodec, TerminalError
from restate.exceptions import RetryableError

import restate_steps
from restate_steps import ConcurrencyError, durable_step, local, restate_context
from restate_steps._loop import HandlerLoop
from restate_steps._protocol.wire import decode
from restate_steps.testing import Simulator, explore, simulate
from tests.support.harness import Harness, eventually

Body = Callable[[], Awaitable[Any]]

both_apps = pytest.mark.parametrize("app", [restate.app, restate_steps.app], ids=["restate.app", "restate_steps.app"])
both_modes = pytest.mark.parametrize("always_replay", [False, True], ids=["bidirectional", "always-replay"])


@durable_step(name="{tag}")
async def work(tag: str) -> str:
    await asyncio.sleep(0)
    return tag


async def on_handler_loop() -> bool:
    return isinstance(asyncio.get_running_loop(), HandlerLoop)


async def forever() -> Any:
    """Wait for something durable that never happens."""
    return await restate_context().awakeable()[1]


def app_of(body: Body, app: Any = restate_steps.app) -> Any:
    service = restate.Service("App")

    @service.handler()
    async def run(ctx: restate.Context) -> Any:
        return await body()

    return app([service])


async def answer(body: Body, app: Any = restate_steps.app) -> Any:
    """Return what a handler returns in its first attempt."""
    async with simulate(app_of(body, app)) as sim:
        result = await sim.call("App/run")
        assert result.attempts == 1
        return result.value


async def refusal(body: Body) -> str:
    """Return the message of the ConcurrencyError with which the first attempt ends, after which there is no other."""
    async with simulate(app_of(body)) as sim:
        invocation = await sim.send("App/run")
        await sim.advance(timedelta(hours=1))
        assert (invocation.status, invocation.attempts) == ("paused", 1), invocation.last_failure
        message = invocation.last_failure or ""
        assert message.startswith("ConcurrencyError: "), message
        return message


def always(body: Body, expected: Any) -> None:
    """Check that a handler gives one answer in every order and after every crash."""
    report = explore(app_of(body), "App/run", max_runs=100, max_seconds=5, progress=False)
    report.assert_replay_safe()
    assert [expected] == [outcome.value for outcome, _ in report.outcomes]


# --- the application --------------------------------------------------------------------------------------------------


class Order(BaseModel):
    """An order of tea."""

    tea: str
    cups: int = 1


shop = restate.Service("Shop", description="Sells tea", metadata={"team": "tea"})
counter = restate.VirtualObject("Counter", enable_lazy_state=True)
approval = restate.Workflow("Approval")


@shop.handler(journal_retention=timedelta(days=1))
async def order(ctx: restate.Context, order: Order) -> Order:
    """Order tea."""
    tea, cups = await asyncio.gather(work(order.tea), work(str(order.cups)))
    return Order(tea=tea.upper(), cups=int(cups) + 1)


@shop.handler()
async def loop(ctx: restate.Context) -> bool:
    return await on_handler_loop()


async def count(ctx: restate.ObjectSharedContext) -> int:
    return await ctx.get("count", type_hint=int) or 0


@counter.handler()
async def add(ctx: restate.ObjectContext, by: int) -> None:
    before, more = await asyncio.gather(count(ctx), work(str(by)))
    ctx.set("count", before + int(more))


@counter.handler(kind="shared")
async def read(ctx: restate.ObjectSharedContext) -> list[Any]:
    return await asyncio.gather(count(ctx), work(ctx.key()))


@approval.main()
async def run(ctx: restate.WorkflowContext, who: str) -> list[Any]:
    async def decision() -> str:
        return await ctx.promise("decision", type_hint=str).value()

    return await asyncio.gather(decision(), work(who))


@approval.handler()
async def decide(ctx: restate.WorkflowSharedContext, what: str) -> None:
    found, _ = await asyncio.gather(work(what), work("decide"))
    await ctx.promise("decision", type_hint=str).resolve(found)


async def discover(app: Any, version: int = 4, http: str = "2") -> tuple[int, bytes]:
    """Ask an application for its discovery document, and return the status and the body of the answer."""
    accept = f"application/vnd.restate.endpointmanifest.v{version}+json".encode()
    scope = {"type": "http", "http_version": http, "path": "/discover", "headers": [(b"accept", accept)]}
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent[0]["status"], b"".join(each.get("body", b"") for each in sent)


def test_the_parameters_are_those_of_restate_app() -> None:
    """In name, order, kind and default, so that one replaces the other; what is added has a default."""
    theirs, ours = (
        [(each.name, each.kind, each.default) for each in inspect.signature(app).parameters.values()]
        for app in (restate.app, restate_steps.app)
    )
    assert [*theirs, ("longest_step", inspect.Parameter.KEYWORD_ONLY, timedelta(hours=1))] == ours


@both_apps
async def test_arguments_reach_the_sdk(app: Any) -> None:
    """An iterator of services, one given twice, a key that is none, and one that refuses unsigned requests."""
    key = "publickeyv1_w7YHemBctH5Ck2nQRQ47iBBqhNHy4FV7t2Usbye2A6f"
    assert [401, 200] == [(await discover(app(iter([shop]), identity_keys=keys)))[0] for keys in ([key], None)]
    with pytest.raises(ValueError, match="Service Shop already exists"):
        app([shop, counter, shop])
    with pytest.raises(Exception, match="expected to start with publickeyv1_"):
        app([shop], identity_keys=["nonsense"])


@pytest.mark.parametrize("protocol", [None, "bidi", "request_response"])
async def test_the_discovery_document_is_that_of_restate_app(protocol: Any) -> None:
    """Except for the abort timeout, in each version; a handler that is added later is in it as well."""
    late = restate.Service("Late")
    apps = [app([shop, counter, approval, late], protocol) for app in (restate.app, restate_steps.app)]
    late.handler(name="added")(loop)
    for version, http in ((3, "1.1"), (4, "2"), (5, "2")):
        theirs, ours = [await discover(app, version, http) for app in apps]
        assert theirs[0] == ours[0]
        expected, found = json.loads(theirs[1]), json.loads(ours[1])
        for service in expected["services"]:
            service["abortTimeout"] = 3_610_000
        assert expected == found
        asked = protocol or {"1.1": "request_response", "2": "bidi"}[http]
        assert {"bidi": "BIDI_STREAM", "request_response": "REQUEST_RESPONSE"}[asked] == found["protocolMode"]
        assert [["order", "loop"], ["add", "read"], ["run", "decide"], ["added"]] == [
            [handler["name"] for handler in service["handlers"]] for service in found["services"]
        ]


class Sealed(JournalValueCodec):
    """Reverses values; reading them takes I/O if it is slow."""

    def __init__(self, *, slow: bool = False) -> None:
        self.slow = slow

    def encode(self, buf: bytes) -> bytes:
        return b"sealed" + buf[::-1]

    async def decode(self, buf: bytes) -> bytes:
        if self.slow:
            assert not await on_handler_loop()
            await asyncio.sleep(0.001)
        assert buf.startswith(b"sealed"), buf
        return buf[:5:-1]


@pytest.mark.parametrize("provided", [False, True], ids=["codec", "async provider"])
def test_a_codec_encodes_the_journal(provided: bool, log: list[Any]) -> None:
    """It decodes on the server's loop, where it may do I/O; a provider is called once."""

    async def provide() -> JournalValueCodec:
        await asyncio.sleep(0)
        log.append("provided")
        return Sealed(slow=True)

    def sealed(simulator: Simulator) -> None:
        [invocation] = simulator.invocations
        values = [decode(frame).get("value", {}).get("content") for frame in invocation.journal.frames]
        assert b'sealed"tnim"' in values
        assert all(value is None or value.startswith(b"sealed") for value in values), values

    app = restate_steps.app([shop], journal_value_codec=provide if provided else Sealed(slow=True))
    options: Any = {"max_runs": 60, "progress": False}
    report = explore(app, order, Order(tea="mint"), journal_value_codec=Sealed(), check=sealed, **options)
    report.assert_replay_safe()
    assert [Order(tea="MINT", cups=2)] == [outcome.value for outcome, _ in report.outcomes]
    assert ["provided"] * provided == log


async def test_handlers_that_are_added_later_run_on_the_handler_loop() -> None:
    """A service may be filled after the application was made, and a handler may be replaced."""
    service = restate.Service("Late")
    app = restate_steps.app([service])

    def answers(version: str) -> Any:
        async def handler(ctx: restate.Context) -> Any:
            return [version, await on_handler_loop(), *await asyncio.gather(work("a"), work("b"))]

        return handler

    for version in ("first", "second"):
        service.handlers.pop("handler", None)
        service.handler()(answers(version))
        async with simulate(app) as sim:
            assert [version, True, "a", "b"] == (await sim.call("Late/handler")).value


async def test_one_service_in_both_applications() -> None:
    """It is not changed: under restate.app it runs on the server's loop, and concurrent steps are refused."""
    before = dict(vars(shop)), dict(shop.handlers)
    plain, ours = restate.app([shop]), restate_steps.app([shop])
    for _ in range(2):
        async with simulate(ours) as sim:
            assert (await sim.call(loop)).value is True
            assert Order(tea="MINT", cups=3) == (await sim.call(order, Order(tea="mint", cups=2))).value
        async with simulate(plain) as sim:
            assert (await sim.call(loop)).value is False
            refused = await sim.send(order, Order(tea="mint"))
            assert ("paused", 1) == (refused.status, refused.attempts)
            assert "Serve the handler with restate_steps.app instead of restate.app" in (refused.last_failure or "")
    assert before == (dict(vars(shop)), dict(shop.handlers))


@both_modes
async def test_virtual_objects_and_workflows(always_replay: bool) -> None:
    """Exclusive and shared handlers, the main handler of a workflow, and one that answers it."""
    async with simulate(restate_steps.app([counter, approval]), always_replay=always_replay) as sim:
        for _ in range(2):
            await sim.call(add, 2, key="k")
        assert [4, "k"] == (await sim.call(read, key="k")).value
        assert {"count": 4} == sim.state("Counter", "k")

        running = await sim.send(run, "Ada", key="w")
        await sim.call(decide, "yes", key="w")
        assert ["yes", "Ada"] == (await running.result()).value


variable: ContextVar[str] = ContextVar("test_app_variable", default="unset")


@both_apps
async def test_the_context_managers_of_an_invocation(app: Any, log: list[Any]) -> None:
    """They are entered and exited around the handler, which sees their context variables, and they see its error."""

    @asynccontextmanager
    async def manage(name: str) -> AsyncIterator[None]:
        token = variable.set(f"{variable.get()} {name}")
        try:
            yield
        except TerminalError as error:
            log.append(f"{name} sees {error.message}")
            raise
        finally:
            variable.reset(token)

    service = restate.Service("Managed", invocation_context_managers=[lambda: manage("one"), lambda: manage("two")])

    @service.handler(invocation_context_managers=[lambda: manage("three")])
    async def run(ctx: restate.Context) -> None:
        log.append(variable.get())
        raise TerminalError(await work("no"))

    async with simulate(app([service])) as sim:
        with pytest.raises(TerminalError, match="no"):
            await sim.call(run)
    assert ["unset one two three", "three sees no", "two sees no", "one sees no"] == log


# --- groups of terminal errors ----------------------------------------------------------------------------------------


def no(tag: str, cause: BaseException | None = None) -> TerminalError:
    error = TerminalError(tag, 418, metadata={"tag": tag})
    error.__cause__ = cause
    return error


def caused(cause: BaseException, error: Exception | None = None) -> Exception:
    error = error or KeyError("order")
    error.__cause__ = cause
    return error


def later(cause: BaseException) -> RetryableError:
    error = RetryableError("try again")
    error.__cause__ = cause
    return error


def group(*errors: Exception) -> ExceptionGroup:
    return ExceptionGroup("group", errors)


async def fails_beside_a_task(error: Exception) -> None:
    async def waits() -> None:
        try:
            await forever()
        finally:
            await work("clean up")

    task = asyncio.create_task(waits())
    await work("begin")
    assert not task.done()
    raise error


TERMINAL = {
    "flat": group(no("first"), no("second")),
    "nested": group(group(no("first")), no("second")),
    "of causes": group(caused(no("first")), no("second")),
    "as a cause": caused(group(no("first"), group(no("second")))),
    "with a terminal cause": caused(no("first"), group(no("second"))),
    "as the cause of a terminal error": no("first", cause=group(no("second"))),
}
MIXED = {
    "flat": group(no("first"), OSError("try again")),
    "nested": group(no("first"), group(no("second"), OSError("try again"))),
    "as a cause": caused(group(RetryableError("try again"), no("first"))),
    "of a retryable error with a terminal cause": group(no("first"), later(no("second"))),
    "as the cause of a retryable error": later(group(no("first"))),
    "no group, but a retryable error with a terminal cause": later(no("first")),
}


@pytest.mark.parametrize("kind", TERMINAL)
async def test_a_group_of_terminal_errors_ends_the_invocation(kind: str) -> None:
    """With the message, the status and the metadata of the first, and after what is left has cleaned up."""
    async with simulate(app_of(lambda: fails_beside_a_task(TERMINAL[kind]))) as sim:
        invocation = await sim.send("App/run")
        with pytest.raises(TerminalError) as caught:
            await invocation.result()
    assert ("first", 418, {"tag": "first"}) == (caught.value.message, caught.value.status_code, caught.value.metadata)
    assert (1, ["begin", "clean up"]) == (invocation.attempts, invocation.journal.names)


@pytest.mark.parametrize("kind", MIXED)
async def test_a_mixed_group_is_retried(kind: str) -> None:
    """One error that a retry may fix is enough; nothing that is left adds a step to the journal."""
    async with simulate(app_of(lambda: fails_beside_a_task(MIXED[kind]))) as sim:
        invocation = await sim.send("App/run")
        assert ("backing-off", 1, ["begin"]) == (invocation.status, invocation.attempts, invocation.journal.names)
        await sim.advance(timedelta(minutes=1))
        assert invocation.attempts > 1


# --- tasks that are left or cancelled ---------------------------------------------------------------------------------


@both_modes
async def test_a_task_that_the_handler_left_cleans_up_with_a_step(always_replay: bool) -> None:
    """It is cancelled when the handler returns, and its steps are recorded before the invocation ends."""
    kept: list[Any] = []

    async def waits() -> None:
        try:
            await forever()
        finally:
            await work("clean up")

    async def body() -> str:
        kept.append(asyncio.create_task(waits()))
        return await work("answer")

    async with simulate(app_of(body), always_replay=always_replay) as sim:
        result = await sim.call("App/run")
    assert ("answer", ["answer", "clean up"]) == (result.value, result.journal.names)


@pytest.mark.parametrize("waits", [True, False], ids=["a handler that continues", "a handler that ends"])
async def test_a_cancelled_task_does_not_interrupt_the_body_of_its_step(waits: bool, log: list[Any]) -> None:
    """The body continues, and its result is recorded, unless the handler ends first, which cancels the body."""

    @durable_step
    async def slow() -> str:
        try:
            await asyncio.sleep(0.2)
        except asyncio.CancelledError:
            log.append("cancelled")
            raise
        log.append("ended")
        return "slow"

    async def body() -> None:
        task = asyncio.create_task(slow())
        await asyncio.sleep(0.1)
        task.cancel()
        if waits:
            await asyncio.sleep(0.2)

    async with simulate(app_of(body)) as sim:
        result = await sim.call("App/run")
    types = [entry.type for entry in result.journal]
    assert ["ended" if waits else "cancelled"] == log
    assert waits == ("Notification: Run" in types)


async def test_sleeps_hear_of_the_cancellation_after_durable_waits(log: list[Any]) -> None:
    """E2: each kind in the order in which it began, whichever kind began first."""

    async def waits(name: str, awaitable: Awaitable[Any]) -> None:
        try:
            await awaitable
        except TerminalError as error:
            log.append((name, error.status_code))

    async def body() -> None:
        await asyncio.gather(
            waits("first sleep", asyncio.sleep(3600)),
            waits("first durable wait", forever()),
            waits("second sleep", asyncio.sleep(60)),
            waits("second durable wait", restate_context().sleep(timedelta(hours=1))),
        )

    async with simulate(app_of(body)) as sim:
        invocation = await sim.send("App/run")
        await invocation.cancel()
        await invocation.result()
    assert log == [(name, 409) for name in ("first durable wait", "second durable wait", "first sleep", "second sleep")]


# --- local ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [work, 7])
async def test_local_needs_something_to_await(wrong: Any, log: list[Any]) -> None:
    """The message shows what it got, and the call that was meant; in a handler and outside of one."""

    async def body() -> None:
        with pytest.raises(TypeError) as caught:
            local(wrong)
        log.append(str(caught.value))

    await body()
    await answer(body)
    expected = f"local() expected an awaitable or an async context manager, got {wrong!r}. Call the function: "
    assert [expected + "local(fetch()), not local(fetch)."] * 2 == log


async def test_local_awaits_on_the_servers_loop(log: list[Any]) -> None:
    """Each replay repeats it, nothing of it is in the journal, and its errors are the caller's."""

    async def fails() -> None:
        await asyncio.sleep(0)
        raise KeyError("missing")

    async def body() -> list[Any]:
        with pytest.raises(KeyError, match="missing"):
            await local(fails())
        log.append("local")
        return [await local(on_handler_loop()), await work("a"), await on_handler_loop()]

    async with simulate(app_of(body), always_replay=True) as sim:
        result = await sim.call("App/run")
    assert [False, "a", True] == result.value
    assert (["a"], 2, ["local"] * 2) == (result.journal.names, result.attempts, log)


class Session:
    """A client that must be opened and closed in one task, on the loop that does its I/O."""

    def __init__(self, log: list[Any], *, suppresses: bool = False) -> None:
        self.log = log
        self.suppresses = suppresses

    async def __aenter__(self) -> Session:
        await asyncio.sleep(0)
        self.task = asyncio.current_task()
        assert not await on_handler_loop()
        self.log.append("open")
        return self

    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        await asyncio.sleep(0)
        assert asyncio.current_task() is self.task
        self.log.append("close" if error is None else f"close after {type(error).__name__}")
        return self.suppresses


async def test_local_enters_a_context_manager(log: list[Any]) -> None:
    """It is entered and exited in one task of the server's loop; the body is code of the handler."""

    async def body() -> Any:
        session = Session(log)
        async with local(session) as entered:
            assert entered is session
            found = await asyncio.gather(work("a"), work("b"), local(on_handler_loop()), on_handler_loop())
        async with local(Session(log, suppresses=True)):
            raise ValueError
        with suppress(KeyError):
            async with local(Session(log)):
                raise KeyError
        return found

    assert ["a", "b", False, True] == await answer(body)
    assert ["open", "close", "open", "close after ValueError", "open", "close after KeyError"] == log


class Both(Session):
    """What a client returns for a request: something to await, and a context manager."""

    def __await__(self) -> Any:
        return on_handler_loop().__await__()


async def test_local_takes_what_is_both_awaitable_and_a_context_manager(log: list[Any]) -> None:
    """As the requests of some HTTP clients."""

    async def body() -> bool:
        async with local(Both(log)):
            assert await on_handler_loop()
        return bool(await local(Both(log)))

    assert await answer(body) is False
    assert ["open", "close"] == log


def test_steps_in_a_context_manager_in_local() -> None:
    """They are recorded, when it is entered and when it is exited."""

    @asynccontextmanager
    async def account() -> AsyncIterator[str]:
        opened = await work("open")
        try:
            yield opened
        finally:
            await work("close")

    async def use(tag: str) -> str:
        async with local(account()) as opened:
            return opened + await work(tag)

    async def body() -> list[str]:
        return await asyncio.gather(use("a"), use("b"))

    always(body, ["opena", "openb"])


async def test_a_context_manager_that_is_never_exited_is_closed(log: list[Any]) -> None:
    """When the handler ends."""

    async def body() -> str:
        await local(Session(log)).__aenter__()
        return await work("a")

    assert await answer(body) == "a"
    assert ["open", "close after CancelledError"] == log


async def test_local_refuses_a_task_of_the_handler(log: list[Any]) -> None:
    """With the call that was meant."""

    async def body() -> None:
        task = asyncio.create_task(work("a"))
        with pytest.raises(TypeError, match=r"local\(fetch\(\)\), not local\(asyncio.create_task\(fetch\(\)\)\)"):
            await local(task)
        log.append(await task)

    await answer(body)
    assert log == ["a"]


ENDINGS = {
    "suspended": "SuspendedException",
    "cut": "CancelledError",
    "failed": "OSError",
    "refused": "ConcurrencyError",
}


@pytest.mark.parametrize("ending", ENDINGS)
async def test_a_context_manager_is_exited_however_an_attempt_ends(ending: str, log: list[Any]) -> None:
    """Before the next attempt begins, which enters it again."""

    async def body() -> None:
        async with local(Session(log)):
            if ending == "failed":
                raise OSError
            if ending == "refused":
                await asyncio.open_connection("127.0.0.1", 1)
            await forever()

    async with simulate(app_of(body), always_replay=ending == "suspended") as sim:
        await sim.send("App/run")
        if ending == "cut":
            assert ["open"] == log
            await sim.disconnect()
        assert ["open", f"close after {ENDINGS[ending]}"] == log


@pytest.mark.parametrize("where", ["outside", "restate.app", "local", "a step"])
async def test_local_only_awaits_where_the_handler_loop_does_not_run(where: str, log: list[Any]) -> None:
    """In a script, under restate.app, in another local operation, and in the body of a step."""

    async def task() -> Any:
        return asyncio.current_task()

    async def awaits() -> bool:
        async with local(Session(log)) as session:
            return await local(task()) is asyncio.current_task() is session.task

    if where == "outside":
        assert await awaits()
    elif where == "restate.app":
        assert await answer(awaits, restate.app)
    else:
        assert await answer(durable_step(awaits) if where == "a step" else lambda: local(awaits()))
    assert ["open", "close"] == log


def test_steps_in_local() -> None:
    """One after another, and with restate_steps.gather, beside others of the handler."""

    async def chain() -> Any:
        first = await work("a")
        await asyncio.sleep(0.001)
        return [first, *await restate_steps.gather(work("b"), work("c")), await work("d")]

    async def body() -> Any:
        return await asyncio.gather(local(chain()), work("e"))

    always(body, [["a", "b", "c", "d"], "e"])


async def both() -> None:
    await asyncio.gather(work("a"), work("b"))


async def test_concurrent_waits_in_local_are_refused() -> None:
    """The order of two tasks of the server's loop is not in the journal."""
    message = await refusal(lambda: local(both()))
    assert "inside of restate_steps.local while another step was awaited there" in message
    assert "use restate_steps.gather" in message


@pytest.mark.parametrize("kind", ["timeout", "wait_for"])
async def test_a_timeout_in_local_around_a_durable_wait_is_refused(kind: str, log: list[Any]) -> None:
    """Its timer is not durable, so a replay could not repeat it; around something local it is asyncio's own."""

    async def limit(wait: Awaitable[Any]) -> None:
        with suppress(TimeoutError):
            if kind == "wait_for":
                await asyncio.wait_for(wait, 0.01)
            async with asyncio.timeout(0.01):
                await wait

    async def reads() -> None:
        await limit(asyncio.sleep(60))
        log.append("too late")
        await limit(forever())

    message = await refusal(lambda: local(reads()))
    assert ["too late"] == log
    assert "a local operation cancelled its own wait for something durable" in message
    assert "Put the timeout around restate_steps.local, or use restate_steps.wait_for." in message


def test_a_cancelled_local_is_waited_for(log: list[Any]) -> None:
    """By a timeout around it and by the cancelled task; it may clean up with a step, or stay and give a result."""

    async def reads(wait: Body, *, stays: bool = False) -> str:
        try:
            await wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0.001)
            log.append(await work("clean up"))
            if not stays:
                raise
        return "stayed"

    async def stays() -> str:
        return await local(reads(forever, stays=True))

    async def body() -> Any:
        log.clear()
        for wait in (forever, lambda: asyncio.sleep(3600)):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    await local(reads(wait))
            log.append("after")
        task = asyncio.create_task(stays())
        await work("beside")
        task.cancel()
        return [await task, await work("last"), *log]

    always(body, ["stayed", "last", "clean up", "after", "clean up", "after", "clean up"])


@both_modes
async def test_local_hears_of_the_cancellation_of_an_invocation(always_replay: bool) -> None:
    """Where it waits for something durable; it may compensate with a step."""

    async def reads() -> list[Any]:
        try:
            return [await forever()]
        except TerminalError as error:
            return [error.status_code, await work("undo")]

    async with simulate(app_of(lambda: local(reads())), always_replay=always_replay) as sim:
        invocation = await sim.send("App/run")
        await invocation.cancel()
        assert [409, "undo"] == (await invocation.result()).value


# --- the loop ---------------------------------------------------------------------------------------------------------

IO = (
    *("create_connection", "create_unix_connection", "create_server", "create_unix_server", "create_datagram_endpoint"),
    *("connect_accepted_socket", "connect_read_pipe", "connect_write_pipe", "subprocess_exec", "subprocess_shell"),
    *("sendfile", "start_tls", "sock_recv", "sock_recv_into", "sock_recvfrom", "sock_recvfrom_into", "sock_sendall"),
    *("sock_sendto", "sock_connect", "sock_accept", "sock_sendfile", "add_reader", "remove_reader", "add_writer"),
    *("remove_writer", "add_signal_handler", "remove_signal_handler", "set_default_executor"),
)


@pytest.mark.parametrize("name", [*IO, "stop", "close"])
async def test_what_the_loop_refuses(name: str) -> None:
    """The message says what was called, and where, why that is a problem, and what to do."""

    async def body() -> None:
        found = getattr(asyncio.get_running_loop(), name)(*([None] if name in IO else []))
        if inspect.iscoroutine(found):
            await found

    message = await refusal(body)
    called, advice = (name, "Put the work into a step") if name in IO else (f"loop.{name}()", "Return from the handler")
    assert f": {called} was called outside of a step, at {__file__}:" in message
    assert "test_what_the_loop_refuses.<locals>.body). Handlers run on an event loop without sockets" in message
    assert advice in message


def test_the_loop_has_an_answer_to_every_call() -> None:
    """Nothing of asyncio's interface is left to raise NotImplementedError, in this version of Python."""
    interface = {name for name in vars(asyncio.AbstractEventLoop) if not name.startswith("__")}
    assert set(IO) <= interface
    assert [] == sorted(interface - vars(HandlerLoop).keys())


async def test_the_state_of_the_loop(log: list[Any]) -> None:
    """It runs already, has no debug mode, and its time begins at zero and is that of timers."""

    async def body() -> list[Any]:
        loop, coro = asyncio.get_running_loop(), on_handler_loop()
        for runs in (loop.run_forever, lambda: loop.run_until_complete(coro), lambda: asyncio.run(coro)):
            with pytest.raises(RuntimeError, match=r"loop is already running|from a running event loop"):
                runs()
        log.append(loop)
        loop.set_debug(True)
        begun = [await coro, loop.time()]
        await asyncio.sleep(2.5)
        await loop.shutdown_asyncgens()
        await loop.shutdown_default_executor()
        return [loop.is_running(), loop.is_closed(), loop.get_debug(), *begun, loop.time()]

    assert [True, False, False, True, 0.0, 2.5] == await answer(body)
    assert log[0].is_running() is False
    with pytest.raises(ConcurrencyError, match="used by code that does not belong to the handler"):
        log[0].call_later(1, print)


async def test_invocations_share_the_loop_and_not_its_settings(caplog: pytest.LogCaptureFixture) -> None:
    """Each has its own exception handler, without which errors are logged, and its own task factory if it is eager."""
    caught: list[str] = []

    async def body() -> list[bool]:
        loop = asyncio.get_running_loop()
        before = [loop.get_exception_handler() is None, loop.get_task_factory() is None]
        loop.call_soon(int, "logged")
        await work("a")
        loop.set_exception_handler(lambda loop, context: caught.append(str(context["exception"])))
        loop.set_task_factory(getattr(asyncio, "eager_task_factory", None))
        loop.call_soon(int, "caught")
        await forever()
        return before

    async with simulate(app_of(body)) as sim:
        with caplog.at_level(logging.ERROR, "restate_steps"):
            both = [await sim.send("App/run") for _ in range(2)]
        for invocation in both:
            await sim.resolve_awakeable(await sim.awakeable(invocation))
            assert [True, True] == (await invocation.result()).value
    assert ["invalid literal for int() with base 10: 'caught'"] * 2 == caught
    logged = [str(record.exc_info[1]) for record in caplog.records if record.exc_info]
    assert ["invalid literal for int() with base 10: 'logged'"] * 2 == logged


def test_a_thread_that_is_waited_for_may_call_back() -> None:
    """What it puts into a queue arrives in its order, beside steps; other executors and look-ups work, too."""

    async def body() -> Any:
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[str | None] = asyncio.Queue()

        def produce() -> str:
            for item in ("a", "b", None):
                loop.call_soon_threadsafe(queue.put_nowait, item)
            return "produced"

        async def consume() -> list[str]:
            return [await work(item) async for item in _items(queue)]

        found = await asyncio.gather(loop.run_in_executor(None, produce), consume(), work("c"))
        [(*_, address)] = await loop.getaddrinfo("127.0.0.1", 80, type=1)
        return [*found, await loop.run_in_executor(executor, str, 7), (await loop.getnameinfo(address, 3))[0]]

    with ThreadPoolExecutor(1) as executor:
        always(body, ["produced", ["a", "b"], "c", "7", "127.0.0.1"])


async def _items(queue: asyncio.Queue[str | None]) -> AsyncIterator[str]:
    while (item := await queue.get()) is not None:
        yield item


async def test_a_task_factory_is_refused() -> None:
    """Its tasks would have no place in the order."""

    def factory(loop: Any, coro: Any, **options: Any) -> Any:
        return asyncio.Task(coro, loop=loop, **options)

    async def body() -> None:
        asyncio.get_running_loop().set_task_factory(factory)

    assert "Use asyncio.eager_task_factory or None." in await refusal(body)


async def test_a_step_that_is_driven_by_hand_is_refused() -> None:
    """Whether it has to wait depends on what is recorded, so the steps would take another order on replay."""

    async def body() -> None:
        first, second = work("a"), work("b")
        first.send(None)
        await second

    message = await refusal(body)
    assert "task 'handler' calls send() on a coroutine that waits for something durable" in message
    assert "Await it, or wrap it in asyncio.create_task." in message


# --- on the server ----------------------------------------------------------------------------------------------------


def test_on_the_server(normal_harness: Harness, log: list[Any]) -> None:
    """Typed input and a local session work, and an operator sees that concurrent waits in local pause an invocation."""
    service = restate.Service("LocalOnServer")

    @service.handler()
    async def session(ctx: restate.Context, order: Order) -> list[str]:
        async with local(Session(log)):
            return await asyncio.gather(work(order.tea), work("b"))

    @service.handler()
    async def together(ctx: restate.Context) -> None:
        await local(both())

    with normal_harness.serve(restate_steps.app([service])) as env:
        refused = env.send("LocalOnServer", "together")
        assert ["mint", "b"] == env.call("LocalOnServer", "session", {"tea": "mint"})
        assert ["open", "close"] == log
        eventually(lambda: env.server.admin.invocation(refused)["status"] == "paused")
