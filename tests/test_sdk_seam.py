"""The private names of the SDK that `restate_steps._sdk` uses: still there, and what happens once they are not.

When a test of the first part fails after an upgrade of restate-sdk, look at what became of the name, and fix `_sdk`.
"""

from __future__ import annotations

import asyncio
import inspect
import random
import signal
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import anyio._backends._asyncio as asyncio_backend
import pytest
import restate
import restate._internal as native
import restate.server
import restate.server_context as server
from restate.exceptions import SdkInternalBaseException
from restate.server_types import ReceiveChannel
from restate.vm import (
    AllCompletedUnresolvedFuture,
    FirstCompletedUnresolvedFuture,
    SingleUnresolvedFuture,
    VMWrapper,
)

from restate_steps import ConcurrencyError, _sdk, durable_step, gather
from restate_steps._loop._asyncio import is_sleep, waiting_on
from restate_steps._sdk import _context, _guard
from tests.support.harness import Env, eventually

Serve = Callable[..., Env]


# --- the names --------------------------------------------------------------------------------------------------


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (server.ServerInvocationContext.create_poll_or_cancel_coroutine, ["self", "unresolved_future"]),
        (server.ServerInvocationContext.take_and_send_output, ["self"]),
        (ReceiveChannel.__call__, ["self"]),
        (ReceiveChannel.enqueue_restate_event, ["self", "what"]),
        (server.LazyFuture.get, ["self"]),
    ],
    ids=lambda case: getattr(case, "__qualname__", ""),
)
def test_the_coroutines_that_are_called_or_replaced(function: Any, expected: list[str]) -> None:
    """They are async and take what the seam hands them."""
    assert inspect.iscoroutinefunction(function)
    assert expected == parameters(function)


def test_the_methods_that_are_called() -> None:
    """They are there, with the parameters that the seam gives by position."""
    assert ["self", "error", "stacktrace"] == parameters(VMWrapper.notify_error)[:3]
    assert ["self", "task"] == parameters(server.Tasks.add)
    assert ["name", "action", "options"] == parameters(server.ServerInvocationContext.run_typed)[1:4]
    assert ["self", "name"] == parameters(VMWrapper.sys_run)
    assert ["self", "unresolved_future"] == parameters(VMWrapper.do_progress)


def test_the_commands_of_the_vm_wrapper() -> None:
    """Every way into the journal is known, so that each is either guarded or left alone on purpose."""
    expected = [
        "sys_awakeable",
        "sys_call",
        "sys_cancel",
        "sys_clear_all_state",
        "sys_clear_state",
        "sys_complete_promise_failure",
        "sys_complete_promise_success",
        "sys_end",
        "sys_get_promise",
        "sys_get_state",
        "sys_get_state_keys",
        "sys_input",
        "sys_peek_promise",
        "sys_reject_awakeable",
        "sys_reject_signal",
        "sys_resolve_awakeable",
        "sys_resolve_signal",
        "sys_run",
        "sys_send",
        "sys_set_state",
        "sys_signal",
        "sys_sleep",
        "sys_write_output_failure",
        "sys_write_output_success",
        "attach_invocation",
        "do_progress",
    ]
    found = [name for name in dir(VMWrapper) if name.startswith("sys_") or name in ("attach_invocation", "do_progress")]

    assert sorted(expected) == sorted(found)


def test_the_other_methods_of_the_vm_wrapper() -> None:
    """None of them was added as another way into the journal."""
    expected = [
        "get_response_head",
        "is_completed",
        "is_ready_to_execute",
        "is_replaying",
        "notify_error",
        "notify_input",
        "notify_input_closed",
        "propose_run_completion_failure",
        "propose_run_completion_success",
        "propose_run_completion_transient",
        "propose_run_completion_transient_with_delay_override",
        "take_notification",
        "take_output",
    ]
    public = [name for name in dir(VMWrapper) if not name.startswith(("_", "sys_"))]

    assert sorted(expected) == sorted({*public} - {"attach_invocation", "do_progress"})


def test_the_shutdown_hooks() -> None:
    """A list of hooks for SIGTERM that exists keeps the SDK from installing a handler."""

    async def hooks() -> list[Any]:
        loop = asyncio.get_running_loop()
        registered = restate.server._shutdown_hooks.setdefault(loop, {}).setdefault(signal.SIGTERM, [])
        restate.server.install_shutdown_hook(loop, print)
        return [registered, signal.getsignal(signal.SIGTERM)]

    before = signal.getsignal(signal.SIGTERM)
    assert [[print], before] == asyncio.run(hooks())


async def test_the_input_of_a_request_can_be_ended() -> None:
    """The task that reads a request leads to the channel, and the handler finds the end of the input there."""
    reader: asyncio.Future[asyncio.Task[Any]] = asyncio.get_running_loop().create_future()

    async def receive() -> Any:
        task = asyncio.current_task()
        assert task is not None
        reader.set_result(task)
        await asyncio.Event().wait()

    channel = ReceiveChannel(receive)
    _sdk.end_input(await reader)

    assert {"type": "http.request", "body": b"", "more_body": False} == await channel()
    channel.notify_shutdown()
    await channel.block_until_http_input_closed()
    await channel.close()


def test_the_compiled_half() -> None:
    """The VM and its answers have the names and methods that the port uses."""
    single, first, every = (
        native.PyUnresolvedFuture.single,
        native.PyUnresolvedFuture.first_completed,
        native.PyUnresolvedFuture.all_completed,
    )
    vm = native.PyVM([("content-type", "application/vnd.restate.invocation.v6")], False, False)

    assert all(callable(getattr(vm, name)) for name in ("do_progress", "is_completed", "notify_input"))
    assert callable(vm.notify_input_closed)
    assert every([first([single(1), single(2)]), single(3)])
    assert issubclass(native.VMException, Exception)
    for answer in (
        "PyDoProgressAnyCompleted",
        "PyDoProgressCancelSignalReceived",
        "PyDoProgressExecuteRun",
        "PySuspended",
    ):
        assert isinstance(getattr(native, answer), type)
    assert hasattr(native.PyDoProgressExecuteRun, "handle")


def test_the_wrapped_vm_takes_the_compiled_half() -> None:
    """The VM proper hangs on its wrapper as ``vm``."""
    wrapper = VMWrapper([("content-type", "application/vnd.restate.invocation.v6")])

    assert isinstance(wrapper.vm, native.PyVM)


def test_unresolved_futures_are_trees_of_handles() -> None:
    """A wait is a handle, or a combination of waits that can be made anew from its children."""
    one, two = SingleUnresolvedFuture(1), SingleUnresolvedFuture(2)

    assert (1, 2) == (one.handle, two.handle)
    for combination in (AllCompletedUnresolvedFuture, FirstCompletedUnresolvedFuture):
        assert [one, two] == list(combination([one, two]).children)
        assert combination([one]) == combination([SingleUnresolvedFuture(1)])


async def test_a_lazy_future_caches_the_task_of_its_first_awaiter() -> None:
    """The task sits in ``task``, and the coroutine function in ``async_def``; both can be replaced."""
    started: list[int] = []

    async def fetch() -> int:
        started.append(1)
        return 1

    async def other() -> int:
        return 2

    lazy: Any = server.LazyFuture(fetch)
    assert 1 == await lazy.get()
    assert isinstance(lazy.task, asyncio.Task)
    assert 1 == await lazy
    lazy.task, lazy.async_def = None, other

    assert 2 == await lazy
    assert [1] == started


async def test_a_result_is_awaited_in_the_callers_own_task() -> None:
    """No task is made for it, and if the SDK has no such future any more, it is awaited all the same."""

    async def fetch() -> asyncio.Task[Any] | None:
        return asyncio.current_task()

    class Context:
        class vm:
            is_completed = staticmethod(lambda handle: True)

    future: Any = server.ServerDurableFuture(Context(), 17, fetch)
    _sdk.share_future(future)

    assert asyncio.current_task() is await _sdk.result_of(future)
    assert asyncio.current_task() is await future
    assert future.future.task is None
    assert asyncio.current_task() is await _sdk.result_of(fetch())


def test_what_hangs_on_a_context(env_factory: Serve) -> None:
    """A handler's context has the attributes that the seam reads and replaces, of the types that it expects."""
    service = restate.Service("SeamContext")
    found: dict[str, Any] = {}

    @service.handler()
    async def run(ctx: restate.Context) -> None:
        async def body() -> int:
            return 1

        future = ctx.run_typed("body", body)
        if not found:
            found.update(vars(ctx), context=ctx, future=future, handles=list(ctx.run_coros_to_execute))  # type: ignore[attr-defined]
        await future

    env_factory(service, app=restate.app).call("SeamContext", "run")

    assert server.ServerInvocationContext is type(found["context"])
    assert VMWrapper is type(found["vm"])
    assert random.Random is type(found["random_instance"])
    assert isinstance(found["invocation"].invocation_id, str)
    assert isinstance(found["receive"], ReceiveChannel)
    assert isinstance(found["receive"]._task, asyncio.Task)
    assert isinstance(found["receive"]._queue, asyncio.Queue)
    assert isinstance(found["tasks"], server.Tasks)
    assert isinstance(found["extension_data"], dict)
    assert isinstance(found["run_coros_to_execute"], dict)
    assert hasattr(found["handler"], "explicit_recovery")
    assert isinstance(found["future"], server.ServerDurableFuture)
    assert isinstance(found["future"].future, server.LazyFuture)
    assert [found["future"].handle] == found["handles"]


def test_the_sdks_own_control_flow_is_no_exception() -> None:
    """What the seam raises to suspend and to retry passes every ``except Exception``."""
    for name in ("SuspendedException", "SdkInternalException"):
        assert issubclass(getattr(restate.exceptions, name), SdkInternalBaseException)
    assert not issubclass(SdkInternalBaseException, Exception)
    assert issubclass(server.DisconnectedException, Exception)


def test_the_application_keeps_the_service_in_a_local_variable() -> None:
    """The mark of explicit recovery is read from there; the test of the refusal itself is in test_context."""
    application = restate.app([])

    assert "service" in application.__code__.co_varnames + application.__code__.co_cellvars  # type: ignore[attr-defined]
    assert "restate.server" == application.__globals__["__name__"]  # type: ignore[attr-defined]


async def test_a_task_tells_what_it_waits_for() -> None:
    """Asyncio's own private name, in the C and in the Python implementation."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def wait() -> None:
        await future

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)

    assert future is waiting_on(task)
    future.set_result(None)
    await task
    assert waiting_on(task) is None


def test_a_sleep_ends_by_a_callback_that_is_known() -> None:
    """``asyncio.sleep`` hands the loop a function of asyncio's own, and the future that the sleeper waits for."""
    handed: list[tuple[Any, ...]] = []

    class Loop(asyncio.SelectorEventLoop):
        def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
            handed.append((callback, *args))
            return super().call_at(when, callback, *args, context=context)

    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(asyncio.sleep(0.001))

    assert [True] == [is_sleep(callback) for callback, *_ in handed]
    assert isinstance(handed[0][1], asyncio.Future)
    assert not is_sleep(handed.append)


def test_anyio_runs_threads_by_a_method_of_its_backend() -> None:
    """It is a class method that takes what the adapter hands on."""
    method = vars(asyncio_backend.AsyncIOBackend)["run_sync_in_worker_thread"]

    assert isinstance(method, classmethod)
    assert ["func", "args", "abandon_on_cancel", "limiter"] == parameters(method.__func__)[1:]


# --- without them -----------------------------------------------------------------------------------------------


@durable_step
async def echo(value: str) -> str:
    return value


def echoing(name: str) -> restate.Service:
    service = restate.Service(name)

    @service.handler()
    async def alone(ctx: restate.Context) -> str:
        return await echo("a")

    @service.handler()
    async def together(ctx: restate.Context) -> list[str]:
        async def nap() -> str:
            await ctx.sleep(timedelta(milliseconds=1))
            return await echo(str(ctx.random().randint(1, 1)))

        return list(await gather(echo("a"), nap()))

    return service


def test_without_the_await_hook_the_loop_is_refused(env_factory: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the SDK renames it, single steps still work under restate.app, and a group says what is missing."""
    monkeypatch.setattr(_context, "AWAIT_HOOK", "renamed_hook")
    env = env_factory(echoing("NoHook"), app=restate.app)

    assert "a" == env.call("NoHook", "alone")
    for served, handler in ((env, "together"), (env_factory(echoing("NoHookLoop")), "alone")):
        invocation = served.send(served.services[0], handler)
        failure = str(eventually(lambda id=invocation: env.server.admin.invocation(id).get("last_failure")))
        assert "the installed restate-sdk has no ServerInvocationContext.renamed_hook" in failure
        assert "Install a restate-sdk version that this release of restate-steps was tested with" in failure


def test_the_check_for_the_await_hook_is_an_error_of_this_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is retryable, so that another deployment can resume the invocation."""
    _sdk.check_supported()
    monkeypatch.delattr(server.ServerInvocationContext, "create_poll_or_cancel_coroutine")

    with pytest.raises(ConcurrencyError, match=r"has no ServerInvocationContext\.create_poll_or_cancel_coroutine"):
        _sdk.check_supported()


@pytest.mark.parametrize("name", ["VMWrapper", "random"])
def test_without_something_to_guard_correct_code_works(
    env_factory: Serve, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A VM or a source of random numbers of another type is left alone: misuse passes, everything else is the same."""

    class Other:
        Random = int

    monkeypatch.setattr(_guard, name, Other)
    env = env_factory(echoing("NoGuard"))

    assert "a" == env.call("NoGuard", "alone")
    assert ["a", "1"] == env.call("NoGuard", "together")
