"""A development server that restarts the application when a file changes.

1. The application runs in its own process, which is restarted on every change: modules are never reloaded in place.
2. However this process ends, the server and the application end too.
3. If the application does not start, the error is reported, and the next change starts it again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from restate_steps.errors import ServerError
from restate_steps.server._app_process import AppProcess
from restate_steps.server._extra import missing_extra
from restate_steps.server._process import RestateServer
from restate_steps.server._run import ended_by_signals

__all__ = ["DevOptions", "develop"]

_LOOK_EVERY_MS = 500


@dataclass(frozen=True, slots=True)
class DevOptions:
    """The options of a development server.

    Attributes:
        target: The application, as ``module:app``.
        base_dir: The folder for the server's data, which is preserved between runs.
        watch: The folders to watch for changes.
        ingress_port: The port of the ingress, which accepts calls.
        admin_port: The port of the admin API and the UI.
        app_port: The port of the application.
        http1: Whether to serve the application over HTTP/1.1.
        always_replay: Whether the server suspends a handler whenever it waits, so that it continues by replay.
    """

    target: str
    base_dir: Path
    watch: Sequence[Path]
    ingress_port: int
    admin_port: int
    app_port: int
    http1: bool = False
    always_replay: bool = False


def develop(options: DevOptions, say: Callable[[str], None]) -> None:
    """Run a server and an application until SIGINT or SIGTERM, and restart the application when a file changes.

    Args:
        options: The options.
        say: A callback that shows a line of text to the developer.

    Raises:
        ServerError: If ``watchfiles`` is not installed, or the server does not start or exits by itself.
    """
    try:
        from watchfiles import PythonFilter, watch
    except ImportError as error:
        raise missing_extra("watchfiles", "watch files for changes", extra="cli") from error

    options.base_dir.mkdir(parents=True, exist_ok=True)
    # Keep the data out of version control, even after `git add .`.
    (options.base_dir / ".gitignore").write_text("*\n")
    with suppress(KeyboardInterrupt), ended_by_signals(), ExitStack() as stack:
        server = stack.enter_context(
            RestateServer(
                base_dir=options.base_dir,
                always_replay=options.always_replay,
                ingress_port=options.ingress_port,
                admin_port=options.admin_port,
            )
        )
        app = AppProcess(options.target, http1=options.http1, port=options.app_port)
        stack.callback(app.stop)
        _say_urls(server, app, options, say)
        _serve(app, server, options, say)
        folders = [folder.absolute() for folder in options.watch]
        ignored = PythonFilter(ignore_paths=[options.base_dir.absolute()])
        for changes in watch(
            *folders, watch_filter=ignored, rust_timeout=_LOOK_EVERY_MS, yield_on_timeout=True, raise_interrupt=True
        ):
            if not server.running:
                raise ServerError(f"restate-server exited unexpectedly. See its log: {server.log_path}")
            if changes:
                names = sorted({_relative(Path(path)) for _, path in changes})
                say(f"changed: {', '.join(names)}")
                _serve(app, server, options, say)
            elif code := app.failure():
                say(f"error: the application exited with code {code}; it will restart after the next change.")


def _serve(app: AppProcess, server: RestateServer, options: DevOptions, say: Callable[[str], None]) -> None:
    started = time.monotonic()
    app.stop()
    try:
        app.start()
    except ServerError:
        say("error: the application failed to start; it will restart after the next change.")
        return
    try:
        services = server.admin.services(server.admin.register(app.url, force=True, http1=options.http1))
    except ServerError as error:
        say(f"error: {error}")
        return
    say(f"serving {', '.join(services) or 'no services'} (ready in {time.monotonic() - started:.1f} s)")


def _say_urls(server: RestateServer, app: AppProcess, options: DevOptions, say: Callable[[str], None]) -> None:
    for name, value in (
        ("ingress", server.ingress_url),
        ("admin", server.admin_url),
        ("UI", server.ui_url),
        ("app", f"{app.url} ({options.target})"),
        ("data", _relative(options.base_dir)),
    ):
        say(f"  {name:<8} {value}")


def _relative(path: Path) -> str:
    absolute, here = path.absolute(), Path.cwd()
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(absolute)
