"""``restate-steps journal``: export journals, and replay them with the current code."""

from __future__ import annotations

from pathlib import Path

import click

from restate_steps.cli._options import FILE, admin_option, app_argument

__all__ = ["journal"]


@click.group()
def journal() -> None:
    """Export journals, and replay them with the current code."""


@journal.command()
@click.argument("invocation")
@click.option("-o", "--output", type=FILE, metavar="FILE", help="File to write.  [default: standard output]")
@admin_option
def export(invocation: str, output: Path | None, admin: str) -> None:
    """Write the journal of INVOCATION, an id that starts with inv_, to a file."""
    from restate_steps.testing import export_journal

    recorded = export_journal(admin, invocation)
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
