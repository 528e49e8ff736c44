"""Find the application of a handler, in this process and, by name, in another one."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final, cast

import restate
from restate.handler import handler_from_callable

import restate_steps
from restate_steps._user_code import is_user_code
from restate_steps.server._load import is_missing
from restate_steps.testing._determinism.user_code import COPY_OF_MAIN, MAIN, Place, definition_of, file_of
from restate_steps.testing._errors import SimulationError
from restate_steps.testing._simulation.application import ASGIApp
from restate_steps.testing._simulation.calls import HandlerRef

__all__ = ["AppName", "app_named", "app_of", "name_of"]

_SERVICES: Final = (restate.Service, restate.VirtualObject, restate.Workflow)


def app_of(handler: HandlerRef | None) -> ASGIApp:
    """Return an application with all services of a handler's module.

    Raises:
        SimulationError: It is not a handler, or its service is not a global variable of its module.
    """
    if handler is None or isinstance(handler, str):
        raise SimulationError(
            "the application can be found only from a handler's function. Pass it too: app=restate_steps.app([...])."
        )
    try:
        known: Any = handler_from_callable(handler)
    except (ValueError, TypeError):
        raise SimulationError(
            f"{handler!r} is not a handler of a service. Pass the function that is decorated with @service.handler()."
        ) from None
    namespace = getattr(inspect.unwrap(handler), "__globals__", {})
    found = _services(namespace.values())
    if not any(known in service.handlers.values() for service in found):
        raise SimulationError(
            f"the service {known.service_tag.name!r} of {_shown(handler)} is not a global variable of its module, so "
            "its application cannot be found. Pass it: app=restate_steps.app([service])."
        )
    return restate_steps.app(found)


def _shown(handler: Callable[..., Any]) -> str:
    return getattr(handler, "__qualname__", repr(handler))


def _services(values: Iterable[Any]) -> list[Any]:
    found: list[Any] = []
    for value in values:
        # A service may have two names in a module.
        if isinstance(value, _SERVICES) and cast(Any, value).handlers and value not in found:
            found.append(value)
    return found


@dataclass(frozen=True, slots=True)
class AppName:
    """The name of an application, by which another process finds it.

    Attributes:
        module: The name of the module.
        file: The file of the module, in case it cannot be imported by its name.
        attribute: The name of the application in the module; None to make it from the module's services.
        service: The name of a service that the application must have.
    """

    module: str
    file: str | None
    attribute: str | None
    service: str


def name_of(app: ASGIApp | None, service: str, definition: Place | None, defined_in: str | None) -> AppName | str:
    """Return the name by which another process finds an application, or a sentence that says why it cannot.

    Args:
        app: The application; None if it was made from the services of a module.
        service: The name of a service that the application must have.
        definition: The line that defines a handler of the service: another module may have a service of the same name.
        defined_in: The name of the module that defines the handler: a file may be loaded under two names.
    """
    for module in list(sys.modules.values()):
        file = file_of(module) if isinstance(module, ModuleType) else None
        if app is None or file is None or not is_user_code(file):
            continue
        for attribute, value in list(vars(module).items()):
            if value is app:
                return AppName(module.__name__, file, attribute, service)
    found = _modules_with(service)
    for name, places in sorted(found.items(), key=lambda each: each[0] != defined_in):
        if definition is not None and definition not in places:
            continue
        module = sys.modules[name]
        file = file_of(module)
        if file is None or not Path(file).exists():
            return f"the module {name} has no file, so another process cannot import it"
        return AppName(name, file, None, service)
    other = f" that has the same handler (not in {', '.join(found)})" if found else ""
    return (
        f"neither the application nor the service {service!r} is a global variable of a module{other}, so another "
        "process cannot find it"
    )


def _modules_with(service: str) -> dict[str, set[Place | None]]:
    """Return the modules that have a service as a global variable, with the lines that define its handlers."""
    found: dict[str, set[Place | None]] = {}
    for name, module in list(sys.modules.items()):
        if isinstance(module, ModuleType) and module.__name__ == name:
            for each in _services(list(vars(module).values())):
                if each.service_tag.name == service:
                    found.setdefault(name, set()).update(definition_of(it.fn) for it in each.handlers.values())
    return found


def app_named(name: AppName) -> ASGIApp:
    """Return a named application in this process.

    Raises:
        Exception: The module cannot be imported, or does not have the application.
    """
    module = _load(name)
    if name.attribute is not None:
        return getattr(module, name.attribute)
    found = _services(list(vars(module).values()))
    if not any(service.service_tag.name == name.service for service in found):
        raise LookupError(f"the module {name.module} has no service {name.service!r} there")
    return restate_steps.app(found)


def _load(name: AppName) -> ModuleType:
    if name.module != MAIN:
        try:
            module = importlib.import_module(name.module)
            if name.file is None or _same_file(module, name.file):
                return module
        except ModuleNotFoundError as error:
            if not is_missing(name.module, error):
                raise
    if name.file is None:
        raise ModuleNotFoundError(f"no module {name.module}")
    # Load a copy under another name, so that code under ``if __name__ == "__main__"`` does not run again.
    known = COPY_OF_MAIN if name.module == MAIN else name.module
    if known in sys.modules and _same_file(sys.modules[known], name.file):
        return sys.modules[known]
    spec = importlib.util.spec_from_file_location(known, name.file)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"{name.file} cannot be imported")
    module = sys.modules[known] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _same_file(module: ModuleType, file: str) -> bool:
    """Return whether a module was loaded from a file, and is not another module of the same name."""
    own = file_of(module)
    return own is not None and Path(own).resolve() == Path(file).resolve()
