"""The servers of this process, which one block uses after another."""

from __future__ import annotations

import atexit
import os
import threading
from dataclasses import dataclass

from restate_steps.server import RestateServer

__all__ = ["Lease", "ServerSettings", "close_servers", "lease_server"]

# Few tests open more blocks at once, and a server takes about 150 MB.
_IDLE_AT_MOST = 4


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """The settings that a server starts with; only blocks with equal settings can reuse it."""

    always_replay: bool
    disable_retries: bool
    talkative: bool

    def server(self) -> RestateServer:
        return RestateServer(
            always_replay=self.always_replay,
            disable_retries=self.disable_retries,
            log_filter="restate=info" if self.talkative else "warn",
        )


class Lease:
    """A server in use; give it back at the end.

    Attributes:
        reusable: Whether another block can use the server after this one.
    """

    def __init__(self, pool: _Pool, settings: ServerSettings, server: RestateServer, generation: int) -> None:
        self.settings = settings
        self.server = server
        self.generation = generation
        self.reusable = False
        self._pool = pool

    def give_back(self) -> None:
        """Keep the server for the next block if it is reusable, and stop it otherwise."""
        self._pool.give_back(self)


class _Pool:
    """The servers of this process. Every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: dict[ServerSettings, list[RestateServer]] = {}
        self._generation = 0

    def lease(self, settings: ServerSettings) -> Lease:
        """Take an idle server, or start one without holding the lock, so that others need not wait."""
        while True:
            with self._lock:
                idle = self._idle.get(settings)
                found = idle.pop() if idle else None
                lease = Lease(self, settings, found or settings.server(), self._generation)
            if found is None:
                lease.server.start()
                return lease
            if found.running:
                return lease
            found.stop()

    def give_back(self, lease: Lease) -> None:
        """Keep a server if it is reusable and still wanted, and stop it otherwise."""
        if lease.reusable:
            with self._lock:
                idle = self._idle.setdefault(lease.settings, [])
                if lease.generation == self._generation and len(idle) < _IDLE_AT_MOST:
                    idle.append(lease.server)
                    return
        lease.server.stop()

    def retire(self) -> None:
        """Stop idle servers now, and those in use when they are given back."""
        with self._lock:
            idle = [server for servers in self._idle.values() for server in servers]
            self._idle.clear()
            self._generation += 1
        for found in idle:
            found.stop()


_pool = _Pool()


def lease_server(settings: ServerSettings) -> Lease:
    """Take an idle server of this process, or start one."""
    return _pool.lease(settings)


def close_servers() -> None:
    """Stop idle servers now, and each server in use when its block ends.

    Calling this is optional, because all servers stop when the interpreter exits. It frees their memory earlier, about
    150 MB each.

    Example:
        >>> close_servers()
    """
    _pool.retire()


def _disown() -> None:
    """Start a forked process without servers: they belong to its parent, which still uses them."""
    global _pool
    _pool = _Pool()


atexit.register(close_servers)
os.register_at_fork(after_in_child=_disown)
