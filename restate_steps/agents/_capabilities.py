"""Helpers that inspect an agent's capabilities."""

from __future__ import annotations

import contextlib
from collections.abc import Container, Mapping
from typing import Any, TypeVar

from pydantic_ai import models
from pydantic_ai.capabilities import AbstractCapability, ModelFallback
from pydantic_ai.exceptions import UserError
from pydantic_ai.models import Model

__all__ = ["add_model", "models_to_fall_back_to", "parts_of"]

Part = TypeVar("Part", bound=AbstractCapability[Any])


def parts_of(capability: AbstractCapability[Any], part_type: type[Part]) -> list[Part]:
    """Return the parts of a capability that are instances of a class."""
    found: list[Part] = []
    capability.apply(lambda part: found.append(part) if isinstance(part, part_type) else None)
    return found


def models_to_fall_back_to(
    capability: AbstractCapability[Any], known: Mapping[str, Model[Any]]
) -> dict[str, Model[Any]]:
    """Return the models of every ``ModelFallback`` in a capability, by name; skip known model names."""
    named: dict[str, Model[Any]] = {}
    fallbacks: list[ModelFallback[Any]] = parts_of(capability, ModelFallback)
    for model in (model for fallback in fallbacks for model in fallback.models):
        if not isinstance(model, str):
            if not any(model is each for each in known.values()):
                add_model(named, model, known)
        elif model not in known:
            # A model that cannot be created raises its own error when a run needs it.
            with contextlib.suppress(UserError, ValueError, ImportError):
                named[model] = models.infer_model(model)
    return named


def add_model(named: dict[str, Model[Any]], model: Model[Any], taken: Container[str] = ()) -> None:
    """Add a model under a unique name that is not taken, unless it already has one."""
    if any(known is model for known in named.values()):
        return
    name = model.model_name
    while name in named or name in taken or name == "default":
        name += "_"
    named[name] = model
