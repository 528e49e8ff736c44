"""One wording for "this needs an extra"."""

from __future__ import annotations

from restate_steps.errors import ServerError

__all__ = ["missing_extra"]


def missing_extra(package: str, purpose: str, *, extra: str = "server") -> ServerError:
    """Build the error for a package that only an extra installs.

    Args:
        package: The distribution that is missing, for example ``hypercorn``.
        purpose: What it is needed for, completing "it is needed to ...".
        extra: The extra that installs it.

    Returns:
        An error to raise, ideally ``from`` the :class:`ImportError`.
    """
    return ServerError(
        f"the package {package!r} is not installed, and it is needed to {purpose}. "
        f"Install it with: pip install 'restate-steps[{extra}]'"
    )
