"""When a failing step is tried again, when it ends for good, and how long one attempt may take."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import restate
from restate.exceptions import RetryableError

from restate_steps import DurableStep, RetryPolicy, StepTimeoutError, durable_step, gather
from tests.support.harness import Env, InvocationFailed, eventually
from tests.support.stable_ids import stable_id

Serve = Callable[..., Env]

SOON = timedelta(milliseconds=1)
QUICKLY = RetryPolicy(initial_retry_interval=SOON, max_retry_interval=SOON)
THRICE = RetryPolicy(max_attempts=3, initial_retry_interval=SOON, max_retry_interval=SOON)


class Busy(Exception):
    pass


class Overloaded(Busy):
    pass


class Wrong(Exception):
    pass


def failing(
    times: int, error: Callable[[int], BaseException], **options: Any
) -> tuple[DurableStep[[], int], list[int]]:
    """A step that fails on its first attempts, and the list of its attempts."""
    attempts: list[int] = []

    @durable_step(**options)
    async def work() -> int:
        attempts.append(len(attempts) + 1)
        if len(attempts) <= times:
            raise error(attempts[-1])
        return attempts[-1]

    return work, attempts


def service_with(step: DurableStep[[], Any]) -> restate.Service:
    service = restate.Service("Retries")

    @service.handler()
    async def run(ctx: restate.Context) -> Any:
        return await step()

    @service.handler()
    async def grouped(ctx: restate.Context) -> Any:
        return list(await gather(step()))

    @service.handler()
    async def started(ctx: restate.Context) -> Any:
        match await restate.select(work=step.start(), late=ctx.sleep(timedelta(hours=1))):
            case ["work", result]:
                return result

    return service


# --- retries ----------------------------------------------------------------------------------------------------


def test_without_a_policy_there_is_no_limit(env_factory: Serve) -> None:
    """A step that nobody limited is tried as often as the server's policy says, which is often."""
    step, attempts = failing(12, lambda n: RetryableError(f"attempt {n}", retry_after=SOON))

    assert 13 == env_factory(service_with(step)).call("Retries", "run")
    assert 13 == len(attempts)


def test_a_policy_says_how_fast(env_factory: Serve) -> None:
    """The intervals of the policy reach the server: the next attempt is an hour away."""
    hour = timedelta(hours=1)
    step, _ = failing(1, lambda n: Busy(), retry=RetryPolicy(initial_retry_interval=hour, max_retry_interval=2 * hour))
    env = env_factory(service_with(step))

    assert timedelta(minutes=50) < until_next_attempt(env, env.send("Retries", "run")) < timedelta(minutes=70)


def test_retry_after_is_honoured(env_factory: Serve) -> None:
    """The delay that a body asks for is the one that is kept, whatever the policy says."""
    step, _ = failing(1, lambda n: RetryableError("rate limit", retry_after=timedelta(hours=2)), retry=QUICKLY)
    env = env_factory(service_with(step))

    assert timedelta(minutes=110) < until_next_attempt(env, env.send("Retries", "run")) < timedelta(minutes=130)


def until_next_attempt(env: Env, invocation: str) -> timedelta:
    """How far away the next attempt is, once the first has failed."""
    then = eventually(lambda: env.server.admin.invocation(invocation).get("next_retry_at"))
    return datetime.fromisoformat(then) - datetime.now(UTC)


@pytest.mark.parametrize("handler", ["run", "grouped", "started"])
def test_max_attempts_ends_a_step(env_factory: Serve, handler: str) -> None:
    """After so many attempts the step fails for good, with what the last of them raised."""
    step, attempts = failing(99, lambda n: Busy(f"attempt {n}"), retry=THRICE)

    with pytest.raises(InvocationFailed, match=r"Busy.*attempt 3"):
        env_factory(service_with(step)).call("Retries", handler)
    assert [1, 2, 3] == attempts


def test_max_attempts_holds_for_retryable_errors(env_factory: Serve) -> None:
    """An error that asks for a delay counts like any other."""
    step, attempts = failing(99, lambda n: RetryableError(f"attempt {n}", retry_after=SOON), retry=THRICE)

    with pytest.raises(InvocationFailed, match="attempt 3"):
        env_factory(service_with(step)).call("Retries", "run")
    assert [1, 2, 3] == attempts


def test_max_duration_ends_a_step(env_factory: Serve) -> None:
    """When the attempts have taken that long together, the step fails for good."""
    policy = RetryPolicy(max_duration=SOON, initial_retry_interval=timedelta(milliseconds=2))
    step, attempts = failing(99, lambda n: Busy(f"attempt {n}"), retry=policy)

    with pytest.raises(InvocationFailed, match=r"Busy.*attempt"):
        env_factory(service_with(step)).call("Retries", "run")
    assert 1 <= len(attempts) < 5


def test_the_end_of_a_step_can_be_handled(env_factory: Serve) -> None:
    """When its attempts are used up, a step raises a terminal error in the handler, which may go on."""
    step, attempts = failing(99, lambda n: Busy(), retry=THRICE)
    service = restate.Service("Handled")

    @service.handler()
    async def run(ctx: restate.Context) -> str:
        try:
            await step()
        except restate.TerminalError as error:
            return f"compensated for {error.message}"
        return ""

    assert "compensated for Busy()" == env_factory(service).call("Handled", "run")
    assert [1, 2, 3] == attempts


def test_a_terminal_error_ends_a_step_at_once(env_factory: Serve) -> None:
    """Its message and status reach the caller, and the body is not run again, whatever the options say."""
    step, attempts = failing(99, lambda n: restate.TerminalError("gone", status_code=410), retry_on=Exception)

    with pytest.raises(InvocationFailed, match="gone") as caught:
        env_factory(service_with(step)).call("Retries", "run")
    assert 410 == caught.value.status
    assert [1] == attempts


FILTERS: list[tuple[dict[str, Any], type[Exception], bool]] = [
    ({"retry_on": Busy}, Busy, True),
    ({"retry_on": Busy}, Overloaded, True),
    ({"retry_on": Busy}, Wrong, False),
    ({"retry_on": (Busy, Wrong)}, Wrong, True),
    ({"retry_on": ()}, Busy, False),
    ({"retry_on": lambda error: isinstance(error, Busy)}, Busy, True),
    ({"retry_on": lambda error: isinstance(error, Busy)}, Wrong, False),
    ({"no_retry_on": Wrong}, Busy, True),
    ({"no_retry_on": Wrong}, Wrong, False),
    ({"no_retry_on": (Wrong, Overloaded)}, Overloaded, False),
    ({"no_retry_on": lambda error: "attempt" in str(error)}, Busy, False),
    ({"retry_on": Busy, "no_retry_on": Overloaded}, Busy, True),
    ({"retry_on": Busy, "no_retry_on": Overloaded}, Overloaded, False),
]


@pytest.mark.parametrize(("options", "error", "retried"), FILTERS, ids=stable_id)
def test_filters_decide_which_errors_are_worth_another_attempt(
    env_factory: Serve, options: dict[str, Any], error: type[Exception], retried: bool
) -> None:
    """What ``retry_on`` leaves out or ``no_retry_on`` names is terminal at once; the rest is tried again."""
    step, attempts = failing(1, lambda n: error(f"attempt {n}"), retry=QUICKLY, **options)
    env = env_factory(service_with(step))

    if retried:
        assert 2 == env.call("Retries", "run")
        return
    with pytest.raises(InvocationFailed, match=f"{error.__name__}: attempt 1"):
        env.call("Retries", "run")
    assert [1] == attempts


def test_what_a_body_waited_for_may_be_cancelled(env_factory: Serve) -> None:
    """A cancellation from within the body is a failure of that attempt like any other, not the end of everything."""
    attempts: list[int] = []

    @durable_step(retry=QUICKLY)
    async def work() -> int:
        attempts.append(1)
        if len(attempts) == 1:
            task = asyncio.create_task(asyncio.Event().wait())
            task.cancel()
            await task
        return len(attempts)

    assert 2 == env_factory(service_with(work)).call("Retries", "run", timeout=20)


def test_a_body_that_keeps_being_cancelled_says_so(env_factory: Serve) -> None:
    """The error names the step and what happened in it."""

    @durable_step(retry=RetryPolicy(max_attempts=1))
    async def work() -> None:
        raise asyncio.CancelledError

    with pytest.raises(InvocationFailed, match="something that the body of step 'work' awaited was cancelled"):
        env_factory(service_with(work)).call("Retries", "run", timeout=20)


def test_what_is_no_exception_is_a_failure_too(env_factory: Serve) -> None:
    """A body may raise what does not derive from Exception, as test frameworks do, and is tried again all the same."""

    class Outcome(BaseException):
        pass

    step, attempts = failing(99, lambda n: Outcome(f"attempt {n}"), retry=THRICE)

    with pytest.raises(InvocationFailed, match=r"body of step 'work' raised Outcome\('attempt 3'\), .* not a subclass"):
        env_factory(service_with(step)).call("Retries", "run", timeout=20)
    assert [1, 2, 3] == attempts


# --- time limits ------------------------------------------------------------------------------------------------


@contextmanager
def released() -> Iterator[threading.Event]:
    """An event for threads that shall hang until the test is over."""
    event = threading.Event()
    try:
        yield event
    finally:
        event.set()


SHORT = timedelta(milliseconds=50)


@pytest.mark.parametrize("handler", ["run", "grouped", "started"])
def test_an_attempt_that_takes_too_long_is_tried_again(env_factory: Serve, handler: str) -> None:
    """The limit is that of one attempt: the body is cancelled, and the next attempt has as much time."""
    attempts: list[str] = []

    @durable_step(timeout=SHORT, retry=QUICKLY)
    async def work() -> int:
        attempts.append("begun")
        if attempts.count("begun") <= 2:
            try:
                await asyncio.Event().wait()
            finally:
                attempts.append("cleaned up")
        return attempts.count("begun")

    assert env_factory(service_with(work)).call("Retries", handler) in (3, [3])
    assert ["begun", "cleaned up", "begun", "cleaned up", "begun"] == attempts


def test_a_thread_that_takes_too_long_is_left_behind(env_factory: Serve) -> None:
    """A plain function cannot be interrupted, but nobody waits for it any more, and it is called again."""
    attempts: list[int] = []

    with released() as over:

        @durable_step(timeout=SHORT, retry=QUICKLY)
        def work() -> int:
            attempts.append(1)
            if len(attempts) == 1:
                over.wait()
            return len(attempts)

        assert 2 == env_factory(service_with(work)).call("Retries", "run")


def test_the_error_of_a_timeout_names_the_step(env_factory: Serve) -> None:
    """When the attempts are used up, the caller reads which step took longer than how long."""

    @durable_step(name="slow one", timeout=SHORT, retry=RetryPolicy(max_attempts=1))
    async def work() -> None:
        await asyncio.Event().wait()

    with pytest.raises(InvocationFailed, match=r"step 'slow one' did not finish within its timeout of 0\.05 s"):
        env_factory(service_with(work)).call("Retries", "run")


def test_a_timeout_can_be_terminal(env_factory: Serve) -> None:
    """A filter may say that a timeout is not worth another attempt."""
    attempts: list[int] = []

    @durable_step(timeout=SHORT, no_retry_on=StepTimeoutError)
    async def work() -> None:
        attempts.append(1)
        await asyncio.Event().wait()

    with pytest.raises(InvocationFailed, match="StepTimeoutError: step 'work' did not finish"):
        env_factory(service_with(work)).call("Retries", "run")
    assert [1] == attempts


@pytest.mark.parametrize("declared", [TimeoutError, StepTimeoutError])
def test_a_timeout_can_be_a_typed_failure(env_factory: Serve, declared: type[Exception]) -> None:
    """A declared timeout reaches the handler as itself, with the step and the limit."""
    service = restate.Service("TypedTimeout")

    @durable_step(timeout=SHORT, raises=(declared,))
    async def work() -> None:
        await asyncio.Event().wait()

    @service.handler()
    async def run(ctx: restate.Context) -> list[Any]:
        try:
            await work()
        except StepTimeoutError as error:
            return [error.step, error.seconds]
        return []

    assert ["work", 0.05] == env_factory(service).call("TypedTimeout", "run")


def test_a_timeout_of_the_bodys_own_is_the_bodys(env_factory: Serve) -> None:
    """What the body raises is not taken for the step's time limit."""

    @durable_step(timeout=timedelta(hours=1), retry=RetryPolicy(max_attempts=1))
    async def work() -> None:
        async with asyncio.timeout(0.001):
            await asyncio.Event().wait()

    with pytest.raises(InvocationFailed, match=r"^500: TimeoutError"):
        env_factory(service_with(work)).call("Retries", "run")
