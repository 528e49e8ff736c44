"""Serve an application from several processes that share a port.

1. This process accepts the connections and hands them to the workers in turn. If each worker accepted them itself, one
   could take all.
2. Restate opens a new HTTP/2 connection only when the others have no free stream. So the number of streams is limited,
   and the work spreads over the workers.
3. A worker that dies is replaced, unless it has never served: an application that does not start is an error.
4. A signal drains all workers, and a second one ends them. Workers ignore signals, because a service manager may send
   one to all processes at once; this process tells them. However this process ends, its workers end too.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass

from restate_steps.errors import ServerError
from restate_steps.server._child import Child
from restate_steps.server._draining import GRACE, ending_signals
from restate_steps.server._ports import LOOPBACK
from restate_steps.server._serving import Listener, listen, url_of

__all__ = ["READY", "STOP", "WorkerOptions", "run_workers"]

READY = b"r"
"""The message of a worker that serves."""

STOP = b"s"
"""The message to a worker that is to drain, or if it drains already, to end."""

_STREAMS = 8
_END_WITHIN = 5.0

_logger = logging.getLogger("restate_steps.server")


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """The options of a worker.

    Attributes:
        target: The application, as ``module:app``.
        host: The address that the other process listens on.
        http1: Whether to reject requests over HTTP/2.
        grace: The grace period, in seconds.
        identity_keys: Public keys of Restate, or nothing to accept every request.
        streams: The maximum number of HTTP/2 streams of a connection.
    """

    target: str
    host: str
    http1: bool
    grace: float
    identity_keys: Sequence[str]
    streams: int


def run_workers(
    target: str,
    *,
    workers: int,
    host: str = LOOPBACK,
    port: int = 9080,
    http1: bool = False,
    ready: Callable[[str], None] = lambda url: None,
    grace: float = GRACE,
    identity_keys: Sequence[str] = (),
) -> None:
    """Serve an application from several processes until SIGINT, SIGTERM or SIGHUP, and then drain them.

    Args:
        target: The application, as ``module:app``.
        workers: The number of processes.
        host: The address to listen on.
        port: The port to listen on; 0 for a free one.
        http1: Whether to serve over HTTP/1.1, so that Restate uses its request/response mode.
        ready: A callback that receives the URL when all workers serve.
        grace: The grace period, in seconds.
        identity_keys: Public keys of Restate. Requests that are not signed with one of them are rejected.

    Raises:
        ServerError: If the port is in use, or a worker ends before it serves.
    """
    listener = listen(host, port)
    options = WorkerOptions(target, host, http1, grace, list(identity_keys), _STREAMS)
    url = url_of(listener)
    with listener:
        asyncio.run(_Crew(options, listener).run(workers, lambda: ready(url)))


class _Worker:
    """A process that serves the connections that it is handed."""

    def __init__(self, options: WorkerOptions) -> None:
        self.channel, inherited = socket.socketpair()
        self.serves = False
        with inherited:
            command = [sys.executable, "-m", "restate_steps.server._worker"]
            arguments = [str(inherited.fileno()), json.dumps(asdict(options))]
            self.process = Child([*command, *arguments], pass_fds=[inherited.fileno()])
        self.channel.setblocking(False)

    def stop(self) -> None:
        # It may have ended.
        with suppress(OSError):
            self.channel.send(STOP)

    def hand_over(self, connection: socket.socket) -> None:
        family = b"6" if connection.family == socket.AF_INET6 else b"4"
        with suppress(OSError):
            socket.send_fds(self.channel, [family], [connection.fileno()])


class _Crew:
    """The workers, and what happens to them."""

    def __init__(self, options: WorkerOptions, listener: Listener) -> None:
        self._options = options
        self._listener = listener
        self._workers: deque[_Worker] = deque()
        self._stopping = asyncio.Event()
        self._changed = asyncio.Event()
        self._failure: ServerError | None = None

    async def run(self, count: int, ready: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        for number in ending_signals():
            loop.add_signal_handler(number, self._stop)
        try:
            for _ in range(count):
                self._start()
            while not self._stopping.is_set() and not all(worker.serves for worker in self._workers):
                await self._change()
            if not self._stopping.is_set():
                loop.add_reader(self._listener.fileno(), self._accept)
                ready()
                await self._stopping.wait()
                loop.remove_reader(self._listener.fileno())
            self._listener.close()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._options.grace + _END_WITHIN):
                    while self._workers:
                        await self._change()
        finally:
            for worker in self._workers:
                worker.process.end(signal.SIGKILL)
        if self._failure is not None:
            raise self._failure

    def _start(self) -> None:
        worker = _Worker(self._options)
        self._workers.append(worker)
        asyncio.get_running_loop().add_reader(worker.channel.fileno(), self._hear, worker)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        with connection:
            self._workers.rotate(-1)
            self._workers[-1].hand_over(connection)

    def _hear(self, worker: _Worker) -> None:
        """Note that a worker serves, or that it has ended."""
        try:
            heard = worker.channel.recv(1)
        except OSError:
            heard = b""
        if heard:
            worker.serves = True
        else:
            asyncio.get_running_loop().remove_reader(worker.channel.fileno())
            worker.channel.close()
            self._workers.remove(worker)
            code = worker.process.end(signal.SIGTERM)
            if not self._stopping.is_set():
                self._replace(worker, code)
        self._changed.set()

    def _replace(self, worker: _Worker, code: int) -> None:
        if worker.serves:
            _logger.warning("a worker ended with exit code %d; starting another", code)
            self._start()
        else:
            self._failure = ServerError(
                f"a process that should serve {self._options.target!r} ended with exit code {code}. Its stderr says "
                "why."
            )
            self._stop()

    def _stop(self) -> None:
        self._stopping.set()
        self._changed.set()
        for worker in self._workers:
            worker.stop()

    async def _change(self) -> None:
        await self._changed.wait()
        self._changed.clear()
