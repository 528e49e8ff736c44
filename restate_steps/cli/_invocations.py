"""``restate-steps invocations``: find, inspect and change invocations."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TextIO, cast

import click

from restate_steps._printable import printable
from restate_steps.cli._group import Group
from restate_steps.cli._options import admin_options, json_option

if TYPE_CHECKING:
    from restate_steps.server import AdminClient
    from restate_steps.server._invocations import Filters

__all__ = ["invocations"]

# The names in restate_steps.server._invocations, which help must not import.
_OPEN: Final = ("pending", "scheduled", "ready", "running", "suspended", "backing-off", "paused")
_STATUSES: Final = (*_OPEN, "completed", "failing", "open", "succeeded", "failed")

_FILTERS: Final = (
    click.option("--service", metavar="NAME", help="Only those of this service."),
    click.option("--handler", metavar="NAME", help="Only those of this handler."),
    click.option("--key", metavar="KEY", help="Only those with this key of a Virtual Object or workflow."),
    click.option(
        "--status",
        "statuses",
        type=click.Choice(_STATUSES),
        multiple=True,
        metavar="STATUS",
        help=(
            f"Only those with this status; can be repeated. {', '.join(_OPEN)} and completed are Restate's; failing is "
            "backing-off or paused, open is all but completed, and completed ones have succeeded or failed."
        ),
    ),
)


def filter_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that filter invocations, and pass them as ``filters``."""

    @functools.wraps(command)
    def with_filters(
        *args: Any, service: str | None, handler: str | None, key: str | None, statuses: tuple[str, ...], **options: Any
    ) -> None:
        from restate_steps.server._invocations import Filters

        command(*args, filters=Filters(service, handler, key, statuses), **options)

    decorated: Callable[..., None] = with_filters
    for option in reversed(_FILTERS):
        decorated = option(decorated)
    return decorated


@click.group(cls=Group)
def invocations() -> None:
    """Find, inspect and change invocations. The beginning of an id is enough."""


@invocations.command("list", short_help="List invocations, the newest last.")
@filter_options
@click.option("-a", "--all", "completed_too", is_flag=True, help="List completed invocations too.")
@click.option(
    "-n",
    "--limit",
    type=click.IntRange(1),
    default=50,
    show_default=True,
    metavar="N",
    help="Maximum number; the newest are listed.",
)
@json_option
@admin_options
def list_invocations(filters: Filters, completed_too: bool, limit: int, as_json: bool, admin: AdminClient) -> None:
    """List invocations, the newest last: those that have not completed, unless --all or --status is given."""
    from restate_steps.cli._show import json_text, table
    from restate_steps.server._invocations import find_invocations, short_ids

    among = () if completed_too or filters.statuses else ("open",)
    rows = find_invocations(admin, filters, among=among, limit=limit + 1)
    more, rows = len(rows) > limit, rows[-limit:]
    if as_json:
        click.echo(json_text(rows))
    elif rows:
        for line in table(rows, short_ids(admin, [row["id"] for row in rows])):
            click.echo(line)
    else:
        click.echo(f"no {'open ' if among else ''}invocations{' match' if filters else ''}", err=True)
    if more:
        click.echo(f"there are older ones; these are the {limit} newest (--limit)", err=True)


@invocations.command(short_help="Show the journal, the last failure and the waits.")
@click.argument("invocation")
@click.option("--full", is_flag=True, help="Print whole values, and the whole traceback of the last failure.")
@json_option
@admin_options
def show(invocation: str, full: bool, as_json: bool, admin: AdminClient) -> None:
    """Show an invocation: its steps with their values, its last failure, and what it waits for."""
    from restate_steps.cli._show import json_text, report_lines
    from restate_steps.server._invocations import id_of
    from restate_steps.server._report import report_on

    report = report_on(admin, id_of(admin, invocation))
    if as_json:
        click.echo(json_text(report))
        return
    for line in report_lines(report, full=full):
        click.echo(line)


def _verb(name: str, done: str, among: Sequence[str], help_text: str) -> None:
    """Add a command that changes invocations.

    Args:
        name: The name of the command, and of the method of ``AdminClient``.
        done: The verb for what has happened, or is happening.
        among: The statuses of the invocations that filters find.
        help_text: The text for ``--help``.
    """

    @invocations.command(name, help=f"{help_text} Give ids, or filters.")
    @click.argument("ids", metavar="[INVOCATION]...", nargs=-1)
    @filter_options
    @click.option("-y", "--yes", is_flag=True, help="Do not ask before changing those that the filters find.")
    @admin_options
    @click.pass_context
    def change(context: click.Context, ids: tuple[str, ...], filters: Filters, yes: bool, admin: AdminClient) -> None:
        if bool(ids) == bool(filters):
            raise click.UsageError("Give either the ids of invocations, or filters.", context)
        found = _named(admin, ids) if ids else _confirmed(admin, filters, among, name, yes)
        changed = [_changed(admin, name, done, *each) for each in found]
        if not all(changed):
            context.exit(1)


def _named(admin: AdminClient, names: Sequence[str]) -> list[tuple[str, str]]:
    """Return the ids, before anything is changed: one of them may be wrong."""
    from restate_steps.server._invocations import id_of

    ids = dict.fromkeys(id_of(admin, name) for name in names)
    return [(each, "") for each in ids]


def _confirmed(
    admin: AdminClient, filters: Filters, among: Sequence[str], verb: str, yes: bool
) -> list[tuple[str, str]]:
    """Return the ids and targets of invocations that filters find, if the user agrees."""
    from restate_steps.server._invocations import find_invocations

    rows = find_invocations(admin, filters, among=among)
    if not rows:
        click.echo(f"no invocations to {verb} match", err=True)
        return []
    if not yes:
        count = "1 invocation" if len(rows) == 1 else f"{len(rows)} invocations"
        # A process may have no stdin, for example a daemon.
        stdin = cast("TextIO | None", sys.stdin)
        if stdin is None or not stdin.isatty():
            raise click.UsageError(f"This would {verb} {count}. To confirm it without a terminal, add --yes.")
        if not click.confirm(f"{verb} {count}?", err=True):
            return []
    return [(row["id"], f"  {printable(row['target'])}") for row in rows]


def _changed(admin: AdminClient, verb: str, done: str, invocation: str, target: str) -> bool:
    """Change one invocation; a failure does not keep the others from being changed."""
    from restate_steps.errors import ServerError

    try:
        getattr(admin, verb)(invocation)
    except ServerError as error:
        click.echo(f"error: {error}", err=True)
        return False
    click.echo(f"{done} {invocation}{target}")
    return True


for _arguments in (
    ("cancel", "cancelling", ("open",), "Cancel invocations. Their handlers see it, and can undo what they did."),
    ("kill", "killed", ("open",), "Kill invocations at once. Their handlers are not notified."),
    (
        "pause",
        "pausing",
        ("running", "suspended", "backing-off"),
        "Pause invocations until they are resumed. A step that is running ends first.",
    ),
    ("resume", "resumed", ("paused", "backing-off"), "Resume paused invocations, or retry failing ones now."),
    ("purge", "purged", ("completed",), "Remove completed invocations, with their results and journals."),
):
    _verb(*_arguments)
