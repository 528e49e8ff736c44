"""Run a restate-server on loopback.

1. Every listener is bound to 127.0.0.1.
2. A server has its own data folder, its own process group, and a cluster name that is kept with its data. The name
   tells it apart from a stranger that answers on the same port: readiness is the answer of *this* server.
3. When this process dies, even by SIGKILL, the server dies too.
4. ``kill`` and ``restart`` keep the data and the ports; ``stop`` removes the data only where it made the folder.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Self

from restate_steps.errors import ServerError
from restate_steps.server._admin import AdminClient
from restate_steps.server._binary import ensure_server
from restate_steps.server._child import Child
from restate_steps.server._extra import missing_extra
from restate_steps.server._ports import LOOPBACK, free_ports, port_or_free

if TYPE_CHECKING:
    import httpx

__all__ = ["RestateServer"]

_LOG_NAME = "restate-server.log"
_NAME_FILE = "cluster-name"
_LOCK_FILE = "in-use"
_LOG_TAIL = 40
_PORT_ATTEMPTS = 5
_POLL_EVERY = 0.02

_SETTINGS = {
    "RESTATE_BIND_IP": LOOPBACK,
    "RESTATE_ADVERTISED_HOST": LOOPBACK,
    # Only TCP: the path of a Unix socket in the data folder can be longer than the system allows.
    "RESTATE_LISTEN_MODE": "tcp",
    # The name is part of the data folder: another one would be a new node, without the data.
    "RESTATE_NODE_NAME": "restate-steps",
    "RESTATE_DEFAULT_NUM_PARTITIONS": "1",
    "RESTATE_ROCKSDB_TOTAL_MEMORY_SIZE": "32 MB",
    "RESTATE_SHUTDOWN_TIMEOUT": "5s",
    "RESTATE_WORKER__INVOKER__ABORT_TIMEOUT": "10m",
    "RESTATE_LOG_DISABLE_ANSI_CODES": "true",
    "RESTATE_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
}


class RestateServer(AdminClient):
    """A restate-server of your own, on loopback, with its own data.

    Use it as a context manager, or call :meth:`start` and :meth:`stop`. A server that was stopped can be started
    again; if its data folder was a temporary one, it starts empty.

    Args:
        path: The server binary; found, or fetched, if left out (see :func:`ensure_server`).
        base_dir: The folder for its data and its log, kept at the end. Left out, it is a temporary one.
        always_replay: Whether the server shall suspend a handler at every wait, so that each goes on by replay.
        disable_retries: Whether the first failed attempt ends an invocation.
        env: More environment variables for the server; they win over those set here.
        log_filter: How much the server logs, in the syntax of Rust's ``env_logger``.
        ingress_port: The port that takes calls; a free one if left out.
        admin_port: The port of the admin API and the UI; a free one if left out.
        node_port: The port for other nodes; a free one if left out.
        startup_timeout: How long to wait until the server is ready, in seconds.

    Example:
        >>> with RestateServer() as server:
        ...     server.query("SELECT count(*) AS n FROM sys_invocation")
        [{'n': 0}]
    """

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        base_dir: str | Path | None = None,
        always_replay: bool = False,
        disable_retries: bool = False,
        env: Mapping[str, str] | None = None,
        log_filter: str = "warn",
        ingress_port: int | None = None,
        admin_port: int | None = None,
        node_port: int | None = None,
        startup_timeout: float = 60.0,
    ) -> None:
        super().__init__("")
        self._path = path
        self._given_dir = Path(base_dir).expanduser().absolute() if base_dir is not None else None
        self._base_dir = self._given_dir
        self._given_ports = (ingress_port, admin_port, node_port)
        self._ports: tuple[int, int, int] | None = None
        self._startup_timeout = startup_timeout
        self._process: Child | None = None
        self._lock: BinaryIO | None = None
        # The server asks for its newest release at every start, has no switch for that, and logs an error without
        # a network. It matters to nobody here, unless a filter of one's own asks for it.
        quiet = log_filter if "octocrab" in log_filter else f"{log_filter},octocrab=off"
        self._settings = {
            **_SETTINGS,
            "RESTATE_LOG_FILTER": quiet,
            "RESTATE_WORKER__INVOKER__INACTIVITY_TIMEOUT": "0s" if always_replay else "10m",
        }
        if disable_retries:
            self._settings["RESTATE_DEFAULT_RETRY_POLICY__MAX_ATTEMPTS"] = "1"
            self._settings["RESTATE_DEFAULT_RETRY_POLICY__ON_MAX_ATTEMPTS"] = "kill"
        self._env = dict(env or {})

    @property
    def ingress_url(self) -> str:
        """Where calls go."""
        return f"http://{LOOPBACK}:{self._known_ports()[0]}"

    @property
    def admin_url(self) -> str:
        """Where the admin API is."""
        return f"http://{LOOPBACK}:{self._known_ports()[1]}"

    @property
    def ui_url(self) -> str:
        """Where the server's web interface is."""
        return f"{self.admin_url}/ui/"

    @property
    def base_dir(self) -> Path:
        """The folder with the server's data and log."""
        if self._base_dir is None:
            raise ServerError("this server has no data folder: it has not been started, or it was stopped.")
        return self._base_dir

    @property
    def log_path(self) -> Path:
        """The file with everything the server has printed."""
        return self.base_dir / _LOG_NAME

    @property
    def pid(self) -> int:
        """The id of the server's process, which is the id of its process group too."""
        if self._process is None:
            raise ServerError("this server has no process: it is not running.")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the server's process is alive."""
        return self._process is not None and self._process.poll() is None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> Self:
        """Start the server, and wait until it takes calls.

        Returns:
            The server itself.

        Raises:
            ServerError: If it runs already, cannot be found or fetched, or is not ready in time; the last lines of
                its log are in the message.
        """
        if self.running:
            raise ServerError(f"this server is running already, as process {self.pid}.")
        # One that ended by itself has left things behind.
        self._end(signal.SIGKILL)
        binary = ensure_server(self._path)
        if self._base_dir is None:
            self._base_dir = Path(tempfile.mkdtemp(prefix="restate-steps-"))
        else:
            self._base_dir.mkdir(parents=True, exist_ok=True)
        try:
            self._lock = _lock(self._base_dir)
            self._start_on_free_ports(binary)
        except BaseException:
            self._end(signal.SIGKILL)
            self._remove_own_folder()
            raise
        return self

    def stop(self) -> None:
        """Stop the server, and remove its data folder if that was a temporary one. Does nothing if it is stopped."""
        # Data that is about to be removed need not be saved.
        self._end(signal.SIGTERM if self._given_dir else signal.SIGKILL)
        self._remove_own_folder()

    def kill(self) -> None:
        """End the server as a crash would, with SIGKILL, and keep its data and ports for :meth:`restart`."""
        self._end(signal.SIGKILL)

    def restart(self) -> Self:
        """Start the server again, on the same ports and data; one that runs is stopped properly first.

        Returns:
            The server itself.

        Raises:
            ServerError: If it is not ready in time.
        """
        self._end(signal.SIGTERM)
        return self.start()

    def _known_ports(self) -> tuple[int, int, int]:
        if self._ports is None:
            raise ServerError("this server has no URLs yet: start it first.")
        return self._ports

    def _start_on_free_ports(self, binary: Path) -> None:
        chosen = self._ports is None and None in self._given_ports
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            if self._ports is None:
                spare = iter(free_ports(len(self._given_ports)))
                ingress, admin, node = (next(spare) if port is None else port for port in self._given_ports)
                self._ports = ingress, admin, node
            written = self.log_path.stat().st_size if self.log_path.exists() else 0
            self._spawn(binary)
            trouble = self._wait_until_ready()
            if trouble is None:
                return
            self._end_process(signal.SIGKILL)
            # Not read from the log: the server sometimes ends before it has written its last lines.
            taken = [port for port in self._known_ports() if port_or_free(port) != port]
            if not (taken and chosen and attempt < _PORT_ATTEMPTS):
                blame = f" Port {taken[0]} of {LOOPBACK} is taken by another process." if taken else ""
                raise ServerError(
                    f"restate-server ({binary}) {trouble}.{blame} Its data folder is {self.base_dir}, and this is the "
                    f"end of its log:\n{_tail(self._log_since(written))}"
                )
            self._ports = None

    def _spawn(self, binary: Path) -> None:
        ingress, admin, node = self._known_ports()
        # Settings for another server, in the shell this runs in, must not change this one.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RESTATE_")}
        environment = {
            **inherited,
            **self._settings,
            "RESTATE_INGRESS__BIND_PORT": str(ingress),
            "RESTATE_ADMIN__BIND_PORT": str(admin),
            "RESTATE_BIND_PORT": str(node),
            **self._env,
            "RESTATE_CLUSTER_NAME": self._cluster_name(),
        }
        with self.log_path.open("ab") as log:
            self._process = Child(
                [binary, "--no-logo", "--base-dir", self.base_dir],
                cwd=self.base_dir,
                env=environment,
                output=log,
                remove=None if self._given_dir else self.base_dir,
            )

    def _cluster_name(self) -> str:
        # The server refuses data that a cluster of another name wrote, so the name stays with the data.
        kept = self.base_dir / _NAME_FILE
        if not kept.exists():
            kept.write_text(f"restate-steps-{secrets.token_hex(8)}\n")
        return kept.read_text().strip()

    def _wait_until_ready(self) -> str | None:
        try:
            import httpx
        except ImportError as error:
            raise missing_extra("httpx", "talk to the server") from error

        deadline = time.monotonic() + self._startup_timeout
        with httpx.Client(timeout=2.0, trust_env=False) as client:
            while time.monotonic() < deadline:
                if self._process is not None and (code := self._process.poll()) is not None:
                    return f"ended with exit code {code} instead of starting"
                if self._is_ready(client):
                    return None
                time.sleep(_POLL_EVERY)
        return f"was not ready after {self._startup_timeout:g} s"

    def _is_ready(self, client: httpx.Client) -> bool:
        import httpx

        try:
            cluster = client.get(f"{self.admin_url}/cluster-health")
            if not cluster.is_success or cluster.json().get("cluster_name") != self._cluster_name():
                return False
            admin = client.get(f"{self.admin_url}/health")
            ingress = client.get(f"{self.ingress_url}/restate/health")
            # Both are healthy a moment before there is somebody to run an invocation; a query needs the same.
            query = {"query": "SELECT id FROM sys_invocation LIMIT 1"}
            worker = client.post(f"{self.admin_url}/query", json=query, headers={"accept": "application/json"})
        except (httpx.HTTPError, ValueError):
            return False
        return admin.is_success and ingress.is_success and worker.is_success

    def _log_since(self, offset: int) -> str:
        with self.log_path.open("rb") as log:
            log.seek(offset)
            return log.read().decode(errors="replace")

    def _end(self, sign: signal.Signals) -> None:
        self._end_process(sign)
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _end_process(self, sign: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.end(sign)

    def _remove_own_folder(self) -> None:
        if self._given_dir is None and self._base_dir is not None:
            shutil.rmtree(self._base_dir, ignore_errors=True)
            self._base_dir = None


def _lock(folder: Path) -> BinaryIO:
    """Keep other servers of this package off a data folder; the server's own lock is not always told."""
    import fcntl

    lock = (folder / _LOCK_FILE).open("wb")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise ServerError(
            f"the data folder {folder} is in use by another server. Stop that one, or use another folder."
        ) from None
    return lock


def _tail(text: str) -> str:
    lines = text.rstrip().splitlines()[-_LOG_TAIL:] or ["(the log is empty)"]
    return "\n".join(f"  | {line}" for line in lines)
