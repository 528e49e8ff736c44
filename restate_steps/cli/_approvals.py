"""``restate-steps approvals``: list and answer the requests of agents, and the awakeables of other handlers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import click

from restate_steps._printable import printable
from restate_steps.cli._group import Group
from restate_steps.cli._options import admin_options, ingress_options

if TYPE_CHECKING:
    from restate_steps.server import AdminClient
    from restate_steps.server._approvals import PendingRequest

__all__ = ["approvals"]


class _Json(click.ParamType[Any]):
    """Any JSON."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return json.loads(value, parse_constant=_refuse)
        except ValueError as error:
            self.fail(f"not JSON: {error}", param, ctx)


class _JsonObject(_Json):
    """A JSON object."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = super().convert(value, param, ctx)
        if not isinstance(found, dict):
            self.fail(f"expected a JSON object of arguments by name, got {value}", param, ctx)
        return cast("dict[str, Any]", found)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a JSON value")


@click.group(cls=Group, short_help="List and answer requests of agents, and awakeables.")
def approvals() -> None:
    """List and answer what waits for an answer from outside: agents and awakeables."""


@approvals.command("list", short_help="List what waits for an answer.")
@admin_options
def list_pending(admin: AdminClient) -> None:
    """List the requests of agents, and the awakeables of other handlers, oldest invocation first.

    Restate knows an awakeable when its handler is suspended: after the inactivity timeout, 1 minute by default.
    """
    from restate_steps.server._approvals import find_awakeables, find_pending

    requests, awakeables = find_pending(admin), find_awakeables(admin)
    for request in requests:
        asked = printable(f"{request.name} of {request.agent}, asked in {request.target}")
        click.echo(f"{request.token}  {asked} ({request.invocation})")
        for call in request.calls:
            note = "" if call.kind == "approval" else "  waits for a result"
            click.echo(printable(f"  {call.id}  {call.tool}({json.dumps(call.args)}){note}"))
    for each in awakeables:
        click.echo(f"{each.id}  awakeable, awaited in {printable(each.target)} ({each.invocation})")
    if not requests and not awakeables:
        click.echo("nothing waits for an answer")


@approvals.command(short_help="Approve the tool calls of a request.")
@click.argument("request")
@click.option(
    "--call",
    "calls",
    multiple=True,
    metavar="ID",
    help="Approve only this call and deny the others; can be repeated.  [default: approve all]",
)
@click.option("--args", type=_JsonObject(), metavar="JSON", help="Arguments that replace the model's.")
@ingress_options
@admin_options
def approve(
    request: str,
    calls: tuple[str, ...],
    args: dict[str, Any] | None,
    ingress: str,
    ingress_token: str | None,
    admin: AdminClient,
) -> None:
    """Approve tool calls, which then run. REQUEST is a token, or the id of the waiting invocation."""
    from restate_steps.server._approvals import Ingress, approve_pending, pending_named

    found = pending_named(admin, request)
    approve_pending(Ingress(ingress, ingress_token), found, calls=calls, args=args)
    click.echo(f"approved: {_calls_of(found, calls or None)}")


@approvals.command(short_help="Deny the tool calls of a request.")
@click.argument("request")
@click.option(
    "--message", default="The tool call was denied.", show_default=True, metavar="TEXT", help="Message for the model."
)
@ingress_options
@admin_options
def deny(request: str, message: str, ingress: str, ingress_token: str | None, admin: AdminClient) -> None:
    """Deny all tool calls of REQUEST, a token or the id of the waiting invocation."""
    from restate_steps.server._approvals import Ingress, deny_pending, pending_named

    found = pending_named(admin, request)
    deny_pending(Ingress(ingress, ingress_token), found, message=message)
    click.echo(f"denied: {_calls_of(found, None)}")


@approvals.command(short_help="Resolve an awakeable.")
@click.argument("awakeable")
@click.argument("value", metavar="[JSON]", type=_Json(), default="null")
@ingress_options
def resolve(awakeable: str, value: Any, ingress: str, ingress_token: str | None) -> None:
    """Resolve AWAKEABLE, an id that starts with sign_, with a value."""
    from restate_steps.server._approvals import Ingress, resolve_awakeable

    resolve_awakeable(Ingress(ingress, ingress_token), awakeable, value)
    click.echo(f"resolved {awakeable}")


@approvals.command(short_help="Reject an awakeable.")
@click.argument("awakeable")
@click.option(
    "--message", default="rejected", show_default=True, metavar="TEXT", help="Message of the handler's terminal error."
)
@ingress_options
def reject(awakeable: str, message: str, ingress: str, ingress_token: str | None) -> None:
    """Reject AWAKEABLE, an id that starts with sign_: its handler gets a terminal error."""
    from restate_steps.server._approvals import Ingress, reject_awakeable

    reject_awakeable(Ingress(ingress, ingress_token), awakeable, message)
    click.echo(f"rejected {awakeable}")


def _calls_of(request: PendingRequest, ids: Sequence[str] | None) -> str:
    return ", ".join(f"{call.tool} ({call.id})" for call in request.calls if ids is None or call.id in ids)
