"""One wording for "this needs the server extra"."""

from __future__ import annotations

from restate_steps.errors import ServerError

__all__ = ["missing_extra"]


def missing_extra(package: str, purpose: str) -> ServerError:
    """Build the error for a package that only the ``server`` extra installs.

    Args:
        package: The distribution that is missing, for example ``hypercorn``.
        purpose: What it is needed for, completing "it is needed to ...".

    Returns:
        An error to raise, ideally ``from`` the :class:`ImportError`.
    """
    return ServerError(
        f"the package {package!r} is not installed, and it is needed to {purpose}. "
        "Install it with: pip install 'restate-steps[server]'"
    )
