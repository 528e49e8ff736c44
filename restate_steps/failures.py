"""Convert declared exceptions to terminal failures that carry their data, and back.

An exception is recorded as its class, its arguments and its attributes. Each value is written as JSON under the first
of these types that restores it unchanged: plain JSON, then the annotations of the class and of its ``__init__``. The
type that was used is recorded beside the value. Nothing is pickled.

Only the builtin base of the class takes an exception apart and rebuilds it. The ``__init__`` and ``__new__`` of a
subclass have run already, and must not run a second time.
"""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterable, Iterator
from typing import Any, Final, cast

from restate import TerminalError

from restate_steps.codec import DEFAULT_CODEC, PLAIN_JSON
from restate_steps.codec._compare import find_difference
from restate_steps.errors import DecodeError, EncodeError, StepResultError

__all__ = ["decode_failure", "encode_failure"]

_TYPE: Final = "restate-steps-exception"
_DATA: Final = "restate-steps-data"
_PLAIN: Final = ""


def encode_failure(step: str, error: Exception) -> TerminalError:
    """Convert a declared exception to the failure that is journaled.

    Args:
        step: Name of the step that raised it.
        error: The exception.

    Returns:
        The error to raise instead, which Restate records.

    Raises:
        StepResultError: Part of the exception would not come back from the journal.
    """
    cls = type(error)
    hints = _hints(cls)
    args, state = _disassemble(error)
    data = {
        "args": [_encode(step, error, f"args[{index}]", value, hints) for index, value in enumerate(args)],
        "state": {key: _encode(step, error, key, value, hints) for key, value in state.items()},
    }
    _check_text(step, error, data, hints)
    metadata = {_TYPE: _name(cls), _DATA: json.dumps(data)}
    code = error.status_code if isinstance(error, TerminalError) else 500
    if isinstance(error, TerminalError) and error.metadata:
        metadata = {**error.metadata, **metadata}
    return TerminalError(f"{cls.__name__}: {error}", status_code=code, metadata=metadata)


def decode_failure(step: str, failure: TerminalError, declared: Iterable[type[Exception]]) -> Exception:
    """Rebuild a declared exception from a journaled failure.

    Args:
        step: Name of the step.
        failure: The error that the SDK raised.
        declared: The classes that the step declares.

    Returns:
        The exception, with ``failure`` as its cause, so that it ends the invocation if it is not caught. Or
        ``failure`` itself, if it does not record an exception. Or a retryable error, if the class is not declared
        any more or the data does not fit it.
    """
    metadata = failure.metadata or {}
    name = metadata.get(_TYPE)
    if name is None:
        return failure
    cls = next((cls for cls in _with_subclasses(declared) if _name(cls) == name), None)
    if cls is None:
        return DecodeError(
            f"the exceptions that step {step!r} declares in raises=",
            f"it is a {name}, which is not among them (or has been renamed)",
            where="a journaled failure",
        )
    try:
        error = _build(cls, json.loads(metadata[_DATA]), _hints(cls))
    except (DecodeError, AttributeError, KeyError, TypeError, ValueError) as problem:
        return DecodeError(cls.__name__, str(problem), where=f"the journaled failure of step {step!r}")
    BaseException.__setattr__(error, "__cause__", failure)
    return error


def _name(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _with_subclasses(classes: Iterable[type[Exception]]) -> Iterator[type[Exception]]:
    for cls in classes:
        yield cls
        yield from _with_subclasses(cls.__subclasses__())


def _hints(cls: type[Exception]) -> dict[str, Any]:
    hints: dict[str, Any] = {}
    for prefix, owner in (("field", cls), ("init", cls.__init__)):
        try:
            found = typing.get_type_hints(owner, include_extras=True)
        except (NameError, TypeError):
            # Do without these annotations; the value may fit another type.
            continue
        hints.update({f"{prefix}:{key}": hint for key, hint in found.items() if key != "return"})
    return hints


def _builtin(cls: type[Exception]) -> Any:
    return next(base for base in cls.__mro__ if base.__module__ == "builtins")


def _disassemble(error: Exception) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments and the attributes of an exception."""
    cls = type(error)
    _, args, *rest = _builtin(cls).__reduce__(error)
    state: dict[str, Any] = {**rest[0]} if rest and rest[0] else {}
    for owner in cls.__mro__:
        for name, member in vars(owner).items():
            # Slots; those of builtin classes are among the arguments.
            if isinstance(member, types.MemberDescriptorType) and owner.__module__ != "builtins":
                state.update({name: getattr(error, name)} if hasattr(error, name) else {})
    return args, state


def _build(cls: type[Exception], data: dict[str, Any], hints: dict[str, Any]) -> Exception:
    args = [_decode(value, hints) for value in data["args"]]
    error = cast(Exception, _builtin(cls).__new__(cls, *args))
    _builtin(cls).__init__(error, *args)
    for name, value in data["state"].items():
        # Bypass the class's own __setattr__: it may be a frozen dataclass.
        BaseException.__setattr__(error, name, _decode(value, hints))
    return error


def _check_text(step: str, error: Exception, data: dict[str, Any], hints: dict[str, Any]) -> None:
    """Reject an exception whose text depends on data that is not recorded."""
    class_name = type(error).__name__
    try:
        text = str(_build(type(error), data, hints))
    except Exception as problem:
        loss = f"it cannot be rebuilt from its arguments and attributes ({problem})"
    else:
        if text == str(error):
            return
        loss = f"its text would come back as {text!r}"
    raise StepResultError(
        step,
        f"it raised {class_name}, which is declared in raises=, but {loss}. Store what the text needs in attributes, "
        "or raise an exception class of your own from it.",
    ) from error


def _encode(step: str, error: Exception, key: str, value: Any, hints: dict[str, Any]) -> dict[str, Any]:
    named = [f"{prefix}:{key}" for prefix in ("field", "init") if f"{prefix}:{key}" in hints]
    for source in [_PLAIN, *named, *(source for source in hints if source not in named)]:
        hint = PLAIN_JSON if source == _PLAIN else hints[source]
        try:
            encoded = DEFAULT_CODEC.dump(hint, value)
            if find_difference(value, DEFAULT_CODEC.load(hint, encoded)) is None:
                return {"as": source, "value": json.loads(encoded)}
        except (EncodeError, DecodeError):
            continue
    class_name = type(error).__name__
    raise StepResultError(
        step,
        f"it raised {class_name}, which is declared in raises=, but {key} ({type(value).__name__}) would not come back "
        f"from the journal. Annotate it in {class_name} or its __init__ with a type that survives JSON, or omit it.",
    ) from error


def _decode(value: dict[str, Any], hints: dict[str, Any]) -> Any:
    source = value["as"]
    return DEFAULT_CODEC.load(PLAIN_JSON if source == _PLAIN else hints[source], json.dumps(value["value"]).encode())
