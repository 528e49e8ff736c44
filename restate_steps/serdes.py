"""The codec for the rest of a service: handlers, state, awakeables, promises, calls and ``ctx.run``.

* :func:`serde` returns a ``restate.serde.Serde`` for any type that the codec supports.
* :func:`typed_handler` registers a handler that uses it for its input and output, and publishes their JSON schemas.
* :func:`publish_schemas` publishes the schemas of handlers that are registered with the SDK's decorators.

Publishing needs two undocumented parts of the SDK: ``service.handlers``, and a handler's ``handler_io``, whose type
hints carry the schema. Discovery reads only these hints and never the serde, so there is no other way to publish the
schema of ``list[Order]``. If they are missing, handlers still work, without a schema.
"""

from __future__ import annotations

import functools
import inspect
import json
import logging
import math
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from types import NoneType
from typing import Any, Final, Literal, ParamSpec, TypeVar, cast, get_type_hints, overload

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue
from pydantic_core import core_schema
from restate import InvocationRetryPolicy, Service, TerminalError, VirtualObject, Workflow
from restate.serde import Serde
from typing_extensions import TypeForm

from restate_steps._durations import to_timedelta
from restate_steps._public import publish
from restate_steps.codec import DEFAULT_CODEC, PLAIN_JSON, Codec, JsonCodec, is_plain, type_name, verify
from restate_steps.errors import DecodeError, EncodeError, StepDefinitionError, TerminalEncodeError

__all__ = ["TypedSerde", "json_schema", "publish_schemas", "serde", "typed_handler"]

_log: Final = logging.getLogger(__name__)
_PUBLIC_CODEC: Final = JsonCodec(round_trip=False)
"""The codec for a handler's output, which has computed fields, as the published schema says."""

T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R")
AnyService = Service | VirtualObject | Workflow


class TypedSerde(Serde[T]):
    """A ``Serde`` for one type; created by :func:`serde`.

    Attributes:
        type: The type of the values.
        codec: The codec that encodes and decodes them.
    """

    def __init__(self, type: Any, codec: Codec, *, terminal: bool, verify: bool) -> None:
        self.type = type
        self.codec = codec
        self._terminal = terminal
        self._verify = verify

    def __repr__(self) -> str:
        return f"serde({type_name(self.type)})"

    def serialize(self, obj: T | None) -> bytes:
        """Encode a value; ``None`` becomes ``null`` if the type allows it.

        Args:
            obj: The value.

        Returns:
            The encoded value, never empty.

        Raises:
            TerminalEncodeError: The value cannot be encoded, or would not come back unchanged; terminal.
            EncodeError: The same, retryable, if the serde was made with ``terminal=False``.
            NotAwaitedError: There is a coroutine in the value; retryable.
        """
        try:
            data = self.codec.dump(self.type, obj)
            if self._verify:
                verify(self.codec, self.type, obj, data)
        except EncodeError as error:
            if self._terminal:
                raise TerminalEncodeError(error) from error
            raise
        return data

    def deserialize(self, buf: bytes) -> T | None:
        """Decode a value; an empty body, as of a request without one, is ``None`` if the type allows it.

        Args:
            buf: The encoded value.

        Returns:
            The value.

        Raises:
            DecodeError: The bytes do not fit the type.
        """
        if not buf:
            if self._allows_none:
                return None
            raise DecodeError(type_name(self.type), "there is no value: the body is empty", where="an empty body")
        # The SDK's interface allows for no value; here, only types that include None have none.
        return cast("T | None", self.codec.load(self.type, buf))

    @functools.cached_property
    def _allows_none(self) -> bool:
        try:
            return self.codec.load(self.type, b"null") is None
        except DecodeError:
            return False


@overload
def serde(
    type: TypeForm[T], *, codec: Codec | None = ..., terminal: bool = ..., verify: bool = ...
) -> TypedSerde[T]: ...
@overload
def serde(type: Any, *, codec: Codec | None = ..., terminal: bool = ..., verify: bool = ...) -> TypedSerde[Any]: ...
def serde(type: Any, *, codec: Codec | None = None, terminal: bool = True, verify: bool = False) -> TypedSerde[Any]:
    """Return a ``restate.serde.Serde`` that restores values of a type unchanged.

    Use it wherever the SDK takes a serde: ``ctx.get`` and ``ctx.set``, awakeables, promises, signals, generic calls,
    ``RunOptions(serde=...)``, and the ``input_serde`` and ``output_serde`` of a handler.

    Args:
        type: Any type that pydantic supports, such as ``list[Order]`` or ``Order | None``, or ``PLAIN_JSON``.
        codec: The codec to use instead of the default one.
        terminal: End the invocation if a value cannot be encoded. This is necessary where a retry would repeat a side
            effect, such as in a ``ctx.run``. With ``False``, the error is retryable.
        verify: Decode every encoded value again, and raise if it has changed.

    Returns:
        The serde.

    Raises:
        StepDefinitionError: The codec cannot handle the type.

    Example:
        >>> numbers = serde(dict[str, float])
        >>> numbers.serialize({"a": float("inf")})
        b'{"a":Infinity}'
        >>> numbers.deserialize(b'{"a":Infinity}')
        {'a': inf}
    """
    codec = DEFAULT_CODEC if codec is None else codec
    _check(codec, type)
    return TypedSerde(type, codec, terminal=terminal, verify=verify)


def typed_handler(
    service: AnyService,
    name: str | None = None,
    *,
    kind: Literal["exclusive", "shared", "main"] | None = None,
    codec: Codec | None = None,
    accept: str = "application/json",
    content_type: str = "application/json",
    metadata: dict[str, str] | None = None,
    inactivity_timeout: timedelta | float | None = None,
    abort_timeout: timedelta | float | None = None,
    journal_retention: timedelta | float | None = None,
    idempotency_retention: timedelta | float | None = None,
    workflow_retention: timedelta | float | None = None,
    enable_lazy_state: bool | None = None,
    state_preload: bool | list[str] | None = None,
    ingress_private: bool | None = None,
    invocation_retry_policy: InvocationRetryPolicy | None = None,
    invocation_context_managers: list[Callable[[], AbstractAsyncContextManager[None]]] | None = None,
) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], Callable[P, Coroutine[Any, Any, R]]]:
    """Register a handler whose input and output have the types of its annotations.

    Use it instead of ``@service.handler()`` and ``@workflow.main()``. Types that the SDK treats as plain JSON (lists of
    models, unions, TypedDicts, datetimes) are decoded as annotated, and their JSON schema appears in discovery. Input
    that does not fit is rejected with status 400 and the places that do not fit. Output that cannot be encoded is a
    retryable error: a retry repeats no step, and a redeploy can fix it.

    The options are those of the SDK's decorators; durations are seconds or timedeltas. Some options exist for one kind
    of service only; the others reject them. One that is None has the default of the service or the server.

    Args:
        service: The service, virtual object or workflow.
        name: The name of the handler; by default the name of the function.
        kind: ``"exclusive"`` (the default) or ``"shared"`` for a virtual object; ``"main"`` or ``"shared"`` (the
            default) for a workflow.
        codec: The codec to use instead of the default one.
        accept: The media type of the input.
        content_type: The media type of the output.
        metadata: Metadata that Restate shows with the handler.
        inactivity_timeout: How long an attempt may journal nothing before the server asks it to suspend.
        abort_timeout: How long the server then waits before it closes the attempt.
        journal_retention: How long the journal is kept after the invocation has ended.
        idempotency_retention: How long the result of a call with an idempotency key is kept.
        workflow_retention: How long the result of a workflow is kept.
        enable_lazy_state: Fetch the state key by key, instead of with the invocation.
        state_preload: The state to fetch with the invocation: all of it, none, or these keys.
        ingress_private: Allow only other handlers to call the handler.
        invocation_retry_policy: The retry policy of the invocation.
        invocation_context_managers: Context managers to enter around each attempt.

    Returns:
        A decorator that keeps the type of the function.

    Raises:
        StepDefinitionError: The annotations cannot be resolved or encoded, ``kind`` does not fit the service, or a
            duration has a wrong value.

    Example:
        >>> import restate
        >>> greeter = restate.Service("Greeter")
        >>> @typed_handler(greeter)
        ... async def greet(ctx: restate.Context, names: list[str]) -> dict[str, int]:
        ...     return {name: len(name) for name in names}
    """
    register = _registrar(service, kind)
    durations = {
        "inactivity_timeout": inactivity_timeout,
        "abort_timeout": abort_timeout,
        "journal_retention": journal_retention,
        "idempotency_retention": idempotency_retention,
        "workflow_retention": workflow_retention,
    }
    options: dict[str, Any] = {
        **{each: to_timedelta(each, value, zero=True) for each, value in durations.items() if value is not None},
        "metadata": metadata,
        "enable_lazy_state": enable_lazy_state,
        "state_preload": state_preload,
        "ingress_private": ingress_private,
        "invocation_retry_policy": invocation_retry_policy,
        "invocation_context_managers": invocation_context_managers,
    }
    # The SDK's decorators have different options, so pass only those that are set.
    given = {each: value for each, value in options.items() if value is not None}

    def decorate(fn: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, Coroutine[Any, Any, R]]:
        input_type, output_type = _annotations(fn)
        chosen = DEFAULT_CODEC if codec is None else codec
        serdes: dict[str, Any] = {}
        if input_type is not _NOTHING:
            _check(chosen, input_type)
            serdes["input_serde"] = _InputSerde(input_type, chosen, terminal=False, verify=False)
        if output_type is not _NOTHING:
            _check(chosen, output_type)
            serdes["output_serde"] = _for_output(TypedSerde[Any](output_type, chosen, terminal=False, verify=False))
        registered = register(name=name, accept=accept, content_type=content_type, **serdes, **given)(
            _checked(fn) if "input_serde" in serdes else fn
        )
        _publish(_handlers(service).get(name or fn.__name__), input_type, output_type)
        return cast("Callable[P, Coroutine[Any, Any, R]]", registered)

    return decorate


def publish_schemas(*services: AnyService) -> None:
    """Publish the JSON schemas of handlers registered with ``input_serde=serde(T)`` or ``output_serde=serde(T)``.

    After that, they behave like handlers of :func:`typed_handler`: output is encoded as the schema says, with computed
    fields; input that does not fit is rejected with status 400; and output that cannot be encoded is a retryable error.
    Call it before the services are served.

    Args:
        *services: Services, virtual objects and workflows.

    Example:
        >>> import restate
        >>> shop = restate.Service("Shop")
        >>> @shop.handler(output_serde=serde(list[int]))
        ... async def stock(ctx: restate.Context) -> list[int]:
        ...     return [1, 2]
        >>> publish_schemas(shop)
    """
    for service in services:
        for handler in _handlers(service).values():
            io: Any = handler.handler_io
            input_type = output_type = _NOTHING
            input_serde: object = io.input_serde
            output_serde: object = io.output_serde
            if isinstance(input_serde, TypedSerde) and handler.arity > 1:
                input_type = input_serde.type
                if not isinstance(input_serde, _InputSerde):
                    io.input_serde = _InputSerde(input_serde.type, input_serde.codec, terminal=False, verify=False)
                    handler.fn = _checked(handler.fn)
            if isinstance(output_serde, TypedSerde):
                output_type = output_serde.type
                io.output_serde = _for_output(cast("TypedSerde[object]", output_serde))
            _publish(handler, input_type, output_type)


def json_schema(type: Any, mode: JsonSchemaMode) -> Any:
    """Return the JSON schema of a type as the codec encodes it.

    Args:
        type: Any type that pydantic supports, or ``PLAIN_JSON``.
        mode: ``"validation"`` for input, ``"serialization"`` for output.

    Returns:
        The schema; ``True``, which allows everything, if there is none.
    """
    if is_plain(type):
        return True
    try:
        return TypeAdapter(type).json_schema(mode=mode, schema_generator=_SchemaGenerator)
    except Exception:
        # A type without a JSON schema still works; it must not prevent a deployment from being registered.
        _log.warning("there is no JSON schema for %s", type_name(type), exc_info=True)
        return True


class _SchemaGenerator(GenerateJsonSchema):
    def bytes_schema(self, schema: core_schema.BytesSchema) -> JsonSchemaValue:
        found = super().bytes_schema(schema)
        config: Any = getattr(getattr(self, "_config", None), "config_dict", {})
        if "ser_json_bytes" in config or "val_json_bytes" in config:
            return found
        # The codec writes base64 unless a class says otherwise; length limits apply to the bytes, not to the text.
        return {"type": "string", "format": "base64url"}

    def encode_default(self, dft: Any) -> Any:
        if isinstance(dft, bytes):
            return json.loads(DEFAULT_CODEC.dump(bytes, dft))
        if isinstance(dft, float) and not math.isfinite(dft):
            # A manifest is strict JSON, which cannot express it as a number.
            return str(dft)
        return super().encode_default(dft)


_NOTHING: Final[Any] = object()
"""Stands for no input or no output."""


class _BadInput:
    """Stands for input that does not fit, until the wrapped handler rejects it with status 400."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


class _InputSerde(TypedSerde[Any]):
    """A serde that returns bad input instead of raising, because the SDK would report an internal error."""

    def deserialize(self, buf: bytes) -> Any:
        try:
            return super().deserialize(buf)
        except DecodeError as error:
            return _BadInput(f"the input does not fit {error.type_name}: {error.reason}")


def _for_output(serde: TypedSerde[T]) -> TypedSerde[T]:
    """Return the same serde for a handler's output."""
    codec = _PUBLIC_CODEC if serde.codec is DEFAULT_CODEC else serde.codec
    return TypedSerde(serde.type, codec, terminal=False, verify=False)


def _checked(fn: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(fn)
    async def checked(ctx: Any, argument: Any) -> Any:
        if type(argument) is _BadInput:
            raise TerminalError(argument.reason, status_code=400)
        return await fn(ctx, argument)

    return checked


def _registrar(service: AnyService, kind: str | None) -> Callable[..., Callable[[Any], Any]]:
    """Return the SDK's decorator for a kind of handler."""
    if isinstance(service, VirtualObject) and kind in (None, "exclusive", "shared"):
        return functools.partial(service.handler, kind=cast("Any", kind or "exclusive"))
    if isinstance(service, Workflow) and kind in (None, "shared", "main"):
        return service.main if kind == "main" else service.handler
    if isinstance(service, Service) and kind is None:
        return service.handler
    raise StepDefinitionError(
        f"a handler of {service.name!r} cannot be {kind!r}: a virtual object has exclusive and shared handlers, a "
        "workflow has one main and shared ones, and a service has no kinds."
    )


def _annotations(fn: Callable[..., Any]) -> tuple[Any, Any]:
    """Return the types of a handler's input and output, or :data:`_NOTHING`."""
    parameters = list(inspect.signature(fn).parameters.values())
    if len(parameters) not in (1, 2):
        raise StepDefinitionError(
            f"the handler {fn.__qualname__} takes {len(parameters)} parameters. It must take the context, and "
            "optionally the input."
        )
    try:
        hints = get_type_hints(fn, include_extras=True)
    except NameError as error:
        raise StepDefinitionError(
            f"the annotations of the handler {fn.__qualname__} cannot be resolved: {error}. They are needed at run "
            "time, so import what they name outside `if TYPE_CHECKING:`, and define it outside of functions."
        ) from error
    output_type = hints.get("return", PLAIN_JSON)
    return (
        _NOTHING if len(parameters) == 1 else hints.get(parameters[1].name, PLAIN_JSON),
        _NOTHING if output_type is NoneType else output_type,
    )


def _check(codec: Codec, type: Any) -> None:
    # A custom codec need not have a check() method.
    check = getattr(codec, "check", None)
    if check is not None:
        check(type)


def _handlers(service: AnyService) -> dict[str, Any]:
    return getattr(service, "handlers", {})


def _publish(handler: Any, input_type: Any, output_type: Any) -> None:
    """Put JSON schemas where the SDK's discovery reads them."""
    try:
        from restate.handler import TypeHint

        for name, type_, mode in (
            ("input_type", input_type, "validation"),
            ("output_type", output_type, "serialization"),
        ):
            if type_ is not _NOTHING:
                schema = functools.partial(json_schema, type_, cast("JsonSchemaMode", mode))
                setattr(handler.handler_io, name, TypeHint(annotation=Any, generate_json_schema=schema))
    except (ImportError, AttributeError, TypeError):
        _log.warning("this version of the SDK does not accept JSON schemas for handlers", exc_info=True)


publish("restate_steps", globals(), ["TypedSerde"])
