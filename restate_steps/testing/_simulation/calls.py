"""A client's calls: their target, and their values in the handler's own encoding."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from inspect import Parameter, signature
from typing import Any, Final, TypeAlias, TypeVar, cast

from pydantic_core import PydanticSerializationError, to_jsonable_python
from restate import JournalValueCodec
from restate.handler import Handler, handler_from_callable

from restate_steps.server._journal import decoded
from restate_steps.testing._errors import SimulationError
from restate_steps.testing._simulation.manifest import Target

__all__ = ["NOTHING", "A", "HandlerOf", "HandlerRef", "encoded", "json_of", "output_of", "resolve"]

A = TypeVar("A")

HandlerRef: TypeAlias = Callable[..., Any] | str
"""A handler: the decorated function, or ``"Service/handler"``."""

HandlerOf: TypeAlias = Callable[[Any, A], Awaitable[object]] | Callable[[Any], Awaitable[object]] | str
"""A handler that takes an ``A``, or nothing, for the type checker."""

NOTHING: Final[Any] = ...
"""The default of an argument that may be omitted."""


def resolve(handler: HandlerRef, key: str | None) -> tuple[Target, Handler[Any, Any] | None]:
    """Return the target of a call, and the handler if it was passed as a function."""
    if isinstance(handler, str):
        service, _, name = handler.partition("/")
        if not name or "/" in name:
            raise SimulationError(f"{handler!r} is not the name of a handler. Write it as 'Service/handler'.")
        return Target(service, name, key), None
    try:
        known: Handler[Any, Any] = handler_from_callable(cast(Any, handler))
    except (ValueError, TypeError):
        raise SimulationError(
            f"{handler!r} is not a handler of a service. Pass the function that is decorated with @service.handler(), "
            "or its name as 'Service/handler'."
        ) from None
    return Target(known.service_tag.name, known.name, key), known


def encoded(target: Target, handler: Handler[Any, Any] | None, arg: Any) -> bytes:
    """Return an argument as the body of a call."""
    if handler is None:
        if arg is NOTHING or isinstance(arg, bytes):
            return b"" if arg is NOTHING else arg
        try:
            return json.dumps(arg).encode()
        except (TypeError, ValueError) as error:
            raise SimulationError(
                f"the argument {arg!r} cannot be sent to {target} as plain JSON: {error}. "
                "To encode it with the handler's own serde, pass the function instead of its name."
            ) from error
    takes = list(signature(handler.fn).parameters.values())[1:]
    if arg is NOTHING:
        if takes and takes[0].default is Parameter.empty:
            raise SimulationError(f"{target} takes an argument, but none was passed.")
        return b""
    if not takes:
        raise SimulationError(f"{target} takes no argument.")
    try:
        return bytes(handler.handler_io.input_serde.serialize(arg))
    except Exception as error:
        hint = handler.handler_io.input_type
        which = "" if hint is None or hint.annotation is None else f", which takes {_type_name(hint.annotation)}"
        raise SimulationError(f"the argument {arg!r} cannot be sent to {target}{which}: {error}") from error


async def output_of(output: bytes, handler: Handler[Any, Any] | None, codec: JournalValueCodec | None) -> Any:
    """Decode the value of an answer, with the handler's own serde, or from JSON if the handler is not known."""
    if output and codec is not None:
        output = await codec.decode(output)
    return handler.handler_io.output_serde.deserialize(output) if handler else decoded(output)


def _type_name(annotation: object) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


def json_of(value: Any) -> bytes:
    """Encode a client's value as JSON; besides plain values, any that pydantic can encode."""
    try:
        return json.dumps(value, default=to_jsonable_python).encode()
    except (TypeError, ValueError, PydanticSerializationError) as error:
        raise SimulationError(f"{value!r} cannot be sent as JSON: {error}") from error
