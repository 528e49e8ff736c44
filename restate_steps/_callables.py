"""Inspect callables: their name, signature and result type."""

from __future__ import annotations

import asyncio
import collections.abc
import contextlib
import functools
import inspect
import string
import sys
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any, Final, NoReturn, cast

from restate_steps._not_awaited import forgotten_await, not_awaited
from restate_steps.codec import PLAIN_JSON
from restate_steps.errors import StepDefinitionError

__all__ = [
    "UNRESOLVED",
    "copy_metadata",
    "innermost",
    "is_async",
    "journal_names",
    "mark_as_coroutine_function",
    "name_of",
    "names_around",
    "reject_uncallable",
    "return_type",
]

UNRESOLVED: Final = object()
"""The result type of a callable whose annotation names something that is not defined yet."""


def _untyped(value: Any) -> Any:
    # isinstance() narrows a generic class to one with unknown parameters, which strict type checkers reject.
    return value


def innermost(function: Any) -> Any:
    """Return the function inside partials, methods, classmethods and staticmethods."""
    while True:
        if isinstance(function, functools.partial):
            function = _untyped(function).func
        elif isinstance(function, (types.MethodType, classmethod, staticmethod)):
            function = _untyped(function).__func__
        else:
            return function


def _code_of(function: Any) -> Any:
    """Return the code that a call runs: an object's ``__call__``, or the function itself."""
    inner = innermost(function)
    if inspect.isroutine(inner) or isinstance(inner, type):
        return inner
    return cast(Any, type(inner)).__call__


def is_async(function: Any) -> bool:
    """Return whether a callable is a coroutine function, or has one as its ``__call__``."""
    return inspect.iscoroutinefunction(_code_of(function))


def name_of(function: Any) -> str:
    """Return the name of a callable, or of its class."""
    inner = innermost(function)
    name: str = getattr(inner, "__name__", type(inner).__name__)
    return "lambda" if name == "<lambda>" else name


def reject_uncallable(function: Any) -> None:
    """Reject an object that cannot be the body of a step.

    Raises:
        StepDefinitionError: The object is not callable, or it is a generator function.
    """
    inner = innermost(function)
    if not callable(inner):
        raise StepDefinitionError(f"durable_step expected a callable, got {function!r}.")
    code = _code_of(function)
    if inspect.isgeneratorfunction(code) or inspect.isasyncgenfunction(code):
        raise StepDefinitionError(
            f"{name_of(function)} is a generator, and a step has one result. Collect the values and return them as a "
            "list, or make each of them a step."
        )


def copy_metadata(step: Any, function: Any, namespace: dict[str, Any] | None) -> None:
    """Give a step the name, docstring, annotations and signature of its function."""
    code = _code_of(function)
    # Do not copy the attributes of an object or a class: they could hide a method of the step.
    functools.update_wrapper(step, code, updated=("__dict__",) if inspect.isroutine(code) else ())
    step.__wrapped__ = function
    step.__name__ = name_of(function)
    if code is not innermost(function):
        step.__qualname__ = type(innermost(function)).__qualname__
        step.__doc__ = code.__doc__ or type(innermost(function)).__doc__
    if not hasattr(inspect.unwrap(step), "__globals__"):
        # Resolve annotations now: the module that defines their names cannot be found later.
        with contextlib.suppress(NameError, AttributeError, TypeError):
            step.__annotations__ = typing.get_type_hints(code, localns=namespace, include_extras=True)


def journal_names(name: str | Callable[..., str] | None, function: Any) -> Callable[..., str]:
    """Return a function that maps the arguments of a call to its name in the journal."""
    default = name_of(function)
    if isinstance(name, str):
        signature = _check_template(name, function)
        if signature is not None:
            return functools.partial(_fill_in, default, name, signature)
        default = name.format()
    elif name is not None:
        return functools.partial(_call_name_function, default, name)
    return lambda *args, **kwargs: default


def _fill_in(step: str, template: str, signature: inspect.Signature, /, *args: Any, **kwargs: Any) -> str:
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    try:
        name = template.format_map(bound.arguments)
    except Exception as error:
        if (forgotten := forgotten_await(error)) is not None:
            raise forgotten from error
        problem = f"{type(error).__name__}: {error}"
        raise StepDefinitionError(f"name {template!r} of step {step!r} cannot be filled in: {problem}.") from error
    if "<coroutine object " in name:
        # The address in it would differ on a replay.
        for value in bound.arguments.values():
            if (forgotten := not_awaited(value)) is not None:
                raise forgotten
    return name


def _call_name_function(step: str, function: Callable[..., str], /, *args: Any, **kwargs: Any) -> str:
    name = function(*args, **kwargs)
    if not isinstance(name, str) or not name:
        raise StepDefinitionError(
            f"the name function of step {step!r} returned {name!r}. It must return a string that is not empty."
        )
    return name


def _check_template(template: str, function: Any) -> inspect.Signature | None:
    """Return the signature that fills in a name template, or None if it has no fields."""
    try:
        fields = list(_fields(template))
    except ValueError as error:
        raise StepDefinitionError(f"name {template!r} is not a valid template: {error}.") from error
    if not fields:
        return None
    binds = isinstance(function, (classmethod, staticmethod))
    signature = inspect.signature(_untyped(function).__func__ if binds else function)
    for field in fields:
        root = field.partition(".")[0].partition("[")[0]
        if root not in signature.parameters:
            raise StepDefinitionError(
                f"name {template!r} uses {{{field}}}, but {name_of(function)} has no parameter {root!r} "
                f"(it has: {', '.join(signature.parameters) or 'none'})."
            )
    return signature


def _fields(template: str) -> Iterator[str]:
    for _, field, spec, conversion in string.Formatter().parse(template):
        if field is None:
            continue
        if conversion not in (None, "a", "r", "s"):
            raise ValueError(f"unknown conversion {conversion!r}")
        yield field
        yield from _fields(spec or "")


def names_around(function: Any, caller: types.FrameType) -> dict[str, Any] | None:
    """Return the local names that a function's annotations may refer to, if it is decorated where it is defined."""
    if getattr(inspect.unwrap(_code_of(function)), "__globals__", None) is not caller.f_globals:
        return None
    names = dict(caller.f_locals)
    # The locals of a class body lack the names of the enclosing function, which an annotation in it may use.
    while not caller.f_code.co_flags & inspect.CO_OPTIMIZED and caller.f_code.co_name != "<module>" and caller.f_back:
        caller = caller.f_back
        names = {**caller.f_locals, **names}
    return names


def return_type(function: Any, namespace: dict[str, Any] | None) -> Any:
    """Return the declared result type; ``PLAIN_JSON`` if there is none, ``UNRESOLVED`` if a name in it is undefined."""
    inner = innermost(function)
    if isinstance(inner, type):
        return cast("type[Any]", inner)
    code = _code_of(function)
    # Resolve only the result's annotation: the parameters' may use names that are imported under TYPE_CHECKING.
    names = getattr(inspect.unwrap(code), "__globals__", {})
    try:
        annotations = {"return": getattr(code, "__annotations__", {}).get("return", Any)}
        alone = types.SimpleNamespace(__annotations__=annotations, __type_params__=getattr(code, "__type_params__", ()))
        hint = typing.get_type_hints(alone, names, namespace, include_extras=True)["return"]
    except (NameError, AttributeError):
        return UNRESOLVED
    except (TypeError, SyntaxError) as error:
        raise StepDefinitionError(
            f"the return annotation of step {name_of(function)!r} is not a type: {error}"
        ) from error
    if not inspect.iscoroutinefunction(code) and typing.get_origin(hint) in (
        collections.abc.Awaitable,
        collections.abc.Coroutine,
    ):
        hint = typing.get_args(hint)[-1]
    return PLAIN_JSON if hint in (Any, object, NoReturn, typing.Never) else hint


def mark_as_coroutine_function(step: Any) -> None:
    """Make ``iscoroutinefunction`` return True for a step."""
    if sys.version_info >= (3, 12):
        inspect.markcoroutinefunction(step)
    else:
        step._is_coroutine = getattr(asyncio.coroutines, "_is_coroutine", None)
