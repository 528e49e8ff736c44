"""``restate-steps journal``: export journals, and replay them with the current code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from restate_steps.cli._group import Group
from restate_steps.cli._options import FILE, admin_options, app_argument

if TYPE_CHECKING:
    from restate_steps.server import AdminClient

__all__ = ["journal"]


@click.group(cls=Group)
def journal() -> None:
    """Export journals, and replay them with the current code."""


@journal.command()
@click.argument("invocation")
@click.option("-o", "--output", type=FILE, metavar="FILE", help="File to write.  [default: standard output]")
@admin_options
def export(invocation: str, output: Path | None, admin: AdminClient) -> None:
    """Write the journal of INVOCATION to a file. The beginning of an id is enough."""
    from restate_steps.server._invocations import id_of
    from restate_steps.testing import export_journal

    recorded = export_journal(admin, id_of(admin, invocation))
    if output is None:
        click.echo(recorded.to_text(), nl=False)
        return
    recorded.save(output)
    state = "completed" if recorded.ended else "in flight"
    click.echo(f"wrote the journal of {recorded.target} ({state}, {len(recorded.frames)} entries) to {output}")


@journal.command()
@app_argument(required=True)
@click.argument("journals", metavar="JOURNAL...", nargs=-1, required=True)
def replay(app: str, journals: tuple[str, ...]) -> None:
    """Check that APP can replay recorded journals: exported files, or folders of them."""
    from restate_steps.server._load import load_app
    from restate_steps.testing import load_journals
    from restate_steps.testing import replay as replay_all

    found = [each for path in journals for each in load_journals(path)]
    replay_all(found, load_app(app).app)
    click.echo(f"{len(found)} {'journal' if len(found) == 1 else 'journals'} replayed")
