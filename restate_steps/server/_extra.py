"""The error for a package that only an extra installs."""

from __future__ import annotations

from restate_steps.errors import ServerError

__all__ = ["missing_extra"]


def missing_extra(package: str, purpose: str, *, extra: str = "server") -> ServerError:
    """Return the error for a package that only an extra installs.

    Args:
        package: The missing distribution, for example ``hypercorn``.
        purpose: Its purpose, which completes "it is required to ...".
        extra: The extra that installs it.

    Returns:
        An error to raise, ideally ``from`` the :class:`ImportError`.
    """
    return ServerError(
        f"the package {package!r} is not installed, but it is required to {purpose}. "
        f"Install it with: pip install 'restate-steps[{extra}]'"
    )
