"""``restate-steps dev``, ``serve`` and ``register``: an application, from the first line to production."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from restate_steps.cli._options import (
    ADMIN_PORT,
    APP_PORT,
    APP_URL,
    FILE,
    FOLDER,
    HEADER,
    INGRESS_PORT,
    PORT,
    TOKEN,
    admin_options,
    app_argument,
    http1_option,
    json_option,
    server_options,
)

if TYPE_CHECKING:
    from restate_steps.server import AdminClient

__all__ = ["dev", "register", "serve"]

_DATA = Path(".restate-steps")


@click.command()
@app_argument(required=True)
@click.option("--port", type=PORT, metavar="PORT", help=f"Port of the app.  [default: {APP_PORT} if it is free]")
@server_options
@http1_option
@click.option(
    "--base-dir", type=FOLDER, metavar="DIR", default=_DATA, show_default=True, help="Folder for the server's data."
)
@click.option("--fresh", is_flag=True, help="Remove the data of earlier runs first.")
@click.option(
    "--watch",
    "watched",
    type=click.Path(path_type=Path, exists=True),
    multiple=True,
    metavar="PATH",
    help="File or folder to watch for changes; can be repeated.  [default: the current folder]",
)
@click.option(
    "--env-file",
    "env_files",
    type=FILE,
    multiple=True,
    metavar="FILE",
    help="File with environment variables for the app; can be repeated.",
)
@click.option("--fail-fast", is_flag=True, help="Kill an invocation when an attempt fails, instead of retrying it.")
@click.option("--verbose", is_flag=True, help="Show all that the app logs, and whole tracebacks.")
def dev(
    app: str,
    port: int | None,
    ingress_port: int | None,
    admin_port: int | None,
    always_replay: bool,
    log_filter: str,
    http1: bool,
    base_dir: Path,
    fresh: bool,
    watched: tuple[Path, ...],
    env_files: tuple[Path, ...],
    fail_fast: bool,
    verbose: bool,
) -> None:
    """Run a server and APP, and restart APP when a file changes.

    APP is a file (shop.py), a module (shop.main), or either with the name of the application in it (shop.py:app).
    """
    from restate_steps._dev.develop import DevOptions, develop

    develop(
        DevOptions(
            target=app,
            base_dir=base_dir,
            watch=watched or (Path(),),
            usual_ports=(INGRESS_PORT, ADMIN_PORT, APP_PORT),
            ingress_port=ingress_port,
            admin_port=admin_port,
            app_port=port,
            http1=http1,
            always_replay=always_replay,
            log_filter=log_filter,
            env_files=env_files,
            fresh=fresh,
            fail_fast=fail_fast,
            verbose=verbose,
        ),
        click.echo,
    )


@click.command(short_help="Serve APP.")
@app_argument(required=True)
@click.option("--host", default="127.0.0.1", show_default=True, metavar="HOST", help="Address to listen on.")
@click.option(
    "--port",
    type=PORT,
    default=APP_PORT,
    show_default=True,
    metavar="PORT",
    help="Port to listen on; 0 for a free one.",
)
@http1_option
@click.option(
    "--workers", type=click.IntRange(1), default=1, show_default=True, metavar="N", help="Number of processes."
)
@click.option(
    "--grace",
    type=click.FloatRange(0),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="Time for running steps to end after a signal.",
)
@click.option(
    "--identity-key",
    "identity_keys",
    multiple=True,
    metavar="KEY",
    help="Public key of your Restate (publickeyv1_...): reject requests that it has not signed; can be repeated.",
)
@click.option("--quiet", is_flag=True, help="Do not print the app's URL.")
def serve(
    app: str,
    host: str,
    port: int,
    http1: bool,
    workers: int,
    grace: float,
    identity_keys: tuple[str, ...],
    quiet: bool,
) -> None:
    """Serve APP: a file, a module, or either with the name of the application in it (shop.main:app)."""
    from restate_steps.server._load import load_app
    from restate_steps.server._run import run_app
    from restate_steps.server._workers import run_workers

    def ready(url: str) -> None:
        if not quiet:
            click.echo(f"serving {app} at {url}")

    if workers > 1:
        run_workers(
            app,
            workers=workers,
            host=host,
            port=port,
            http1=http1,
            ready=ready,
            grace=grace,
            identity_keys=identity_keys,
        )
    else:
        loaded = load_app(app).app
        run_app(loaded, host=host, port=port, http1=http1, ready=ready, grace=grace, identity_keys=identity_keys)


@click.command(short_help="Register the app at URL with a server.")
@click.argument("url", type=APP_URL, metavar="URL")
@click.option("--force", is_flag=True, help="Replace an existing deployment with the same URL.")
@click.option(
    "--header",
    "headers",
    type=HEADER,
    multiple=True,
    metavar="NAME:VALUE",
    help="Header that Restate adds to each request to the app; can be repeated.",
)
@click.option(
    "--bearer", type=TOKEN, metavar="TOKEN", help="Bearer token that Restate adds to each request to the app."
)
@click.option("--assume-role", metavar="ARN", help="Role with which Restate calls a Lambda function.")
@click.option("--dry-run", is_flag=True, help="Only print what would be registered.")
@http1_option
@json_option
@admin_options
def register(
    url: str,
    force: bool,
    headers: tuple[tuple[str, str], ...],
    bearer: str | None,
    assume_role: str | None,
    dry_run: bool,
    http1: bool,
    as_json: bool,
    admin: AdminClient,
) -> None:
    """Register the app at URL with a server. URL is also the ARN of a version of a Lambda function."""
    from restate_steps.server import _sql

    if url.startswith("arn:"):
        if http1:
            raise click.UsageError("--http1 applies to URLs only, not to Lambda functions.")
    elif assume_role is not None:
        raise click.UsageError("--assume-role applies to the ARN of a Lambda function only.")
    added = {**dict(headers), **({"authorization": f"Bearer {bearer}"} if bearer else {})}
    known = {row["id"] for row in admin.query(_sql.deployments())}
    if dry_run:
        found = admin.discover(url, force=force, http1=http1, headers=added, assume_role=assume_role)
    else:
        deployment = admin.register(url, force=force, http1=http1, headers=added, assume_role=assume_role)
        found = admin.deployment(deployment)
    if as_json:
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    names = sorted(f"{each['name']} (revision {each['revision']})" for each in found["services"]) or ["no services"]
    if found["id"] in known and not force:
        click.echo(f"already registered as {found['id']}: {', '.join(names)}")
        click.echo("the server has not read the app again; to replace the deployment, add --force", err=True)
    elif dry_run:
        click.echo(f"would register {', '.join(names)}")
    else:
        click.echo(f"registered {', '.join(names)} as {found['id']}")
