"""``restate-steps approvals``: list and answer the approvals that agents wait for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import click

from restate_steps.cli._options import admin_option, ingress_option

if TYPE_CHECKING:
    from restate_steps.server._approvals import PendingRequest

__all__ = ["approvals"]


class _JsonObject(click.ParamType[dict[str, Any]]):
    """A JSON object."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        try:
            found = json.loads(value)
        except ValueError as error:
            self.fail(f"not JSON: {error}", param, ctx)
        if not isinstance(found, dict):
            self.fail(f"expected a JSON object of arguments by name, got {value}", param, ctx)
        return cast("dict[str, Any]", found)


@click.group()
def approvals() -> None:
    """List and answer the approvals that agents wait for."""


@approvals.command("list")
@admin_option
def list_pending(admin: str) -> None:
    """List pending requests, oldest invocation first."""
    from restate_steps.server._approvals import find_pending

    found = find_pending(admin)
    for request in found:
        click.echo(
            f"{request.token}  {request.name} of {request.agent}, asked in {request.target} ({request.invocation})"
        )
        for call in request.calls:
            note = "" if call.kind == "approval" else "  waits for a result"
            click.echo(f"  {call.id}  {call.tool}({json.dumps(call.args)}){note}")
    if not found:
        click.echo("no pending requests")


@approvals.command()
@click.argument("request")
@click.option(
    "--call",
    "calls",
    multiple=True,
    metavar="ID",
    help="Approve only this call and deny the others; can be repeated.  [default: approve all]",
)
@click.option("--args", type=_JsonObject(), metavar="JSON", help="Arguments that replace the model's.")
@ingress_option
@admin_option
def approve(request: str, calls: tuple[str, ...], args: dict[str, Any] | None, ingress: str, admin: str) -> None:
    """Approve tool calls, which then run. REQUEST is a token, or the id of the waiting invocation."""
    from restate_steps.server._approvals import approve_pending, pending_named

    found = pending_named(admin, request)
    approve_pending(ingress, found, calls=calls, args=args)
    click.echo(f"approved: {_calls_of(found, calls or None)}")


@approvals.command()
@click.argument("request")
@click.option(
    "--message", default="The tool call was denied.", show_default=True, metavar="TEXT", help="Message for the model."
)
@ingress_option
@admin_option
def deny(request: str, message: str, ingress: str, admin: str) -> None:
    """Deny all tool calls of REQUEST, a token or the id of the waiting invocation."""
    from restate_steps.server._approvals import deny_pending, pending_named

    found = pending_named(admin, request)
    deny_pending(ingress, found, message=message)
    click.echo(f"denied: {_calls_of(found, None)}")


def _calls_of(request: PendingRequest, ids: Sequence[str] | None) -> str:
    return ", ".join(f"{call.tool} ({call.id})" for call in request.calls if ids is None or call.id in ids)
