"""The versions of restate-sdk and restate-server that this release was tested with, and a warning about any other."""

from __future__ import annotations

import functools
import importlib
import sys
import warnings
from typing import Final

from restate_steps._public import publish

__all__ = ["TESTED_SDK", "TESTED_SERVER", "UntestedVersionWarning", "is_tested", "warn_about_sdk", "warn_about_server"]

TESTED_SDK: Final = "1.3"
"""The series of restate-sdk, as in pyproject.toml."""

TESTED_SERVER: Final = "1.7"
"""The series of restate-server, which includes the pinned version."""

_INTERNAL: Final = ("restate_steps", "importlib")


class UntestedVersionWarning(UserWarning):
    """This release was not tested with the installed restate-sdk, or with the server that an application registers at.

    Example:
        ```python
        import warnings

        warnings.simplefilter("ignore", UntestedVersionWarning)
        ```
    """


def is_tested(found: str, series: str) -> bool:
    """Return whether a version belongs to a series.

    Example:
        >>> is_tested("1.3.2", "1.3"), is_tested("1.30.0", "1.3")
        (True, False)
    """
    return found.split(".")[:2] == series.split(".")


def warn_about_sdk() -> None:
    """Warn if this release was not tested with the installed restate-sdk."""
    # importlib.metadata would add a tenth to the time that importing this package takes.
    found: str | None = getattr(importlib.import_module("restate._internal"), "SDK_VERSION", None)
    if found is not None and not is_tested(found, TESTED_SDK):
        _warn(
            f"restate-sdk {found} is installed, but this release of restate-steps was tested with {TESTED_SDK}, so "
            f"install restate-sdk {TESTED_SDK}, or a release of restate-steps that knows {found}."
        )


@functools.cache
def warn_about_server(found: str) -> None:
    """Warn, once, if this release was not tested with a server of this version."""
    if not is_tested(found, TESTED_SERVER):
        _warn(
            f"the server is restate-server {found}, but this release of restate-steps was tested with {TESTED_SERVER}, "
            "so test your handlers on this server before you rely on it."
        )


def _warn(message: str) -> None:
    """Issue the warning at the line of the user's code that led here."""
    frame = sys._getframe()  # pyright: ignore[reportPrivateUsage]
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in _INTERNAL:
        frame = frame.f_back
    warnings.warn_explicit(message, UntestedVersionWarning, frame.f_code.co_filename, frame.f_lineno)


publish("restate_steps", globals(), ["UntestedVersionWarning"])
