"""What a decorator takes, and how it refuses the rest where it is written."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import pickle
import pydoc
from datetime import timedelta
from typing import Any, get_overloads, get_type_hints

import pytest
import restate
from restate.exceptions import RetryableError

from restate_steps import DurableStep, RetryPolicy, StepDefinitionError, durable_step, run_step
from restate_steps.options import StepOptions
from restate_steps.step import UNCHANGED
from tests.support.stable_ids import stable_id


class Connection:
    """Something that no codec can keep."""


class Declined(Exception):
    """A failure of the domain."""


async def charge(order: str, amount: int = 1) -> str:
    return f"{order} {amount}"


def decorate(**options: Any) -> DurableStep[[str, int], str]:
    """Decorate `charge` with options that a type checker would refuse."""
    step: DurableStep[[str, int], str] = durable_step(**options)(charge)
    return step


async def async_answer(*given: Any) -> Any:
    """An answer that comes too late for an option."""


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"name": 5}, r"name must be a string, a template such as 'charge \{order\.id\}', or a function .*; got 5"),
    ({"name": ""}, "name must not be empty"),
    ({"name": "  "}, "name must not be empty"),
    ({"name": "charge {ordre}"}, r"uses \{ordre\}, but charge has no parameter 'ordre' \(it has: order, amount\)"),
    ({"name": "charge {ordre.id}"}, r"uses \{ordre\.id\}, but charge has no parameter 'ordre'"),
    ({"name": "charge {ordre[0]}"}, r"uses \{ordre\[0\]\}, but charge has no parameter 'ordre'"),
    ({"name": "charge {}"}, r"uses \{\}, but charge has no parameter ''"),
    ({"name": "charge {order:{width}}"}, r"uses \{width\}, but charge has no parameter 'width'"),
    ({"name": "charge {order"}, r"name 'charge \{order' is not a valid template: "),
    ({"name": "charge }"}, r"name 'charge \}' is not a valid template: "),
    ({"name": "charge {order!x}"}, r"name 'charge \{order!x\}' is not a valid template: .*'x'"),
    ({"retry": 3}, r"retry must be a RetryPolicy, got 3"),
    ({"retry": None}, r"retry must be a RetryPolicy, got None"),
    (
        {"timeout": "30 s"},
        r"timeout must be a number of seconds or a datetime\.timedelta, got '30 s'\. Write timeout=5",
    ),
    ({"timeout": True}, r"timeout must be a number of seconds or a datetime\.timedelta, got True"),
    ({"timeout": 0}, "timeout must be longer than zero, got 0"),
    ({"timeout": -1.5}, r"timeout must be longer than zero, got -1\.5"),
    ({"timeout": float("nan")}, "timeout must be a finite number of seconds, got nan"),
    ({"timeout": float("inf")}, "timeout must be a finite number of seconds, got inf"),
    ({"timeout": 1e300}, r"timeout is longer than a datetime\.timedelta can be, got 1e\+300"),
    ({"timeout": 10**400}, r"timeout is longer than a datetime\.timedelta can be"),
    ({"timeout": timedelta(0)}, r"timeout must be longer than zero, got datetime\.timedelta\(0\)"),
    ({"timeout": timedelta(seconds=-1)}, "timeout must be longer than zero"),
    ({"raises": [Declined]}, r"raises must be an exception class or a tuple of them; got \[<class .*Write raises=Val"),
    ({"raises": ("Declined",)}, "raises must be an exception class or a tuple of them; got 'Declined'"),
    ({"raises": Declined()}, r"raises must be an exception class or a tuple of them; got Declined\(\)"),
    ({"raises": None}, "raises must be an exception class or a tuple of them; got None"),
    ({"raises": (KeyboardInterrupt,)}, "raises must be an exception class .*; got <class 'KeyboardInterrupt'>"),
    ({"raises": Exception}, "raises must not contain Exception, which has a special meaning for Restate"),
    ({"raises": (Exception,)}, "raises must not contain Exception, which has a special meaning for Restate"),
    ({"raises": (restate.TerminalError,)}, "raises must not contain TerminalError"),
    ({"raises": (RetryableError,)}, "raises must not contain RetryableError"),
    ({"codec": object()}, r"codec must have a dump\(\) method"),
    ({"verify": "yes"}, "verify must be True, False or None, got 'yes'"),
    ({"retry_on": 5}, "retry_on must be an exception class, a tuple of them, or a function .*; got 5"),
    ({"retry_on": int}, "retry_on must be an exception class, .*; got <class 'int'>"),
    ({"retry_on": (ValueError, "x")}, "retry_on must be an exception class"),
    ({"no_retry_on": "ValueError"}, "no_retry_on must be an exception class, .*; got 'ValueError'"),
    ({"name": async_answer}, "name must be a plain function, because its result is needed at once"),
    ({"retry_on": async_answer}, "retry_on must be a plain function, because its result is needed at once"),
    ({"returns": Connection}, r"step 'charge': Connection cannot be encoded: .* codec="),
    ({"returns": 5}, "step 'charge'.* cannot be encoded"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=stable_id)
def test_an_option_that_cannot_work_is_refused_at_decoration(options: dict[str, Any], message: str) -> None:
    """The error comes from the line of the decorator, and says what is wrong."""
    with pytest.raises(StepDefinitionError, match=message):
        decorate(**options)


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=stable_id)
def test_with_options_refuses_what_the_decorator_refuses(options: dict[str, Any], message: str) -> None:
    """A copy for one call site is checked like the original."""
    with pytest.raises(StepDefinitionError, match=message):
        decorate().with_options(**options)


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=stable_id)
async def test_run_step_refuses_what_the_decorator_refuses(options: dict[str, Any], message: str) -> None:
    """An undecorated step is checked before its body runs."""
    ran: list[str] = []

    async def charge(order: str, amount: int = 1) -> str:
        ran.append(order)
        return order

    with pytest.raises(StepDefinitionError, match=message):
        await run_step(charge, "a", 1, **options)

    assert [] == ran


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_attempts": 0}, r"max_attempts must be an integer of at least 1 .*, got 0"),
        ({"max_attempts": 2**32}, "max_attempts must be an integer of at least 1 and less than 4294967296"),
        ({"max_attempts": 1.5}, "max_attempts must be an integer"),
        ({"max_attempts": True}, r"max_attempts must be an integer of at least 1 .*, got True"),
        ({"max_duration": float("nan")}, "max_duration must be a finite number of seconds, got nan"),
        ({"max_duration": False}, r"max_duration must be a number of seconds or a datetime\.timedelta, got False"),
        ({"max_duration": timedelta(0)}, "max_duration must be longer than zero"),
        ({"initial_retry_interval": -1}, "initial_retry_interval must be longer than zero, got -1"),
        ({"max_retry_interval": "1s"}, r"max_retry_interval must be a number of seconds or a .*timedelta, got '1s'"),
        ({"retry_interval_factor": 0.5}, r"retry_interval_factor must be a finite number of at least 1, got 0\.5"),
        ({"retry_interval_factor": float("nan")}, "retry_interval_factor must be a finite number .*, got nan"),
        ({"retry_interval_factor": float("inf")}, "retry_interval_factor must be a finite number .*, got inf"),
        ({"retry_interval_factor": True}, "retry_interval_factor must be a finite number of at least 1, got True"),
        ({"retry_interval_factor": "2"}, "retry_interval_factor must be a finite number of at least 1, got '2'"),
    ],
    ids=str,
)
def test_a_retry_policy_out_of_range_is_refused(fields: dict[str, Any], message: str) -> None:
    """A policy is checked where it is made."""
    with pytest.raises(StepDefinitionError, match=message):
        RetryPolicy(**fields)


def test_field_names_are_those_of_run_options() -> None:
    """Whoever knows `restate.RunOptions` knows a retry policy."""
    ours = {field.name for field in dataclasses.fields(RetryPolicy)}

    assert ours <= {field.name for field in dataclasses.fields(restate.RunOptions)}


def test_no_limit_is_set_unless_asked_for() -> None:
    """Without a policy the server's own decides, as the rest of the ecosystem expects."""
    assert all(getattr(RetryPolicy(), field.name) is None for field in dataclasses.fields(RetryPolicy))
    assert StepOptions().timeout is None


def options_of(function: Any) -> dict[str, tuple[Any, Any]]:
    """The type and the default of each option in a signature."""
    types = get_type_hints(function)
    return {
        name: (types[name], parameter.default)
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }


OPTIONS = {
    field.name: (get_type_hints(StepOptions)[field.name], field.default)
    for field in dataclasses.fields(StepOptions)
    if field.init
}


def test_signatures_show_each_option_with_its_type_and_default() -> None:
    """`help()`, editors and the reference show what there is, and what applies if it is left out."""
    functions = [durable_step, run_step, *get_overloads(durable_step)]

    assert [OPTIONS] * 5 == [options_of(function) for function in functions]


def test_with_options_shows_each_option_with_its_type() -> None:
    """An option that is left out of a copy is unchanged, and the signature says so."""
    assert {name: (type_, UNCHANGED) for name, (type_, _) in OPTIONS.items()} == options_of(DurableStep.with_options)
    assert "UNCHANGED" == repr(UNCHANGED)


@pytest.mark.parametrize("function", [durable_step, run_step], ids=stable_id)
def test_every_option_is_documented(function: Any) -> None:
    """The docstring describes each option."""
    documentation = inspect.getdoc(function) or ""

    assert [] == [name for name in OPTIONS if f"\n    {name}: " not in documentation]


def test_help_shows_the_options() -> None:
    """What `help(durable_step)` prints names each option with its type and default."""
    # Python 3.13 has a line for each parameter, and 3.14 no quotes.
    text = " ".join(pydoc.plain(pydoc.render_doc(durable_step)).replace("'", "").split())

    assert "retry: RetryPolicy = RetryPolicy(), timeout: timedelta | float | None = None" in text
    assert "codec: Codec = JsonCodec()" in text
    assert "Unpack" not in text


def test_an_unknown_option_is_refused() -> None:
    """A misspelled option is an error at the line that has it."""
    options: Any = {"retries": 3}
    for call in (durable_step, durable_step(charge).with_options, functools.partial(run_step, charge)):
        with pytest.raises(TypeError, match="unexpected keyword argument 'retries'"):
            call(**options)


async def test_a_function_and_its_options_in_one_call() -> None:
    """As `dataclass(cls, frozen=True)` does, `durable_step(function, name=...)` decorates."""
    step = durable_step(charge, name="charge {order}", timeout=5)

    assert "a 2" == await step("a", 2)
    assert "<durable_step charge>" == repr(step)
    with pytest.raises(StepDefinitionError, match="charge has no parameter 'ordre'"):
        durable_step(charge, name="charge {ordre}")


def test_durations_are_seconds_or_timedeltas() -> None:
    """A number of seconds means the same as a timedelta."""
    assert 5.0 == StepOptions(timeout=5).seconds == StepOptions(timeout=timedelta(seconds=5)).seconds
    assert RetryPolicy(max_duration=1.5) == RetryPolicy(max_duration=timedelta(milliseconds=1500))
    assert timedelta(seconds=2) == RetryPolicy(initial_retry_interval=2).initial_retry_interval
    assert hash(RetryPolicy(max_retry_interval=60)) == hash(RetryPolicy(max_retry_interval=timedelta(minutes=1)))


def test_raises_is_a_class_or_a_tuple() -> None:
    """One class needs no tuple, as in `except`."""
    assert (Declined,) == StepOptions(raises=Declined).declared == StepOptions(raises=(Declined,)).declared
    assert () == StepOptions().declared


def test_a_policy_shows_what_is_set() -> None:
    """The default policy is short in signatures."""
    assert "RetryPolicy()" == repr(RetryPolicy())
    assert "RetryPolicy(max_attempts=3, max_duration=datetime.timedelta(seconds=5))" == repr(
        RetryPolicy(max_attempts=3, max_duration=5)
    )
    assert RetryPolicy(max_attempts=3) == dataclasses.replace(RetryPolicy(), max_attempts=3)
    assert RetryPolicy(max_duration=5) == pickle.loads(pickle.dumps(RetryPolicy(max_duration=5)))


@pytest.mark.parametrize("thing", [5, "charge", property(lambda self: 1)], ids=stable_id)
def test_what_cannot_be_called_is_refused(thing: Any) -> None:
    """Something that is no function is refused where it is decorated."""
    with pytest.raises(StepDefinitionError, match="durable_step expected a callable, got "):
        durable_step(thing)


def test_a_step_is_not_decorated_twice() -> None:
    """Two decorators would be two steps in one, so the second is refused with the way to change options."""
    with pytest.raises(StepDefinitionError, match=r"is already a step; use with_options\(\)"):
        durable_step(durable_step(charge))


def test_generators_are_refused() -> None:
    """Neither a generator nor an async generator has one result to record, however it is wrapped."""

    def lines() -> Any:
        yield 1

    async def pages() -> Any:
        yield 1

    class Reader:
        async def __call__(self) -> Any:
            yield 1

        @staticmethod
        def read() -> Any:
            yield 1

    for function in (lines, pages, Reader(), Reader.__dict__["read"]):
        with pytest.raises(StepDefinitionError, match=r"is a generator, and a step has one result. Collect the values"):
            durable_step(function)


def test_a_result_type_that_cannot_be_encoded_is_refused() -> None:
    """An annotation that no value could be decoded to is an error before anything runs."""

    async def connect() -> Connection:
        raise NotImplementedError

    with pytest.raises(StepDefinitionError, match=r"step 'connect': Connection cannot be encoded: .* codec="):
        durable_step(connect)


def test_another_codec_decides_what_can_be_encoded() -> None:
    """The default codec's opinion of a type does not matter where another is given."""

    class AnyCodec:
        def dump(self, type: Any, value: Any) -> bytes:
            return b"x"

        def load(self, type: Any, data: bytes) -> Any:
            return None

    async def connect() -> Connection:
        raise NotImplementedError

    assert "<durable_step connect>" == repr(durable_step(codec=AnyCodec())(connect))


def test_a_policy_is_a_value() -> None:
    """Two policies with the same fields are equal, and none can be changed after it was checked."""
    policy = RetryPolicy(max_attempts=3)

    assert RetryPolicy(max_attempts=3) == policy
    with pytest.raises(dataclasses.FrozenInstanceError):
        policy.max_attempts = 0  # type: ignore[misc]
