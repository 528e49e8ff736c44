"""Applications that can be served, killed, and served again at the same URL."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, Protocol

from restate_steps.server import AppServer, ASGIApp
from restate_steps.server._app_process import AppProcess
from restate_steps.server._ports import free_ports

__all__ = ["App", "served"]

_CUT_WITHIN = 0.05


class App(Protocol):
    """An application in a thread or in a process."""

    @property
    def url(self) -> str: ...

    @property
    def http1(self) -> bool: ...

    def start(self) -> object: ...

    def kill(self) -> None: ...


class AppThread:
    """An application in a thread of this process, which sends nothing more once it is killed.

    Handlers are cancelled after their connections are cut and before Hypercorn stops. Otherwise, what they send while
    they clean up would reach task groups that have ended, and each would log an error.
    """

    def __init__(self, app: ASGIApp, *, http1: bool) -> None:
        self._app = app
        self._http1 = http1
        self._server: AppServer | None = None
        self._silent = False
        self._handlers: dict[asyncio.Task[Any], asyncio.AbstractEventLoop] = {}

    @property
    def url(self) -> str:
        assert self._server is not None
        return self._server.url

    @property
    def http1(self) -> bool:
        return self._http1

    def start(self) -> None:
        if self._server is None:
            # An ephemeral port could be taken by an outgoing connection before the application restarts on it.
            [port] = free_ports(1)
            self._server = AppServer(self._run, http1=self._http1, port=port)
        self._silent = False
        self._handlers.clear()
        self._server.start()

    def kill(self) -> None:
        self._silent = True
        for task, loop in list(self._handlers.items()):
            # The loop may already be closed.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(_cancel_soon, loop, task)
        if self._server is not None:
            self._server.stop()

    async def _run(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_unless_silent(message: Any) -> None:
            if not self._silent:
                await send(message)

        task = asyncio.current_task()
        assert task is not None
        self._handlers[task] = asyncio.get_running_loop()
        try:
            await self._app(scope, receive, send_unless_silent)
        finally:
            self._handlers.pop(task, None)


def _cancel_soon(loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any]) -> None:
    loop.call_later(_CUT_WITHIN, task.cancel)


def served(app: ASGIApp | str, *, http1: bool) -> App:
    """Return what serves an application: a process for an import string, a thread for an object.

    Raises:
        TypeError: It is neither.
    """
    if isinstance(app, str):
        if not all(app.partition(":")):
            raise TypeError(
                f"restate_server() cannot serve {app!r}, which is not an import string. Write it as 'module:app'."
            )
        # The test runner has added the folders of the tests to sys.path.
        return AppProcess(app, http1=http1, own_path=True)
    if not callable(app):
        raise TypeError(
            "restate_server() needs the application that restate_steps.app([...]) returns, or an import string, not an "
            f"object of type {type(app).__name__}."
        )
    return AppThread(app, http1=http1)
