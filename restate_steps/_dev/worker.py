"""The application's process: serve the application on an inherited socket, and report what happens.

Run as ``python -m restate_steps._dev.worker``, with a :class:`WorkerOptions` as JSON.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from dataclasses import asdict, dataclass
from typing import Any

from restate_steps._dev.events import AppEvent, Loaded, LoadFailed, dump
from restate_steps.errors import ServerError
from restate_steps.logs import ReplayFilter
from restate_steps.server._attempts import watch_attempts
from restate_steps.server._failures import hide_tracebacks
from restate_steps.server._load import LoadedApp, TargetError, load_app
from restate_steps.server._serving import Listener, http1_only, serve_until

__all__ = ["WorkerOptions", "main"]


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """The options of the application's process.

    Attributes:
        target: The application, as the user named it.
        listener: The file descriptor of the listening socket.
        events: The file descriptor for events.
        http1: Whether to serve over HTTP/1.1.
        verbose: Whether to log everything.
    """

    target: str
    listener: int
    events: int
    http1: bool
    verbose: bool

    def as_argument(self) -> str:
        """Return the options as an argument for the process."""
        return json.dumps(asdict(self))


def main(argument: str) -> int:
    """Serve until SIGTERM; return the exit code."""
    # The parent ends this process with SIGTERM. A Ctrl-C is for the parent alone.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    options = WorkerOptions(**json.loads(argument))
    logging.basicConfig(
        level=logging.INFO if options.verbose else logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )
    try:
        loaded = load_app(options.target)
    except ServerError as error:
        _report(options, LoadFailed(str(error), isinstance(error, TargetError)))
        return 1
    _set_up_logs(options)
    asyncio.run(_serve(loaded, options))
    return 0


async def _serve(loaded: LoadedApp, options: WorkerOptions) -> None:
    # The SDK installs its own handler for SIGTERM, which runs all hooks.
    from restate.server import install_shutdown_hook

    stopping = asyncio.Event()
    install_shutdown_hook(asyncio.get_running_loop(), stopping.set, signal.SIGTERM)
    app = http1_only(loaded.app) if options.http1 else loaded.app
    await serve_until(
        stopping,
        watch_attempts(app, lambda attempt: _report(options, attempt)),
        Listener(fileno=options.listener),
        ready=lambda: _report(options, Loaded(loaded.name)),
    )


def _report(options: WorkerOptions, event: AppEvent) -> None:
    data = dump(event)
    while data:
        data = data[os.write(options.events, data) :]


def _set_up_logs(options: WorkerOptions) -> None:
    if not options.verbose:
        # `dev` prints a line for each failed attempt, and Hypercorn's announcement says nothing new.
        hide_tracebacks()
        logging.getLogger("restate_steps.server").addFilter(lambda record: "Running on" not in record.getMessage())
    replayed = ReplayFilter()
    loggers: list[Any] = [logging.getLogger(), *map(logging.getLogger, logging.root.manager.loggerDict)]
    for handler in {handler for logger in loggers for handler in logger.handlers}:
        handler.addFilter(replayed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
