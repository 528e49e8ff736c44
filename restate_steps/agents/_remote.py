"""Restate handlers as tools, for example another agent that runs as its own invocation.

The types and serdes of a handler in this codebase come from the SDK's undocumented ``handler_from_callable``. For a
handler of another codebase, the caller passes the types.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from inspect import Parameter, Signature
from typing import Any, Final, TypeAlias, TypeVar, cast, overload

from pydantic_ai import Tool
from pydantic_ai.exceptions import UserError
from restate.handler import handler_from_callable
from restate.serde import Serde
from typing_extensions import TypeForm

from restate_steps.agents._operation_backend import TOOL_METADATA_KEY
from restate_steps.codec import PLAIN_JSON, is_plain, type_name
from restate_steps.context import current_invocation, restate_context, running_step
from restate_steps.errors import DecodeError
from restate_steps.serdes import serde

__all__ = ["remote_tool"]

InputT = TypeVar("InputT")
KeyOf: TypeAlias = str | Callable[[InputT], str]

_INPUT: Final = "input"
"""The argument name for a handler that is given by name."""
_KEYED: Final = {"object": "virtual object", "workflow": "workflow"}


@dataclass(frozen=True)
class _Remote:
    """The caller's view of a handler.

    Attributes:
        service: The name of its service.
        name: Its own name.
        doc: Its docstring.
        parameter: The name and type of its argument, or None if it takes none.
        returns: The type of its result.
        input: The serde that encodes its argument.
        output: The serde that decodes its result.
    """

    service: str
    name: str
    doc: str | None
    parameter: tuple[str, Any] | None
    returns: Any
    input: Serde[Any]
    output: Serde[Any]

    def __str__(self) -> str:
        return f"{self.service}/{self.name}"

    async def call(self, argument: Any, key: str | None, idempotency_key: str | None) -> Any:
        if current_invocation() is None and running_step.get() is None:
            raise UserError(
                f"the tool for {self} was called outside a Restate handler, where no journal can record the call. Run "
                "the agent inside a handler, or use another tool here."
            )
        body = b"" if self.parameter is None else self.input.serialize(argument)
        answer = await restate_context().generic_call(
            self.service, self.name, body, key=key, idempotency_key=idempotency_key
        )
        try:
            return self.output.deserialize(answer)
        except Exception as error:
            # pydantic-ai would take a validation error for a request to the model to try again.
            reason = error.reason if isinstance(error, DecodeError) else f"{type(error).__name__}: {error}"
            raise DecodeError(type_name(self.returns), reason, where=f"the answer of {self}") from error


@overload
def remote_tool(
    handler: Callable[[Any, InputT], Awaitable[Any]],
    *,
    name: str | None = ...,
    description: str | None = ...,
    key: KeyOf[InputT] | None = ...,
    idempotency_key: KeyOf[InputT] | None = ...,
) -> Tool[object]: ...
@overload
def remote_tool(
    handler: Callable[[Any], Awaitable[Any]],
    *,
    name: str | None = ...,
    description: str | None = ...,
    key: str | None = ...,
    idempotency_key: str | None = ...,
) -> Tool[object]: ...
@overload
def remote_tool(
    handler: str,
    *,
    input: TypeForm[InputT],
    output: Any = ...,
    name: str | None = ...,
    description: str | None = ...,
    key: KeyOf[InputT] | None = ...,
    idempotency_key: KeyOf[InputT] | None = ...,
) -> Tool[object]: ...
@overload
def remote_tool(
    handler: str,
    *,
    output: Any = ...,
    name: str | None = ...,
    description: str | None = ...,
    key: str | None = ...,
    idempotency_key: str | None = ...,
) -> Tool[object]: ...
def remote_tool(
    handler: Callable[..., Awaitable[Any]] | str,
    *,
    input: Any = None,
    output: Any = PLAIN_JSON,
    name: str | None = None,
    description: str | None = None,
    key: KeyOf[Any] | None = None,
    idempotency_key: KeyOf[Any] | None = None,
) -> Tool[object]:
    """Return a tool that calls a Restate handler: each call of the tool is an invocation of the handler.

    The handler may run its own agent, and may be deployed elsewhere. It has its own retries, cancellation and entry in
    Restate's UI, and its result is recorded. If the calling handler crashes, the called one keeps running, and is not
    called twice. A terminal error of the called handler is raised in the calling agent's run.

    The fields of a pydantic model, dataclass or TypedDict become the tool's arguments. Any other type becomes a single
    argument with the name of the handler's parameter. The handler's docstring describes the tool to the model.

    Args:
        handler: A function that is registered as a handler, or ``"service/handler"`` for a handler of another codebase.
        input: The argument type of a handler given by name; omit it if the handler takes no argument.
        output: The result type of a handler given by name; plain JSON by default.
        name: The tool's name; defaults to the handler's name.
        description: The tool's description; defaults to the handler's docstring.
        key: The key of the virtual object or workflow, or a function that returns it for the handler's argument.
        idempotency_key: An idempotency key for the call, or a function that returns it for the argument. Recovery
            from a crash does not need one.

    Returns:
        A tool for the ``tools=`` of an agent. The agent has to run inside a handler.

    Raises:
        UserError: The function is not a handler, the name is malformed, or ``key`` is missing or not allowed.
        StepDefinitionError: The type of the argument or the result cannot be encoded.

    Example:
        ```python
        from pydantic_ai import Agent
        from pydantic_ai.models.test import TestModel

        from restate_steps.agents import RestateAgent

        researcher = Agent(TestModel(), name="researcher")
        research = restate.Service("Research")


        @research.handler()
        async def find_out(ctx: restate.Context, question: str) -> str:
            '''Find out something in the library.'''
            return (await RestateAgent(researcher).run(question)).output


        tools = [remote_tool(find_out), remote_tool("Translator/translate", input=str, output=str, key="en-de")]
        writer = Agent(TestModel(), name="writer", tools=tools)
        ```
    """
    if isinstance(handler, str):
        remote = _by_name(handler, input, output)
    elif input is not None or output is not PLAIN_JSON:
        raise UserError(
            "input= and output= are for a handler given by name; a function declares its own types. Omit them."
        )
    else:
        remote = _of_function(handler, key)

    async def call(**arguments: Any) -> Any:
        argument = arguments[remote.parameter[0]] if remote.parameter is not None else None
        return await remote.call(argument, _resolve(key, argument), _resolve(idempotency_key, argument))

    _imitate(call, remote)
    return Tool(
        call, takes_ctx=False, name=name or remote.name, description=description, metadata={TOOL_METADATA_KEY: False}
    )


def _resolve(key: KeyOf[Any] | None, argument: Any) -> str | None:
    return key(argument) if callable(key) else key


def _by_name(path: str, input: Any, output: Any) -> _Remote:
    service, _, name = path.partition("/")
    if not service or not name or "/" in name:
        raise UserError(
            f"remote_tool expects 'service/handler', got {path!r}. Pass the names of the service and the handler, as "
            "in 'Research/find_out'. The key of a virtual object goes into key=."
        )
    return _Remote(
        service=service,
        name=name,
        doc=None,
        parameter=None if input is None else (_INPUT, input),
        returns=output,
        input=serde(input),
        output=serde(output),
    )


def _of_function(function: Callable[..., Awaitable[Any]], key: object) -> _Remote:
    try:
        handler: Any = handler_from_callable(function)
    except (TypeError, ValueError):
        raise UserError(
            f"{function!r} is not a Restate handler. Pass remote_tool a function that is decorated as a handler, or "
            "the name of a handler of another codebase, as in 'Research/find_out'."
        ) from None
    service, kind = handler.service_tag.name, handler.service_tag.kind
    if kind == "service" and key is not None:
        raise UserError(f"{service} is a service, which has no keys. Omit key=.")
    if kind != "service" and key is None:
        raise UserError(
            f"{service} is a {_KEYED[kind]}, so a call of {handler.name!r} needs a key. Set key= to a string, or to a "
            "function that returns it for the handler's argument."
        )
    signature = inspect.signature(function, eval_str=True)
    parameter = list(signature.parameters.values())[1] if handler.arity > 1 else None
    return _Remote(
        service=service,
        name=handler.name,
        doc=inspect.getdoc(function),
        parameter=None if parameter is None else (parameter.name, parameter.annotation),
        returns=signature.return_annotation,
        input=handler.handler_io.input_serde,
        output=handler.handler_io.output_serde,
    )


def _imitate(call: Callable[..., Any], remote: _Remote) -> None:
    """Give a function the name, signature and docstring of a handler; pydantic-ai builds the tool from them."""
    function = cast(Any, call)
    parameters = [] if remote.parameter is None else [(remote.parameter[0], _annotation(remote.parameter[1]))]
    returns = _annotation(remote.returns)
    function.__name__ = function.__qualname__ = remote.name
    function.__doc__ = remote.doc
    function.__annotations__ = {**dict(parameters), "return": returns}
    function.__signature__ = Signature(
        [Parameter(name, Parameter.KEYWORD_ONLY, annotation=type) for name, type in parameters],
        return_annotation=returns,
    )


def _annotation(type: Any) -> Any:
    return Any if is_plain(type) else type
