"""What can be a step, and that a step looks like what it was made of."""

from __future__ import annotations
import __future__

import contextvars
import functools
import inspect
import threading
import typing
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, TypeVar

import pytest
import restate
from restate.exceptions import RetryableError

from restate_steps import DurableStep, StepDefinitionError, durable_step, run_step
from tests.support.harness import Env, InvocationFailed

Serve = Callable[..., Env]
T = TypeVar("T")

RAN: list[Any] = []
CURRENT: contextvars.ContextVar[int] = contextvars.ContextVar("CURRENT", default=0)


@dataclass(frozen=True)
class Order:
    id: str


def half(n: int) -> int:
    RAN.append(n)
    return n // 2


async def async_half(n: int) -> int:
    return half(n)


class Halver:
    """An object that is called."""

    def __init__(self, by: int) -> None:
        self.by = by
        self.start = "hides no method of the step"

    async def __call__(self, n: int) -> int:
        """Divide."""
        RAN.append(n)
        return n // self.by


class PlainHalver:
    def __call__(self, n: int) -> int:
        return half(n)


class Shop:
    divisor = 2

    def __init__(self, divisor: int = 2) -> None:
        self.divisor = divisor

    @durable_step
    async def method(self, n: int) -> int:
        """Divide by what the instance says."""
        RAN.append(n)
        return n // self.divisor

    @durable_step
    def plain_method(self, n: int) -> int:
        RAN.append(n)
        return n // self.divisor

    @durable_step
    @classmethod
    async def class_method(cls, n: int) -> int:
        RAN.append(n)
        return n // cls.divisor

    @durable_step
    @staticmethod
    async def static_method(n: int) -> int:
        return half(n)

    @durable_step()
    @staticmethod
    def plain_static_method(n: int) -> int:
        return half(n)

    async def undecorated(self, n: int) -> int:
        RAN.append(n)
        return n // self.divisor

    @durable_step
    async def __call__(self, n: int) -> int:
        RAN.append(n)
        return n // self.divisor


class Box(Generic[T]):
    def __init__(self, content: T) -> None:
        self.content = content

    @durable_step
    async def look(self) -> T:
        RAN.append(self.content)
        return self.content


@durable_step
async def first(items: list[T]) -> T:
    RAN.append(items)
    return items[0]


CALLABLES: dict[str, Callable[[], Awaitable[Any]]] = {
    "async function": lambda: durable_step(async_half)(84),
    "async function, called form": lambda: durable_step()(async_half)(n=84),
    "plain function": lambda: durable_step(half)(84),
    "lambda that returns a coroutine": lambda: durable_step(lambda n: async_half(n))(84),
    "lambda": lambda: durable_step(lambda n: half(n))(84),
    "partial of an async function": lambda: durable_step(functools.partial(async_half, 84))(),
    "partial of a plain function": lambda: durable_step(functools.partial(half, n=84))(),
    "partial of a partial of an object": lambda: durable_step(functools.partial(functools.partial(Halver(2)), 84))(),
    "object with async __call__": lambda: durable_step(Halver(2))(84),
    "object with plain __call__": lambda: durable_step(PlainHalver())(84),
    "object whose __call__ is a step": lambda: Shop()(84),
    "method": lambda: Shop().method(84),
    "method of the class": lambda: Shop.method(Shop(), 84),
    "plain method": lambda: Shop(2).plain_method(84),
    "classmethod of the class": lambda: Shop.class_method(84),
    "classmethod of an instance": lambda: Shop(0).class_method(84),
    "staticmethod of the class": lambda: Shop.static_method(84),
    "staticmethod of an instance": lambda: Shop().static_method(84),
    "plain staticmethod": lambda: Shop.plain_static_method(84),
    "bound method": lambda: durable_step(Shop().undecorated)(84),
    "generic function": lambda: first([42, 43]),
    "method of a generic class": lambda: Box(42).look(),
    "run_step of a function": lambda: run_step(async_half, 84),
    "run_step of a method": lambda: run_step(Shop().undecorated, 84, name="half of {n}"),
    "run_step of a lambda": lambda: run_step(lambda n: async_half(n), 84),
}


@pytest.mark.parametrize("kind", CALLABLES)
def test_anything_callable_can_be_a_step(env_factory: Serve, kind: str) -> None:
    """Every kind of callable runs once, and a replay has its result."""
    RAN.clear()
    seen: list[Any] = []
    service = restate.Service("Callables")

    @service.handler()
    async def run(ctx: restate.Context) -> Any:
        seen.append(await CALLABLES[kind]())
        if len(seen) == 1:
            raise RetryableError("once more, as a replay", retry_after=timedelta(milliseconds=1))
        return seen[-1]

    env = env_factory(service)

    assert 42 == env.call("Callables", "run")
    assert {42} == set(seen)
    assert len(seen) >= 2
    assert 1 == len(RAN)


@pytest.mark.parametrize("kind", CALLABLES)
async def test_a_step_outside_a_handler_is_a_plain_call(kind: str) -> None:
    """Where nothing can be recorded, every kind of callable is just called."""
    RAN.clear()

    assert 42 == await CALLABLES[kind]()
    assert 42 == await CALLABLES[kind]()
    assert 2 == len(RAN)


def test_a_class_can_be_a_step(env_factory: Serve) -> None:
    """A class is called like a function, and is the type of its result."""
    service = restate.Service("Classes")

    @service.handler()
    async def run(ctx: restate.Context) -> bool:
        return Order("a") == await durable_step(Order)("a")

    assert True is env_factory(service).call("Classes", "run")


async def test_a_plain_call_returns_the_value_itself() -> None:
    """Outside a handler nothing is encoded, so even what has no encoding comes back."""
    lock = threading.Lock()

    @durable_step
    async def untyped() -> Any:
        return lock

    assert lock is await untyped()


def test_a_plain_function_runs_in_a_thread_with_the_context_variables(env_factory: Serve) -> None:
    """A body that blocks does not block the handlers, and sees the variables that the handler has set."""
    service = restate.Service("Threads")

    @durable_step
    def look() -> list[int]:
        return [threading.get_ident(), CURRENT.get()]

    @service.handler()
    async def run(ctx: restate.Context, value: int) -> list[int]:
        CURRENT.set(value)
        return [threading.get_ident(), *await look()]

    loop, thread, value = env_factory(service).call("Threads", "run", 7)

    assert loop != thread
    assert 7 == value


def test_an_async_function_sees_the_context_variables(env_factory: Serve) -> None:
    """A body sees the variables that the handler has set."""
    service = restate.Service("Variables")

    @durable_step
    async def look() -> int:
        return CURRENT.get()

    @service.handler()
    async def run(ctx: restate.Context, value: int) -> int:
        CURRENT.set(value)
        return await look()

    assert 7 == env_factory(service).call("Variables", "run", 7)


SOURCE = """
import typing
from dataclasses import dataclass
from typing import Annotated, TypeVar
from restate_steps import durable_step

T = TypeVar("T")

class Shop:
    async def method(self, order: "list[str]", *, rush: bool = False) -> "dict[str, int]":
        '''Document the method.'''

    @classmethod
    async def class_method(cls, order: int) -> str:
        '''Document the classmethod.'''

    @staticmethod
    async def static_method(order: int) -> str:
        '''Document the staticmethod.'''

async def function(order: Annotated[int, "an id"], /, *rest: str, rush: bool = False, **more: float) -> list[int]:
    '''Document the function.

    Args:
        order: What was ordered.
    '''

def plain(order: T, factor: int = 2) -> T:
    '''Document the plain function.'''

function.marked = "by another decorator"
"""


@pytest.fixture(params=["annotations as objects", "annotations as text"])
def module(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The same module with and without ``from __future__ import annotations``."""
    flags = __future__.annotations.compiler_flag if request.param.endswith("text") else 0
    names: dict[str, Any] = {"__name__": "a_module"}
    exec(compile(SOURCE, "a_module.py", "exec", flags=flags, dont_inherit=True), names)
    return names


@pytest.mark.parametrize("name", ["function", "plain"])
@pytest.mark.parametrize("decorate", [durable_step, durable_step(name="other")], ids=["bare", "called"])
def test_a_step_looks_like_its_function(module: dict[str, Any], name: str, decorate: Any) -> None:
    """Signature, names, docstring, annotations and attributes are those of the function."""
    function = module[name]
    step = decorate(function)

    assert inspect.signature(function) == inspect.signature(step)
    assert inspect.signature(function, eval_str=True) == inspect.signature(step, eval_str=True)
    for attribute in ("__name__", "__qualname__", "__module__", "__doc__", "__annotations__"):
        assert getattr(function, attribute) == getattr(step, attribute)
    assert typing.get_type_hints(function) == typing.get_type_hints(step)
    hints = typing.get_type_hints(function, include_extras=True)
    assert hints == typing.get_type_hints(step, include_extras=True)
    assert getattr(function, "marked", None) == getattr(step, "marked", None)
    assert function is inspect.unwrap(step)


@pytest.mark.parametrize("name", ["method", "class_method", "static_method"])
def test_a_bound_step_looks_like_the_bound_method(module: dict[str, Any], name: str) -> None:
    """What a class or an instance hands out has the signature without the receiver."""
    shop = module["Shop"]
    expected = getattr(shop(), name)
    stepped = type("Shop", (), {name: durable_step(shop.__dict__[name])})
    bound = getattr(stepped(), name)

    assert inspect.signature(expected) == inspect.signature(bound)
    assert (expected.__name__, expected.__doc__) == (bound.__name__, bound.__doc__)
    assert typing.get_type_hints(expected) == typing.get_type_hints(bound)
    if name != "method":
        assert inspect.signature(expected) == inspect.signature(getattr(stepped, name))


def test_partials_and_objects_look_like_what_they_call(module: dict[str, Any]) -> None:
    """Where there is no function to look like, its name, docstring and types come from what is called in the end."""
    partial = durable_step(functools.partial(module["function"], 1))
    called = durable_step(Halver(2))

    assert ("function", module["function"].__doc__) == (partial.__name__, partial.__doc__)
    assert ["rest", "rush", "more"] == list(inspect.signature(partial).parameters)
    assert typing.get_type_hints(module["function"]) == typing.get_type_hints(partial)
    assert ("Halver", "Halver", "Divide.") == (called.__name__, called.__qualname__, called.__doc__)
    assert ["n"] == list(inspect.signature(called).parameters)
    assert {"n": int, "return": int} == typing.get_type_hints(called)


def test_a_step_is_known_as_a_coroutine_function() -> None:
    """Frameworks that choose between awaiting and a thread choose awaiting, for a plain function too."""
    step = durable_step(half)

    assert inspect.iscoroutinefunction(step.__call__)
    if hasattr(inspect, "markcoroutinefunction"):
        assert inspect.iscoroutinefunction(step)


def test_attributes_of_an_object_hide_no_method_of_the_step() -> None:
    """An object that is called may have any attributes."""
    step = durable_step(Halver(2))

    assert inspect.ismethod(step.start)


def test_a_step_says_what_it_is() -> None:
    """The representation names the function."""
    assert "<durable_step half>" == repr(durable_step(half))
    assert "<durable_step lambda>" == repr(durable_step(lambda: 1))


def test_annotations_may_name_local_classes(env_factory: Serve) -> None:
    """Names of the function around a step are found, also through the body of a class, although they are text."""

    @dataclass
    class Local:
        id: str

    @durable_step
    async def make() -> Local:
        return Local("a")

    class Maker:
        @durable_step
        async def make(self) -> list[Local]:
            return [Local("b")]

    service = restate.Service("LocalClasses")

    @service.handler()
    async def run(ctx: restate.Context) -> list[bool]:
        return [Local("a") == await make(), [Local("b")] == await Maker().make()]

    assert typing.get_type_hints(make, localns={"Local": Local}) == {"return": Local}
    assert [True, True] == env_factory(service).call("LocalClasses", "run")


def test_a_name_means_what_it_means_where_the_function_is_defined(module: dict[str, Any]) -> None:
    """A function from elsewhere keeps its types, whatever the same names stand for where it is decorated."""
    source = "class Order: pass\nasync def find() -> 'Order': return Order()"
    exec(compile(source, "elsewhere.py", "exec", dont_inherit=True), module)

    @dataclass
    class Order:
        """Not the one that is meant, which cannot be encoded."""

    with pytest.raises(StepDefinitionError, match="Order cannot be encoded"):
        durable_step(module["find"])


def test_a_type_may_be_defined_after_the_step(env_factory: Serve) -> None:
    """An annotation that names something further down is looked up when the step is first called."""
    service = restate.Service("Later")

    @service.handler()
    async def run(ctx: restate.Context) -> bool:
        return DefinedLater(3) == await uses_what_comes_later()

    assert True is env_factory(service).call("Later", "run")


@durable_step
async def uses_what_comes_later() -> DefinedLater:
    return DefinedLater(3)


@dataclass
class DefinedLater:
    n: int


def test_only_the_result_needs_a_type_at_run_time(env_factory: Serve) -> None:
    """Parameters may be annotated with what is imported for type checkers alone."""
    service = restate.Service("ParameterTypes")

    @durable_step
    async def count(order: OnlyForTypeCheckers) -> tuple[int, ...]:  # type: ignore[name-defined]  # noqa: F821
        return (1, 2)

    @service.handler()
    async def run(ctx: restate.Context) -> bool:
        return (1, 2) == await count(None)

    assert True is env_factory(service).call("ParameterTypes", "run")


def test_an_unknown_result_type_stops_the_handler_before_the_body_runs(env_factory: Serve) -> None:
    """What could not be recorded is not run; the error says what is missing, and a redeploy can fix it."""
    ran: list[int] = []
    service = restate.Service("Unknown")

    @durable_step
    async def make() -> OnlyForTypeCheckers:  # type: ignore[name-defined]  # noqa: F821
        ran.append(1)

    @service.handler()
    async def run(ctx: restate.Context) -> None:
        try:
            await make()
        except StepDefinitionError as error:
            raise restate.TerminalError(str(error)) from error

    with pytest.raises(InvocationFailed, match=r"annotation of step 'make' names something .* or pass returns="):
        env_factory(service).call("Unknown", "run")
    assert [] == ran


def test_a_generic_result_needs_its_type_where_it_is_not_plain(env_factory: Serve) -> None:
    """A type variable says nothing, so a value that JSON alone cannot bring back is refused, or declared per call."""
    service = restate.Service("Generic")

    @service.handler()
    async def declared(ctx: restate.Context) -> bool:
        return Order("a") == await first.with_options(returns=Order)([Order("a")])

    @service.handler()
    async def undeclared(ctx: restate.Context) -> None:
        await first([Order("a")])

    env = env_factory(service)

    assert True is env.call("Generic", "declared")
    with pytest.raises(InvocationFailed, match=r"step 'first' ran, .* as T: at \$: .* Order, .* returns="):
        env.call("Generic", "undeclared")


def test_classes_keep_their_steps_apart() -> None:
    """Each instance has its own bound step, and the class keeps the one that was declared."""
    one, two = Shop(1), Shop(2)

    assert isinstance(Shop.method, DurableStep)
    assert one.method is not two.method
    assert (one, two) == (inspect.unwrap(one.method).__self__, inspect.unwrap(two.method).__self__)
