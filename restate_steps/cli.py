"""The command line: ``restate-steps dev | serve | register | server | journal | approvals | doctor``.

Each command calls functions of :mod:`restate_steps.server` or :mod:`restate_steps.testing`. An error is printed to
stderr after ``error:``, in one line if possible, and the exit code is 1. The exit code of a usage error is 2.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from restate_steps.errors import StepsError
from restate_steps.server import SERVER_VERSION, AdminClient, RestateServer, ensure_server, server_version
from restate_steps.server._dev import DevOptions, develop
from restate_steps.server._doctor import examine
from restate_steps.server._load import load_app
from restate_steps.server._ports import port_or_free
from restate_steps.server._run import run_app, run_server

if TYPE_CHECKING:
    from restate_steps.server._approvals import PendingRequest

__all__ = ["build_parser", "main"]

# The ports in Restate's documentation.
_INGRESS_PORT, _ADMIN_PORT, _APP_PORT = 8080, 9070, 9080
_DATA = Path(".restate-steps")
_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: The arguments after the program's name; those of this process by default.

    Returns:
        The exit code: 0 for success, 1 for an error, 130 for an interrupt. Usage errors exit the process with 2.

    Example:
        >>> main(["serve", "no_such_module:app"])
        1
    """
    options = build_parser().parse_args(arguments)
    try:
        code: int = options.run(options)
    except StepsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return _INTERRUPTED
    return code


def build_parser() -> argparse.ArgumentParser:
    """Build the command-line parser.

    Returns:
        A parser that stores the function to call as ``run``.

    Example:
        >>> build_parser().parse_args(["register", "http://127.0.0.1:9080"]).admin
        'http://127.0.0.1:9070'
    """
    parser = argparse.ArgumentParser(prog="restate-steps", description="Durable steps for Restate.")
    parser.add_argument("--version", action="version", version=_own_version())
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    app = argparse.ArgumentParser(add_help=False)
    app.add_argument("app", metavar="MODULE:APP", help="the application, for example main:app")
    http1 = argparse.ArgumentParser(add_help=False)
    http1.add_argument("--http1", action="store_true", help="use HTTP/1.1, in request/response mode")
    server = argparse.ArgumentParser(add_help=False)
    server.add_argument(
        "--ingress-port", type=int, metavar="PORT", help=f"port of the ingress; default: {_INGRESS_PORT} if it is free"
    )
    server.add_argument(
        "--admin-port", type=int, metavar="PORT", help=f"port of the admin API; default: {_ADMIN_PORT} if it is free"
    )
    server.add_argument(
        "--always-replay", action="store_true", help="suspend handlers whenever they wait, to test replay"
    )

    admin = argparse.ArgumentParser(add_help=False)
    admin.add_argument(
        "--admin",
        default=f"http://127.0.0.1:{_ADMIN_PORT}",
        metavar="URL",
        help="URL of the admin API; default: %(default)s",
    )

    dev = commands.add_parser(
        "dev", parents=[app, server, http1], help="run a server and an app, and reload the app on changes"
    )
    dev.add_argument("--port", type=int, metavar="PORT", help=f"port of the app; default: {_APP_PORT} if it is free")
    dev.add_argument(
        "--base-dir", type=Path, default=_DATA, metavar="DIR", help="folder for the server's data; default: %(default)s"
    )
    dev.add_argument(
        "--watch",
        type=Path,
        action="append",
        metavar="DIR",
        help="folder to watch for changes, can be repeated; default: the current folder",
    )
    dev.set_defaults(run=_dev)

    serve = commands.add_parser("serve", parents=[app, http1], help="serve an app")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on; default: %(default)s")
    serve.add_argument("--port", type=int, default=_APP_PORT, help="0 for a free port; default: %(default)s")
    serve.add_argument("--quiet", action="store_true", help="do not print the app's URL")
    serve.set_defaults(run=_serve)

    register = commands.add_parser("register", parents=[http1, admin], help="register an app with a server")
    register.add_argument("url", metavar="URL", help="URL of the app")
    register.add_argument("--force", action="store_true", help="replace an existing deployment with the same URL")
    register.set_defaults(run=_register)

    run = commands.add_parser("server", parents=[server], help="run a server, and fetch it first if necessary")
    run.add_argument(
        "--base-dir", type=Path, metavar="DIR", help="folder for the server's data; default: a temporary folder"
    )
    run.add_argument(
        "--log-filter", default="warn", metavar="FILTER", help="the server's log filter; default: %(default)s"
    )
    run.add_argument(
        "--version-only",
        action="store_true",
        help=f"only find the server, or fetch version {SERVER_VERSION}, and print its version and path",
    )
    run.set_defaults(run=_server)

    _add_journal(commands.add_parser("journal", help="export journals, and replay them with the current code"), admin)

    _add_approvals(commands.add_parser("approvals", help="list and answer the approvals that agents wait for"), admin)

    doctor = commands.add_parser("doctor", help="check that this machine can run a server and apps")
    doctor.set_defaults(run=_doctor)
    return parser


def _add_journal(journal: argparse.ArgumentParser, admin: argparse.ArgumentParser) -> None:
    commands = journal.add_subparsers(metavar="COMMAND", required=True)
    export = commands.add_parser("export", parents=[admin], help="write an invocation's journal to a file")
    export.add_argument("invocation", metavar="INVOCATION", help="the invocation's id, which starts with inv_")
    export.add_argument("-o", "--output", type=Path, metavar="FILE", help="file to write; default: standard output")
    export.set_defaults(run=_export_journal)

    replay = commands.add_parser("replay", help="check that an app can replay recorded journals")
    replay.add_argument("app", metavar="MODULE:APP", help="the application, for example main:app")
    replay.add_argument("journals", metavar="JOURNAL", nargs="+", help="an exported journal, or a folder of them")
    replay.set_defaults(run=_replay_journals)


def _add_approvals(approvals: argparse.ArgumentParser, admin: argparse.ArgumentParser) -> None:
    answer = argparse.ArgumentParser(add_help=False, parents=[admin])
    answer.add_argument("request", metavar="TOKEN", help="token of the request, or id of the waiting invocation")
    answer.add_argument(
        "--ingress",
        default=f"http://127.0.0.1:{_INGRESS_PORT}",
        metavar="URL",
        help="URL of the ingress; default: %(default)s",
    )

    commands = approvals.add_subparsers(metavar="COMMAND", required=True)
    shown = commands.add_parser("list", parents=[admin], help="list pending requests, oldest invocation first")
    shown.set_defaults(run=_list_approvals)

    approve = commands.add_parser("approve", parents=[answer], help="approve tool calls, which then run")
    approve.add_argument(
        "--call",
        action="append",
        metavar="ID",
        help="approve only this call and deny the others, can be repeated; default: approve all",
    )
    approve.add_argument("--args", type=_json_object, metavar="JSON", help="arguments that replace the model's")
    approve.set_defaults(run=_approve)

    deny = commands.add_parser("deny", parents=[answer], help="deny all tool calls of a request")
    deny.add_argument(
        "--message",
        default="The tool call was denied.",
        metavar="TEXT",
        help="message for the model; default: %(default)s",
    )
    deny.set_defaults(run=_deny)


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON object of arguments by name, got {text}")
    return cast("dict[str, Any]", value)


def _dev(options: argparse.Namespace) -> int:
    develop(
        DevOptions(
            target=options.app,
            base_dir=options.base_dir,
            watch=options.watch or [Path()],
            ingress_port=_port(options.ingress_port, _INGRESS_PORT, "the ingress"),
            admin_port=_port(options.admin_port, _ADMIN_PORT, "the admin API"),
            app_port=_port(options.port, _APP_PORT, "the application"),
            http1=options.http1,
            always_replay=options.always_replay,
        ),
        _say,
    )
    return 0


def _serve(options: argparse.Namespace) -> int:
    def ready(url: str) -> None:
        if not options.quiet:
            _say(f"serving {options.app} at {url}")

    run_app(load_app(options.app), host=options.host, port=options.port, http1=options.http1, ready=ready)
    return 0


def _register(options: argparse.Namespace) -> int:
    admin = AdminClient(options.admin)
    deployment = admin.register(options.url, force=options.force, http1=options.http1)
    _say(f"registered {', '.join(admin.services(deployment)) or 'no services'} as {deployment}")
    return 0


def _server(options: argparse.Namespace) -> int:
    if options.version_only:
        binary = ensure_server()
        _say(f"restate-server {server_version(binary)} at {binary}")
        return 0

    def ready(server: RestateServer) -> None:
        _say(f"  ingress  {server.ingress_url}")
        _say(f"  admin    {server.admin_url}")
        _say(f"  UI       {server.ui_url}")
        _say(f"  data     {server.base_dir}{'' if options.base_dir else ' (removed at the end)'}")

    server = RestateServer(
        base_dir=options.base_dir,
        always_replay=options.always_replay,
        log_filter=options.log_filter,
        ingress_port=_port(options.ingress_port, _INGRESS_PORT, "the ingress"),
        admin_port=_port(options.admin_port, _ADMIN_PORT, "the admin API"),
    )
    run_server(server, ready=ready)
    return 0


def _export_journal(options: argparse.Namespace) -> int:
    # Import the testing kit only where it is needed: other commands start faster without it.
    from restate_steps.testing import export_journal

    recorded = export_journal(options.admin, options.invocation)
    if options.output is None:
        print(recorded.to_text(), end="", flush=True)
    else:
        recorded.save(options.output)
        state = "completed" if recorded.ended else "in flight"
        _say(f"wrote the journal of {recorded.target} ({state}, {len(recorded.frames)} entries) to {options.output}")
    return 0


def _replay_journals(options: argparse.Namespace) -> int:
    from restate_steps.testing import load_journals, replay

    journals = [each for path in options.journals for each in load_journals(path)]
    replay(journals, load_app(options.app))
    _say(f"{len(journals)} {'journal' if len(journals) == 1 else 'journals'} replayed")
    return 0


def _list_approvals(options: argparse.Namespace) -> int:
    from restate_steps.server._approvals import find_pending

    found = find_pending(options.admin)
    for request in found:
        _say(f"{request.token}  {request.name} of {request.agent}, asked in {request.target} ({request.invocation})")
        for call in request.calls:
            note = "" if call.kind == "approval" else "  waits for a result"
            _say(f"  {call.id}  {call.tool}({json.dumps(call.args)}){note}")
    if not found:
        _say("no pending requests")
    return 0


def _approve(options: argparse.Namespace) -> int:
    from restate_steps.server._approvals import approve_pending, pending_named

    request = pending_named(options.admin, options.request)
    approve_pending(options.ingress, request, calls=options.call or (), args=options.args)
    _say(f"approved: {_calls_of(request, options.call)}")
    return 0


def _deny(options: argparse.Namespace) -> int:
    from restate_steps.server._approvals import deny_pending, pending_named

    request = pending_named(options.admin, options.request)
    deny_pending(options.ingress, request, message=options.message)
    _say(f"denied: {_calls_of(request, None)}")
    return 0


def _calls_of(request: PendingRequest, ids: Sequence[str] | None) -> str:
    return ", ".join(f"{call.tool} ({call.id})" for call in request.calls if ids is None or call.id in ids)


def _doctor(options: argparse.Namespace) -> int:
    broken = 0
    for finding in examine():
        _say(f"{'ok' if finding.ok else 'FAIL':<4}  {finding.subject:<16}  {finding.detail}")
        if not finding.ok:
            broken += 1
            _say(f"{'':<24}-> {finding.fix}")
    _say(f"{broken} {'problem' if broken == 1 else 'problems'} found" if broken else "no problems found")
    return 1 if broken else 0


def _port(given: int | None, usual: int, what: str) -> int:
    """Return a given port unchanged; otherwise the usual port or, with a notice, a free one if that is in use."""
    if given is not None:
        return given
    port = port_or_free(usual)
    if port != usual:
        _say(f"port {usual} is in use; {what} is on port {port} instead")
    return port


def _say(line: str) -> None:
    print(line, flush=True)


def _own_version() -> str:
    try:
        return f"restate-steps {version('restate-steps')}"
    except PackageNotFoundError:
        return "restate-steps (not installed)"
