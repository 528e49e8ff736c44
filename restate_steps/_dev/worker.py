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
from restate_steps.server._draining import guarded, leave_threads, serve_and_drain
from restate_steps.server._failures import hide_tracebacks
from restate_steps.server._load import TargetError, load_app
from restate_steps.server._serving import Listener

__all__ = ["WorkerOptions", "main"]

_GRACE = 0.3
"""The time that bodies have to end before a restart, in seconds: a saved file should be served at once."""


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
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    options = WorkerOptions(**json.loads(argument))
    try:
        loaded = load_app(options.target)
    except ServerError as error:
        _report(options, LoadFailed(str(error), isinstance(error, TargetError)))
        return 1
    # After the import, because it does nothing if the application has configured its logs.
    logging.basicConfig(
        level=logging.INFO if options.verbose else logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )
    _set_up_logs(options)
    watched = watch_attempts(loaded.app, lambda attempt: _report(options, attempt))
    asyncio.run(
        serve_and_drain(
            guarded(watched, http1=options.http1, identity_keys=()),
            Listener(fileno=options.listener),
            grace=_GRACE,
            ready=lambda: _report(options, Loaded(loaded.name)),
        )
    )
    leave_threads()
    return 0


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
