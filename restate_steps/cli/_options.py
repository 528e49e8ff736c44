"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

__all__ = [
    "ADMIN_PORT",
    "APP_PORT",
    "FILE",
    "FOLDER",
    "INGRESS_PORT",
    "PORT",
    "admin_option",
    "app_argument",
    "http1_option",
    "ingress_option",
    "server_options",
]

F = TypeVar("F", bound=Callable[..., Any])

# The ports in Restate's documentation.
INGRESS_PORT: Final = 8080
ADMIN_PORT: Final = 9070
APP_PORT: Final = 9080

PORT: Final = click.IntRange(0, 65535)
FILE: Final = click.Path(path_type=Path, dir_okay=False)
FOLDER: Final = click.Path(path_type=Path, file_okay=False)

http1_option: Final = click.option("--http1", is_flag=True, help="Use HTTP/1.1, in request/response mode.")

admin_option: Final = click.option(
    "--admin",
    metavar="URL",
    envvar="RESTATE_ADMIN_URL",
    default=f"http://127.0.0.1:{ADMIN_PORT}",
    show_default=True,
    help="URL of the server's admin API.",
)

ingress_option: Final = click.option(
    "--ingress",
    metavar="URL",
    envvar="RESTATE_INGRESS_URL",
    default=f"http://127.0.0.1:{INGRESS_PORT}",
    show_default=True,
    help="URL of the server's ingress.",
)


def app_argument(*, required: bool) -> Callable[[F], F]:
    """Return the argument that names an application."""
    return click.argument("app", metavar="APP" if required else "[APP]", required=required)


def server_options(command: F) -> F:
    """Add the options of a server that this command starts."""
    for option in (
        click.option(
            "--log-filter",
            metavar="FILTER",
            default="warn",
            show_default=True,
            help="The server's log filter, for example info or restate_invoker_impl=debug.",
        ),
        click.option("--always-replay", is_flag=True, help="Suspend handlers whenever they wait, to test replay."),
        click.option("--admin-port", type=PORT, metavar="PORT", help=_port_help("the admin API", ADMIN_PORT)),
        click.option("--ingress-port", type=PORT, metavar="PORT", help=_port_help("the ingress", INGRESS_PORT)),
    ):
        command = option(command)
    return command


def _port_help(what: str, usual: int) -> str:
    return f"Port of {what}.  [default: {usual} if it is free]"
