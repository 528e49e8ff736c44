"""Options that several commands share."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import click

__all__ = [
    "ADMIN_PORT",
    "APP_PORT",
    "APP_URL",
    "FILE",
    "FOLDER",
    "HEADER",
    "INGRESS_PORT",
    "PORT",
    "TOKEN",
    "admin_options",
    "app_argument",
    "http1_option",
    "ingress_options",
    "json_option",
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


class _UrlType(click.ParamType[str]):
    """The URL of something that speaks HTTP.

    Args:
        example: A URL for the error.
        arn: Whether the ARN of a Lambda function is allowed too.
    """

    name = "url"

    def __init__(self, example: str, *, arn: bool = False) -> None:
        self._example = example
        self._arn = arn

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if self._arn and str(value).startswith("arn:"):
            return str(value)
        try:
            parts = urlsplit(str(value))
            # Reading the port checks it.
            is_url = parts.scheme in ("http", "https") and parts.hostname is not None and parts.port != 0
        except ValueError:
            is_url = False
        if not is_url:
            self.fail(f"{value!r} is not a URL. Write it like {self._example}", param, ctx)
        return str(value)


_SERVER_URL: Final = _UrlType(f"http://127.0.0.1:{ADMIN_PORT}")
APP_URL: Final = _UrlType(f"http://127.0.0.1:{APP_PORT}", arn=True)


# A token in https://www.rfc-editor.org/rfc/rfc9110#name-tokens.
_HEADER_NAME: Final = re.compile(r"[\w!#$%&'*+.^`|~-]+", re.ASCII)


class _HeaderType(click.ParamType[tuple[str, str]]):
    """The name and the value of a header."""

    name = "header"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        name, colon, text = (part.strip() for part in str(value).partition(":"))
        if not colon or _HEADER_NAME.fullmatch(name) is None:
            self.fail(f"{value!r} is not a header. Write it as NAME:VALUE.", param, ctx)
        if not text.isascii() or not text.isprintable():
            self.fail(f"the value of {name!r} has characters that are not printable ASCII.", param, ctx)
        return name, text


class _TokenType(click.ParamType[str]):
    """A bearer token. Errors do not show it."""

    name = "token"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        # A variable that was read from a file may end with a line break.
        token = str(value).strip()
        if not token.isascii() or not token.isprintable() or " " in token:
            self.fail("the token has characters that are not visible ASCII.", param, ctx)
        return token


HEADER: Final = _HeaderType()
TOKEN: Final = _TokenType()

json_option: Final = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

_TOKEN_VARIABLE: Final = "RESTATE_AUTH_TOKEN"


def admin_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that reach the admin API, and pass a client for it as ``admin``."""

    @click.option(
        "--admin",
        type=_SERVER_URL,
        metavar="URL",
        envvar="RESTATE_ADMIN_URL",
        default=f"http://127.0.0.1:{ADMIN_PORT}",
        show_default=True,
        show_envvar=True,
        help="URL of the server's admin API.",
    )
    @click.option(
        "--admin-token",
        type=TOKEN,
        metavar="TOKEN",
        envvar=_TOKEN_VARIABLE,
        show_envvar=True,
        help="Bearer token for the admin API, as Restate Cloud requires.",
    )
    @functools.wraps(command)
    def with_client(*args: Any, admin: str, admin_token: str | None, **options: Any) -> None:
        from restate_steps.server import AdminClient

        command(*args, admin=AdminClient(admin, token=admin_token), **options)

    return with_client


def ingress_options(command: F) -> F:
    """Add the options that reach the ingress."""
    for option in (
        click.option(
            "--ingress-token",
            type=TOKEN,
            metavar="TOKEN",
            envvar=_TOKEN_VARIABLE,
            show_envvar=True,
            help="Bearer token for the ingress, as Restate Cloud requires.",
        ),
        click.option(
            "--ingress",
            type=_SERVER_URL,
            metavar="URL",
            envvar="RESTATE_INGRESS_URL",
            default=f"http://127.0.0.1:{INGRESS_PORT}",
            show_default=True,
            show_envvar=True,
            help="URL of the server's ingress.",
        ),
    ):
        command = option(command)
    return command


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
