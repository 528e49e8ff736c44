"""Import the application that is named on a command line."""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from restate_steps._drain import DrainingApp
from restate_steps.errors import ServerError
from restate_steps.server._serving import ASGIApp

__all__ = ["LoadedApp", "TargetError", "is_missing", "load_app"]

_ASGI_PARAMETERS: Final = ("scope", "receive", "send")
_EXPECTED: Final = "Name the application that restate_steps.app([...]) returns."


class TargetError(ServerError):
    """A name on the command line that does not lead to an application."""


@dataclass(frozen=True, slots=True)
class LoadedApp:
    """An application, and its full name.

    Attributes:
        app: The application.
        name: Its name as ``module:app``.
    """

    app: ASGIApp
    name: str


def load_app(target: str, *, folder: Path | None = None) -> LoadedApp:
    """Import an application.

    Args:
        target: A file such as ``shop.py``, a module such as ``shop.main``, or either with the name of the application
            in it, such as ``shop.main:app``. Without that name, the module must have a single application.
        folder: The folder to search for modules first; the current one by default.

    Returns:
        The application.

    Raises:
        TargetError: The file, the module or the name does not exist, or is not an application.
        ServerError: Importing the module fails.

    Example:
        >>> load_app("no_such_module:app")
        Traceback (most recent call last):
            ...
        restate_steps.server._load.TargetError: ...no module 'no_such_module' was found in ...
    """
    place, colon, attribute = target.partition(":")
    if not place or (colon and not attribute):
        raise TargetError(
            f"{target!r} does not name an application. Write a file, a module, or MODULE:APP, for example main:app."
        )
    looked_in = (folder or Path.cwd()).absolute()
    module_name = place
    if place.endswith(".py") or "/" in place:
        looked_in, module_name = _module_of_file(target, looked_in / place)
    if str(looked_in) not in sys.path:
        sys.path.insert(0, str(looked_in))
    module = _module(target, module_name, looked_in)
    name = attribute or _only_app(target, module_name, vars(module))
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            likely = _likely(part, [each for each, value in vars(module).items() if _is_app(value)], vars(module))
            raise TargetError(f"{target!r} cannot be served: {module_name!r} has no {attribute!r}.{likely}")
        found = getattr(found, part)
    if not _is_app(found):
        kind = f"an object of type {type(found).__name__}, not an ASGI application"
        raise TargetError(f"{target!r} cannot be served: it is {kind}. {_EXPECTED}")
    return LoadedApp(cast("ASGIApp", found), f"{module_name}:{name}")


def is_missing(name: str, error: ModuleNotFoundError) -> bool:
    """Return whether a module was not found itself, and not a module that it imports."""
    return error.name is not None and (name == error.name or name.startswith(f"{error.name}."))


def _module_of_file(target: str, file: Path) -> tuple[Path, str]:
    """Return the folder to import a file from, and the name of its module: inside a package, the package's."""
    if not file.is_file():
        others = [each.name for each in file.parent.glob("*.py")] if file.parent.is_dir() else []
        reason = "it is a folder" if file.is_dir() else "the file does not exist"
        raise TargetError(f"{target!r} cannot be served: {reason}.{_likely(file.name, others)}")
    if file.suffix != ".py" or not file.stem.isidentifier():
        raise TargetError(f"{target!r} cannot be served: {file.name} is not a Python file whose name can be imported.")
    names, folder = ([] if file.stem == "__init__" else [file.stem]), file.parent
    while (folder / "__init__.py").is_file():
        names.insert(0, folder.name)
        folder = folder.parent
    return folder, ".".join(names)


def _module(target: str, name: str, looked_in: Path) -> object:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if is_missing(name, error):
            modules = [each.stem for each in looked_in.glob("*.py")]
            modules += [each.parent.name for each in looked_in.glob("*/__init__.py")]
            raise TargetError(
                f"{target!r} cannot be served: no module {error.name!r} was found in {looked_in}, and none is "
                f"installed.{_likely(name, modules)}"
            ) from error
        raise _failed(target, name, error) from error
    except (Exception, SystemExit) as error:
        raise _failed(target, name, error) from error


def _only_app(target: str, module_name: str, namespace: Mapping[str, Any]) -> str:
    """Return the name of the single application in a module."""
    names: dict[int, str] = {}
    for name, value in namespace.items():
        if _is_sdk_app(value):
            names.setdefault(id(value), name)
    match list(names.values()):
        case [name]:
            return name
        case []:
            raise TargetError(
                f"{target!r} cannot be served: {module_name!r} has no Restate application.{_missing(namespace)}"
            )
        case several:
            listed = ", ".join(f"{module_name}:{name}" for name in several)
            raise TargetError(f"{target!r} cannot be served: it has several applications. Choose one of {listed}.")


def _missing(namespace: Mapping[str, Any]) -> str:
    import restate

    services = [
        name
        for name, value in namespace.items()
        if isinstance(value, (restate.Service, restate.VirtualObject, restate.Workflow))
    ]
    return f" Add one: app = restate_steps.app([{', '.join(services) or '...'}])"


def _is_app(value: object) -> bool:
    """Return whether a value looks like an ASGI application, without calling it: it may be a step that charges."""
    if _is_sdk_app(value):
        return True
    if inspect.isclass(value) or not callable(value):
        return False
    try:
        parameters = inspect.signature(value).parameters
    except (TypeError, ValueError):
        return False
    return tuple(parameters)[:3] == _ASGI_PARAMETERS


def _is_sdk_app(value: object) -> bool:
    if isinstance(value, DrainingApp):
        return True
    # The SDK's applications are functions without a class of their own.
    return inspect.isfunction(value) and value.__module__ == "restate.server" and "asgi_app" in value.__qualname__


def _likely(name: str, *names: Iterable[str]) -> str:
    """Return a suggestion for a misspelled name: the closest one of the first group that has any."""
    for group in names:
        if found := difflib.get_close_matches(name, list(group), n=1):
            return f" Did you mean {found[0]!r}?"
    return ""


def _failed(target: str, name: str, error: BaseException) -> ServerError:
    shown = traceback.TracebackException.from_exception(error)
    # Hide the frames of the import system.
    kept = [frame for frame in shown.stack if "importlib" not in frame.filename and frame.filename != __file__]
    shown.stack = traceback.StackSummary.from_list(kept)
    details = "".join(shown.format(chain=False)).rstrip()
    return ServerError(f"{target!r} cannot be served: importing {name!r} failed.\n{details}")
