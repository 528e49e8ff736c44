"""An application on a server, from the start of a block to its end."""

from __future__ import annotations

import threading
from contextlib import ExitStack, suppress

from restate_steps.errors import ServerError
from restate_steps.server import AppServer, ASGIApp, RestateServer, _sql
from restate_steps.testing._real_server.apps import App
from restate_steps.testing._real_server.cleaning import emptied
from restate_steps.testing._real_server.log import LogFollower
from restate_steps.testing._real_server.pool import Lease, ServerSettings, lease_server

__all__ = ["Block"]


class Block:
    """An application on a server. Every method blocks; they may be called from any thread."""

    def __init__(self, app: App, settings: ServerSettings) -> None:
        self.app = app
        self.deployment_id = ""
        self.services: tuple[str, ...] = ()
        self._settings = settings
        self._lease: Lease | None = None
        self._cleanup = ExitStack()
        self._lock = threading.Lock()

    @property
    def server(self) -> RestateServer:
        if self._lease is None:
            raise ServerError(
                "this block of restate_server() has ended, and another block may use its server now. Use the "
                "environment inside its block only."
            )
        return self._lease.server

    def open(self) -> None:
        """Take a server, serve the application, and register it; :meth:`close` undoes what was done."""
        lease = self._lease = lease_server(self._settings)
        self._cleanup.callback(lease.give_back)
        if self._settings.talkative:
            self._cleanup.callback(LogFollower(lease.server.log_path).stop)
        self._cleanup.callback(_clean, lease)
        self.app.start()
        # Stop the application before the server is cleaned, so that it starts nothing new meanwhile.
        self._cleanup.callback(self.app.kill)
        self.deployment_id = lease.server.admin.register(self.app.url, http1=self.app.http1)
        self.services = tuple(lease.server.admin.services(self.deployment_id))

    def serve_beside(self, app: ASGIApp) -> None:
        """Serve another application on the same server."""
        with self._lock:
            # Before anything starts: nothing stops an application that is added to a block that has ended.
            server = self.server
            beside = AppServer(app)
            beside.start()
            self._cleanup.callback(beside.stop)
            server.admin.register(beside.url)

    def close(self) -> None:
        with self._lock:
            # An environment that outlives its block must not reach the server, which another block may use.
            self._lease = None
            self._cleanup.close()

    def kill_app(self) -> None:
        with self._lock:
            self.app.kill()

    def restart_app(self) -> None:
        with self._lock:
            server = self.server
            self.app.kill()
            self.app.start()
            if not server.running:
                return
            for row in server.admin.query(_sql.invocations(status="backing-off")):
                # The server may already have retried it.
                with suppress(ServerError):
                    server.admin.resume(row["id"])

    def kill_server(self) -> None:
        with self._lock:
            self.server.kill()

    def restart_server(self) -> None:
        with self._lock:
            self.server.restart()


def _clean(lease: Lease) -> None:
    lease.reusable = lease.server.running and emptied(lease.server)
