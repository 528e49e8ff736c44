"""A group of commands."""

from __future__ import annotations

import click

__all__ = ["Group"]


class Group(click.Group):
    """A group that shows its help without a verb, and succeeds."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help(), color=ctx.color)
            ctx.exit()
        return super().parse_args(ctx, args)
