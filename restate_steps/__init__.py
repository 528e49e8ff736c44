"""Durable steps for Restate: a decorator, a typed codec, and concurrency that survives a replay."""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING as _TYPE_CHECKING

if _TYPE_CHECKING:
    from restate_steps._app import app, local
    from restate_steps._versions import UntestedVersionWarning
    from restate_steps.codec import DEFAULT_CODEC, PLAIN_JSON, Codec, JsonCodec
    from restate_steps.concurrency import AsCompleted, Task, TaskGroup, as_completed, gather, map, race, wait_for
    from restate_steps.context import StepInfo, restate_context, step_info
    from restate_steps.errors import (
        ConcurrencyError,
        ContextInStepError,
        DecodeError,
        EncodeError,
        NotAwaitedError,
        ResultTooLargeError,
        ServerError,
        StepDefinitionError,
        StepResultError,
        StepsError,
        StepTimeoutError,
        TerminalEncodeError,
    )
    from restate_steps.logs import ReplayFilter, get_logger
    from restate_steps.options import RetryPolicy
    from restate_steps.serdes import TypedSerde, json_schema, publish_schemas, serde, typed_handler
    from restate_steps.step import DurableStep, durable_step, run_step

__version__ = "0.1.0"

__all__ = [
    "DEFAULT_CODEC",
    "PLAIN_JSON",
    "AsCompleted",
    "Codec",
    "ConcurrencyError",
    "ContextInStepError",
    "DecodeError",
    "DurableStep",
    "EncodeError",
    "JsonCodec",
    "NotAwaitedError",
    "ReplayFilter",
    "ResultTooLargeError",
    "RetryPolicy",
    "ServerError",
    "StepDefinitionError",
    "StepInfo",
    "StepResultError",
    "StepTimeoutError",
    "StepsError",
    "Task",
    "TaskGroup",
    "TerminalEncodeError",
    "TypedSerde",
    "UntestedVersionWarning",
    "app",
    "as_completed",
    "durable_step",
    "gather",
    "get_logger",
    "json_schema",
    "local",
    "map",
    "publish_schemas",
    "race",
    "restate_context",
    "run_step",
    "serde",
    "step_info",
    "typed_handler",
    "wait_for",
]

# pytest imports this package's plugin in every test run, and importing the SDK takes most of a second. So each name is
# imported on first use.
_MODULES = {
    "_app": ("app", "local"),
    "_versions": ("UntestedVersionWarning",),
    "codec": ("DEFAULT_CODEC", "PLAIN_JSON", "Codec", "JsonCodec"),
    "concurrency": ("AsCompleted", "Task", "TaskGroup", "as_completed", "gather", "map", "race", "wait_for"),
    "context": ("StepInfo", "restate_context", "step_info"),
    "logs": ("ReplayFilter", "get_logger"),
    "options": ("RetryPolicy",),
    "serdes": ("TypedSerde", "publish_schemas", "json_schema", "serde", "typed_handler"),
    "step": ("DurableStep", "durable_step", "run_step"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(_import_module(f"{__name__}.{_MODULE_OF.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
