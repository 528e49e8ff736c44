"""Run a restate-server on loopback.

1. Every listener is bound to 127.0.0.1.
2. A server has its own data folder, its own process group, and a cluster name that is stored with the data. The name
   distinguishes it from another server that answers on the same port: only *this* server's answer means it is ready.
3. When this process dies, even by SIGKILL, the server dies too.
4. ``kill`` and ``restart`` preserve the data and the ports. ``stop`` removes the data only if the folder is temporary.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Final, Self

from restate_steps._durations import to_seconds
from restate_steps.errors import ServerError
from restate_steps.server import _sql
from restate_steps.server._admin import AdminClient
from restate_steps.server._binary import ensure_server
from restate_steps.server._child import Child
from restate_steps.server._extra import missing_extra
from restate_steps.server._ports import LOOPBACK, free_ports, port_or_free

if TYPE_CHECKING:
    import httpx

__all__ = ["PROXY_VARIABLES", "RestateServer", "admin_of", "is_data_folder", "locked", "without_proxy"]

_LOG_NAME = "restate-server.log"
_NAME_FILE = "cluster-name"
_LOCK_FILE = "in-use"
_LOG_TAIL = 40
_PORT_ATTEMPTS = 5
_POLL_EVERY = 0.02

PROXY_VARIABLES: Final = frozenset({"http_proxy", "https_proxy", "all_proxy"})
"""The environment variables that name a proxy, in lower case."""

_SETTINGS = {
    "RESTATE_BIND_IP": LOOPBACK,
    "RESTATE_ADVERTISED_HOST": LOOPBACK,
    # Only TCP: the path of a Unix socket in the data folder can exceed the system's limit.
    "RESTATE_LISTEN_MODE": "tcp",
    # Must not change: a node with another name would not use the data.
    "RESTATE_NODE_NAME": "restate-steps",
    "RESTATE_DEFAULT_NUM_PARTITIONS": "1",
    "RESTATE_ROCKSDB_TOTAL_MEMORY_SIZE": "32 MB",
    "RESTATE_SHUTDOWN_TIMEOUT": "5s",
    "RESTATE_LOG_DISABLE_ANSI_CODES": "true",
    "RESTATE_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
}


class RestateServer:
    """A private restate-server on loopback, with its own data.

    Use it as a context manager, or call :meth:`start` and :meth:`stop`. A stopped server can be started again; with a
    temporary data folder it then starts empty.

    Args:
        path: The server binary. By default, it is found or fetched (see :func:`ensure_server`).
        base_dir: The folder for the data and the log, which is never removed. A temporary folder by default.
        always_replay: Whether the server suspends a handler whenever it waits, so that it continues by replay.
        disable_retries: Whether an invocation ends when its first attempt fails.
        env: Additional environment variables for the server, which override those set by this class.
        log_filter: The server's log filter, in the syntax of Rust's ``env_logger``.
        ingress_port: The port of the ingress, which accepts calls; a free one by default.
        admin_port: The port of the admin API and the UI; a free one by default.
        node_port: The port for other nodes; a free one by default.
        preferred_ports: The ports of the ingress and the admin API to use if they are free and no other is given.
        startup_timeout: The maximum time to wait until the server is ready, in seconds or as a timedelta.

    Example:
        >>> with RestateServer() as server:
        ...     server.admin.query("SELECT count(*) AS n FROM sys_invocation")
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
        preferred_ports: tuple[int, int] | None = None,
        startup_timeout: timedelta | float = 60.0,
    ) -> None:
        self._path = path
        self._given_dir = Path(base_dir).expanduser().absolute() if base_dir is not None else None
        self._base_dir = self._given_dir
        self._given_ports = (ingress_port, admin_port, node_port)
        self._preferred_ports = (*(preferred_ports or (None, None)), None)
        self._ports: tuple[int, int, int] | None = None
        self._startup_timeout = to_seconds("startup_timeout", startup_timeout)
        self._process: Child | None = None
        self._lock: BinaryIO | None = None
        # The server checks for a new release at every start, which cannot be disabled, and logs an error without a
        # network. Silence it, unless the given filter mentions it.
        quiet = log_filter if "octocrab" in log_filter else f"{log_filter},octocrab=off"
        self._settings = {**_SETTINGS, "RESTATE_LOG_FILTER": quiet}
        if always_replay:
            self._settings["RESTATE_WORKER__INVOKER__INACTIVITY_TIMEOUT"] = "0s"
        if disable_retries:
            self._settings["RESTATE_DEFAULT_RETRY_POLICY__MAX_ATTEMPTS"] = "1"
            self._settings["RESTATE_DEFAULT_RETRY_POLICY__ON_MAX_ATTEMPTS"] = "kill"
        self._env = dict(env or {})

    @property
    def ingress_url(self) -> str:
        """The URL of the ingress, which accepts calls."""
        return f"http://{LOOPBACK}:{self._known_ports()[0]}"

    @property
    def admin_url(self) -> str:
        """The URL of the admin API."""
        return f"http://{LOOPBACK}:{self._known_ports()[1]}"

    @property
    def admin(self) -> AdminClient:
        """A client for the server's admin API."""
        return AdminClient(self.admin_url)

    @property
    def ui_url(self) -> str:
        """The URL of the server's web UI."""
        return f"{self.admin_url}/ui/"

    @property
    def base_dir(self) -> Path:
        """The folder with the server's data and log."""
        if self._base_dir is None:
            raise ServerError(
                "this server has no data folder, because it was not started, or was stopped. Start it first."
            )
        return self._base_dir

    @property
    def log_path(self) -> Path:
        """The file with the server's output."""
        return self.base_dir / _LOG_NAME

    @property
    def pid(self) -> int:
        """The id of the server's process, and of its process group."""
        if self._process is None:
            raise ServerError("this server has no process, because it is not running. Start it first.")
        return self._process.pid

    @property
    def running(self) -> bool:
        """True while the server's process is alive."""
        return self._process is not None and self._process.poll() is None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> Self:
        """Start the server, and wait until it accepts calls.

        Returns:
            This server.

        Raises:
            ServerError: If it is already running, cannot be found or fetched, or does not become ready in time. The
                message then has the last lines of its log.
        """
        if self.running:
            raise ServerError(f"this server is already running, as process {self.pid}. Call restart() to restart it.")
        # Clean up after a server that exited by itself.
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
        """Stop the server, and remove its data folder if that is temporary. Does nothing if the server is stopped."""
        # No need for a clean shutdown if the data is removed anyway.
        self._end(signal.SIGTERM if self._given_dir else signal.SIGKILL)
        self._remove_own_folder()

    def kill(self) -> None:
        """Simulate a crash: kill the server with SIGKILL, and keep its data and ports for :meth:`restart`."""
        self._end(signal.SIGKILL)

    def restart(self) -> Self:
        """Start the server again with the same ports and data, after shutting it down cleanly if it is running.

        Returns:
            This server.

        Raises:
            ServerError: If the server does not become ready in time.
        """
        self._end(signal.SIGTERM)
        return self.start()

    def _known_ports(self) -> tuple[int, int, int]:
        if self._ports is None:
            raise ServerError("this server has no URLs yet, because it was not started. Start it first.")
        return self._ports

    def _start_on_free_ports(self, binary: Path) -> None:
        chosen = self._ports is None and None in self._given_ports
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            if self._ports is None:
                self._ports = self._choose_ports()
            written = self.log_path.stat().st_size if self.log_path.exists() else 0
            self._spawn(binary)
            trouble = self._wait_until_ready()
            if trouble is None:
                return
            self._end_process(signal.SIGKILL)
            # Check the ports themselves: the server can exit before it logs which port is taken.
            taken = [port for port in self._known_ports() if port_or_free(port) != port]
            if not (taken and chosen and attempt < _PORT_ATTEMPTS):
                blame = f" Port {taken[0]} on {LOOPBACK} is in use by another process." if taken else ""
                raise ServerError(
                    f"restate-server ({binary}) {trouble}.{blame} Its data folder is {self.base_dir}. The end of its "
                    f"log:\n{_tail(self._log_since(written))}"
                )
            self._ports = None

    def _choose_ports(self) -> tuple[int, int, int]:
        spare = iter(free_ports(len(self._given_ports)))

        def choose(given: int | None, preferred: int | None) -> int:
            if given is not None:
                return given
            return next(spare) if preferred is None else port_or_free(preferred)

        ingress, admin, node = map(choose, self._given_ports, self._preferred_ports)
        return ingress, admin, node

    def _spawn(self, binary: Path) -> None:
        ingress, admin, node = self._known_ports()
        # The environment may have settings for another server.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RESTATE_")}
        if any(name.lower() in PROXY_VARIABLES for name in inherited):
            # The server would send requests to applications on loopback through the proxy, too.
            inherited |= dict.fromkeys(("NO_PROXY", "no_proxy"), without_proxy(os.environ))
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
        # The server rejects data of a cluster with another name, so store the name with the data.
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
        with httpx.Client(timeout=2.0, trust_env=False, verify=False) as client:
            while time.monotonic() < deadline:
                if self._process is not None and (code := self._process.poll()) is not None:
                    return f"exited with code {code} instead of starting"
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
            # Both become healthy before the worker that runs invocations. A query needs the worker too.
            query = {"query": _sql.ANY_INVOCATION}
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


def admin_of(server: RestateServer | AdminClient | str) -> AdminClient:
    """Return a client for the admin API of a server, which may be given as such a client or its URL."""
    if isinstance(server, str):
        return AdminClient(server)
    return server.admin if isinstance(server, RestateServer) else server


def without_proxy(environment: Mapping[str, str]) -> str:
    """Return a value of ``NO_PROXY`` that adds loopback to the hosts that need no proxy.

    Example:
        >>> without_proxy({"no_proxy": "intranet"})
        'intranet,127.0.0.1,localhost,::1'
    """
    listed = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    hosts = [host for host in map(str.strip, listed.split(",")) if host]
    return ",".join(dict.fromkeys([*hosts, LOOPBACK, "localhost", "::1"]))


def is_data_folder(folder: Path) -> bool:
    """Return whether a folder has the data of a server that :class:`RestateServer` ran."""
    return (folder / _NAME_FILE).is_file()


@contextmanager
def locked(folder: Path) -> Generator[Path, None, None]:
    """Keep servers out of a data folder, and yield the lock file in it.

    Raises:
        ServerError: A server uses the folder.
    """
    with _lock(folder):
        yield folder / _LOCK_FILE


def _lock(folder: Path) -> BinaryIO:
    """Lock a data folder against other servers of this package; the server does not always report its own lock."""
    import fcntl

    lock = (folder / _LOCK_FILE).open("wb")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise ServerError(
            f"the data folder {folder} is in use by another server. Stop that server, or use another folder."
        ) from None
    return lock


def _tail(text: str) -> str:
    lines = text.rstrip().splitlines()[-_LOG_TAIL:] or ["(the log is empty)"]
    return "\n".join(f"  | {line}" for line in lines)
