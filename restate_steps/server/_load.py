"""Import the application that is named on a command line."""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path
from typing import Any, cast

from restate_steps.errors import ServerError
from restate_steps.server._serving import ASGIApp

__all__ = ["is_missing", "load_app"]


def load_app(target: str, *, folder: Path | None = None) -> ASGIApp:
    """Import an application from a string like ``module:app``.

    Args:
        target: The module and the name in it, separated by a colon, for example ``shop.main:app``.
        folder: The folder to search for modules first; the current one by default.

    Returns:
        The application.

    Raises:
        ServerError: If the module or the name does not exist, importing fails, or the object is not callable.

    Example:
        >>> load_app("no_such_module:app")
        Traceback (most recent call last):
            ...
        restate_steps.ServerError: ...the module 'no_such_module' was not found...
    """
    module_name, colon, attribute = target.partition(":")
    if not (module_name and colon and attribute):
        raise ServerError(f"{target!r} does not name an application. Write MODULE:APP, for example main:app.")
    looked_in = str((folder or Path.cwd()).absolute())
    if looked_in not in sys.path:
        sys.path.insert(0, looked_in)
    found: Any = _module(target, module_name, looked_in)
    for name in attribute.split("."):
        if not hasattr(found, name):
            raise ServerError(f"{target!r} cannot be served: the module {module_name!r} has no {attribute!r}.")
        found = getattr(found, name)
    if not callable(found):
        type_name = type(found).__name__
        raise ServerError(
            f"{target!r} cannot be served: it is an object of type {type_name}, not an ASGI application. Name the "
            "application that restate_steps.app([...]) returns."
        )
    return cast("ASGIApp", found)


def _module(target: str, name: str, looked_in: str) -> object:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if is_missing(name, error):
            raise ServerError(
                f"{target!r} cannot be served: the module {error.name!r} was not found in {looked_in} and is not "
                "installed."
            ) from error
        raise _failed(target, name, error) from error
    except Exception as error:
        raise _failed(target, name, error) from error


def is_missing(name: str, error: ModuleNotFoundError) -> bool:
    """Return whether a module was not found itself, and not a module that it imports."""
    return error.name is not None and (name == error.name or name.startswith(f"{error.name}."))


def _failed(target: str, name: str, error: Exception) -> ServerError:
    shown = traceback.TracebackException.from_exception(error)
    # Hide the frames of the import system.
    kept = [frame for frame in shown.stack if "importlib" not in frame.filename and frame.filename != __file__]
    shown.stack = traceback.StackSummary.from_list(kept)
    details = "".join(shown.format(chain=False)).rstrip()
    return ServerError(f"{target!r} cannot be served: importing {name!r} failed.\n{details}")
