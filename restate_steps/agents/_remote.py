"""Handlers of Restate as tools: another agent, for example, that runs as an invocation of its own.

A handler of this codebase says its types and its serdes itself, by way of the SDK's ``handler_from_callable``, which is
not documented; for a handler of another codebase the caller says them.
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
"""What the argument is called of a handler that is known by its name only."""
_KEYED: Final = {"object": "virtual object", "workflow": "workflow"}


@dataclass(frozen=True)
class _Remote:
    """A handler, as far as its callers have to know it.

    Attributes:
        service: The name of its service.
        name: Its own name.
        doc: What it does.
        parameter: The name and the type of its argument, or None if it takes none.
        returns: The type of its result.
        input: What encodes its argument.
        output: What decodes its result.
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
                f"the tool for {self} was called outside a Restate handler, where nothing would record the call. Run "
                "the agent inside a handler, or give it another tool here."
            )
        body = b"" if self.parameter is None else self.input.serialize(argument)
        answer = await restate_context().generic_call(
            self.service, self.name, body, key=key, idempotency_key=idempotency_key
        )
        try:
            return self.output.deserialize(answer)
        except Exception as error:
            # Left as it is, an error of validation would be taken for a request to the model to try again.
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
    """Make a tool of a Restate handler: a call of the tool is an invocation of the handler.

    The handler may run an agent of its own, and be deployed elsewhere. It is retried, cancelled and seen in Restate's
    UI by itself, and its answer is recorded. If the calling handler dies, the other one goes on, and is not called
    twice. A terminal error of the handler is raised in the calling agent's run.

    The fields of a model, a dataclass or a TypedDict become the arguments of the tool; anything else becomes one
    argument, named as the handler's parameter. The docstring of the handler describes the tool to the model.

    Args:
        handler: The function that is registered as a handler, or ``"service/handler"`` for one of another codebase.
        input: The type of the argument of a handler given by name; leave it out for one that takes none.
        output: The type of the answer of a handler given by name; plain JSON by default.
        name: The tool's name; the handler's by default.
        description: What the tool does; the handler's docstring by default.
        key: The key of the virtual object or workflow, or a function that makes it of the handler's argument.
        idempotency_key: The key by which Restate knows that two calls are the same, or a function that makes it of the
            argument. None is needed against crashes.

    Returns:
        A tool, for the ``tools=`` of an agent. The agent has to run inside a handler.

    Raises:
        UserError: The function is no handler, its name is not understood, or it needs a key, or cannot have one.
        StepDefinitionError: The type of an argument or an answer cannot be encoded.

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
        raise UserError("input= and output= are for a handler given by name: a function says its types itself.")
    else:
        remote = _of_function(handler, key)

    async def call(**arguments: Any) -> Any:
        argument = arguments[remote.parameter[0]] if remote.parameter is not None else None
        return await remote.call(argument, _made_of(key, argument), _made_of(idempotency_key, argument))

    _dress(call, remote)
    return Tool(
        call, takes_ctx=False, name=name or remote.name, description=description, metadata={TOOL_METADATA_KEY: False}
    )


def _made_of(key: KeyOf[Any] | None, argument: Any) -> str | None:
    return key(argument) if callable(key) else key


def _by_name(path: str, input: Any, output: Any) -> _Remote:
    service, _, name = path.partition("/")
    if not service or not name or "/" in name:
        raise UserError(
            f"remote_tool cannot tell the handler of {path!r}. Give the names of the service and of the handler, as in "
            "'Research/find_out'; the key of a virtual object belongs into key=."
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
            f"{function!r} is not a Restate handler. Give remote_tool a function that is decorated as a handler, or "
            "the names of a handler of another codebase, as in 'Research/find_out'."
        ) from None
    service, kind = handler.service_tag.name, handler.service_tag.kind
    if kind == "service" and key is not None:
        raise UserError(f"{service} is a service, which has no keys. Leave key= out.")
    if kind != "service" and key is None:
        raise UserError(
            f"{service} is a {_KEYED[kind]}, so a call of {handler.name!r} needs a key. Give key= a text, or a "
            "function that makes it of the handler's argument."
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


def _dress(call: Callable[..., Any], remote: _Remote) -> None:
    """Give a function the name, the signature and the docstring that pydantic-ai reads a tool from."""
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
