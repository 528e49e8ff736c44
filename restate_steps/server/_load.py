"""Import the application that a command line names."""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path
from typing import Any, cast

from restate_steps.errors import ServerError
from restate_steps.server._serving import ASGIApp

__all__ = ["load_app"]


def load_app(target: str, *, folder: Path | None = None) -> ASGIApp:
    """Import an application, as ``module:app`` names it.

    Args:
        target: The module and the name in it, with a colon between: ``shop.main:app``.
        folder: Where modules are looked for first; the current folder if left out.

    Returns:
        The application.

    Raises:
        ServerError: If there is no such module or name, the module fails, or what it has is no ASGI application.

    Example:
        >>> load_app("no_such_module:app")
        Traceback (most recent call last):
            ...
        restate_steps.errors.ServerError: ...there is no module 'no_such_module'...
    """
    module_name, colon, attribute = target.partition(":")
    if not (module_name and colon and attribute):
        raise ServerError(f"{target!r} names no application: write MODULE:APP, for example main:app.")
    looked_in = str((folder or Path.cwd()).absolute())
    if looked_in not in sys.path:
        sys.path.insert(0, looked_in)
    found: Any = _module(target, module_name, looked_in)
    for name in attribute.split("."):
        if not hasattr(found, name):
            raise ServerError(f"{target!r} cannot be served: the module {module_name!r} has no {attribute!r}.")
        found = getattr(found, name)
    if not callable(found):
        kind = type(found).__name__
        raise ServerError(
            f"{target!r} cannot be served: it is not callable but of type {kind}. Give the ASGI application that "
            "restate_steps.app([...]) returns."
        )
    return cast("ASGIApp", found)


def _module(target: str, name: str, looked_in: str) -> object:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # A module that the named one imports may be missing as well, and that is another matter.
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise ServerError(
                f"{target!r} cannot be served: there is no module {error.name!r}, in {looked_in} or installed."
            ) from error
        raise _failed(target, name, error) from error
    except Exception as error:
        raise _failed(target, name, error) from error


def _failed(target: str, name: str, error: Exception) -> ServerError:
    shown = traceback.TracebackException.from_exception(error)
    # The frames of the import machinery say nothing about the module.
    kept = [frame for frame in shown.stack if "importlib" not in frame.filename and frame.filename != __file__]
    shown.stack = traceback.StackSummary.from_list(kept)
    details = "".join(shown.format(chain=False)).rstrip()
    return ServerError(f"{target!r} cannot be served: importing {name!r} failed.\n{details}")
