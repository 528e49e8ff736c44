"""Durable steps for Restate: a decorator, a typed codec, and concurrency that survives a replay."""

from restate_steps._app import app, local
from restate_steps.codec import DEFAULT_CODEC, PLAIN_JSON, Codec, JsonCodec
from restate_steps.concurrency import AsCompleted, Task, TaskGroup, as_completed, gather, map, race, wait_for
from restate_steps.context import StepInfo, restate_context, step_info
from restate_steps.errors import (
    ConcurrencyError,
    ContextInStepError,
    DecodeError,
    EncodeError,
    ResultTooLargeError,
    ServerError,
    StepDefinitionError,
    StepResultError,
    StepsError,
    StepTimeoutError,
    ValueEncodeError,
)
from restate_steps.options import RetryPolicy
from restate_steps.serdes import HandlerOptions, TypedSerde, describe, json_schema, serde, typed_handler
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
    "HandlerOptions",
    "JsonCodec",
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
    "TypedSerde",
    "ValueEncodeError",
    "app",
    "as_completed",
    "describe",
    "durable_step",
    "gather",
    "json_schema",
    "local",
    "map",
    "race",
    "restate_context",
    "run_step",
    "serde",
    "step_info",
    "typed_handler",
    "wait_for",
]
