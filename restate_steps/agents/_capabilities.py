"""What is read off an agent's capabilities: its parts of a kind, and the models that they bring along."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic_ai import models
from pydantic_ai.capabilities import AbstractCapability, ModelFallback
from pydantic_ai.exceptions import UserError
from pydantic_ai.models import Model

__all__ = ["add_model", "models_to_fall_back_to", "parts_of"]

Part = TypeVar("Part", bound=AbstractCapability[Any])


def parts_of(capability: AbstractCapability[Any], kind: type[Part]) -> list[Part]:
    """Return the parts of a kind of which a capability is made."""
    found: list[Part] = []
    capability.apply(lambda part: found.append(part) if isinstance(part, kind) else None)
    return found


def models_to_fall_back_to(
    capability: AbstractCapability[Any], known: Mapping[str, Model[Any]]
) -> dict[str, Model[Any]]:
    """Return the models of each ``ModelFallback`` in a capability, by names that they can have beside known ones."""
    named: dict[str, Model[Any]] = {}
    fallbacks: list[ModelFallback[Any]] = parts_of(capability, ModelFallback)
    for model in (model for fallback in fallbacks for model in fallback.models):
        if not isinstance(model, str):
            add_model(named, model)
        elif model not in known:
            # One that cannot be made has its turn to say so when it is needed.
            with contextlib.suppress(UserError, ValueError, ImportError):
                named[model] = models.infer_model(model)
    return named


def add_model(named: dict[str, Model[Any]], model: Model[Any]) -> None:
    """Give a model a name among others, unless it has one."""
    if any(known is model for known in named.values()):
        return
    name = model.model_name
    while name in named or name == "default":
        name += "_"
    named[name] = model
