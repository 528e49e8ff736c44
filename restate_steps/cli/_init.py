"""``restate-steps init``: a small project."""

from __future__ import annotations

import click

__all__ = ["init"]


@click.command()
def init() -> None:
    """Stub."""
