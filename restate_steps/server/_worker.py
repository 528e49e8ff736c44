"""A worker process of ``restate_steps.server._workers``: serve the connections that arrive through a channel."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any, Final

from restate_steps.errors import ServerError
from restate_steps.server._draining import guarded, leave_threads, serve_and_drain, warn_if_open
from restate_steps.server._failures import log_failures
from restate_steps.server._load import load_app
from restate_steps.server._serving import Listener
from restate_steps.server._workers import READY, WorkerOptions

__all__ = ["main"]

_FAMILIES: Final = {b"4": socket.AF_INET, b"6": socket.AF_INET6}


class _Channel(Listener):
    """A socket that accepts the connections that another process has accepted and handed over.

    It is told to stop in the same way: a service manager may send a signal to all processes, and the other process does
    as well, which would count as two.
    """

    stop: Callable[[], None]
    _is_closed = False

    def stop_at(self, stop: Callable[[], None]) -> None:
        """Call a function whenever the other process says so, and when it has ended."""
        self.stop = stop

    def listen(self, backlog: int = 0, /) -> None:
        """Do nothing: the other process listens."""

    def _accept_one(self) -> tuple[socket.socket, Any]:
        data, descriptors, _, _ = socket.recv_fds(self, 1, 1)
        if data not in _FAMILIES:
            # Once the other process has ended, there is no more to read.
            if not self._is_closed:
                self.stop()
            self._is_closed = not data
            raise BlockingIOError
        # With the protocol, so that asyncio sets TCP_NODELAY.
        connection = socket.socket(_FAMILIES[data], socket.SOCK_STREAM, socket.IPPROTO_TCP, descriptors[0])
        return connection, None


def main(channel: int, options: WorkerOptions) -> None:
    """Serve an application until the other process says so, or ends."""
    app = load_app(options.target).app
    warn_if_open(app, options.host, options.identity_keys)
    served = guarded(log_failures(app), http1=options.http1, identity_keys=options.identity_keys)
    listener = _Channel(fileno=channel)
    listener.setblocking(False)
    asyncio.run(_serve(served, listener, options))
    leave_threads()


async def _serve(app: Any, listener: _Channel, options: WorkerOptions) -> None:
    def ready() -> None:
        listener.send(READY)

    await serve_and_drain(
        app,
        listener,
        grace=options.grace,
        ready=ready,
        streams=options.streams,
        stop_at=listener.stop_at,
    )


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    try:
        main(int(sys.argv[1]), WorkerOptions(**json.loads(sys.argv[2])))
    except ServerError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
