"""``restate-steps server`` and ``doctor``: a server on this machine, and what it needs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from restate_steps.cli._options import ADMIN_PORT, FOLDER, INGRESS_PORT, server_options

if TYPE_CHECKING:
    from restate_steps.server import RestateServer

__all__ = ["doctor", "server"]


@click.command()
@click.option(
    "--base-dir", type=FOLDER, metavar="DIR", help="Folder for the server's data.  [default: a temporary folder]"
)
@server_options
@click.option("--version-only", is_flag=True, help="Only find or fetch the server, and print its version and path.")
def server(
    base_dir: Path | None,
    ingress_port: int | None,
    admin_port: int | None,
    always_replay: bool,
    log_filter: str,
    version_only: bool,
) -> None:
    """Run a server, and fetch it first if necessary."""
    from restate_steps.server import RestateServer, ensure_server, server_version
    from restate_steps.server._run import run_server

    if version_only:
        binary = ensure_server()
        click.echo(f"restate-server {server_version(binary)} at {binary}")
        return

    def ready(server: RestateServer) -> None:
        click.echo(f"  ingress  {server.ingress_url}")
        click.echo(f"  admin    {server.admin_url}")
        click.echo(f"  UI       {server.ui_url}")
        click.echo(f"  data     {server.base_dir}{'' if base_dir else ' (removed at the end)'}")
        click.echo(f"  log      {server.log_path}")

    run_server(
        RestateServer(
            base_dir=base_dir,
            always_replay=always_replay,
            log_filter=log_filter,
            ingress_port=ingress_port,
            admin_port=admin_port,
            preferred_ports=(INGRESS_PORT, ADMIN_PORT),
        ),
        ready=ready,
    )


@click.command()
@click.pass_context
def doctor(context: click.Context) -> None:
    """Check that this machine can run a server and apps."""
    from restate_steps.server._doctor import examine

    broken = 0
    for finding in examine():
        click.echo(f"{'ok' if finding.ok else 'FAIL':<4}  {finding.subject:<16}  {finding.detail}")
        if not finding.ok:
            broken += 1
            click.echo(f"{'':<24}-> {finding.fix}")
    click.echo(f"{broken} {'problem' if broken == 1 else 'problems'} found" if broken else "no problems found")
    if broken:
        context.exit(1)
