"""A real restate-server, or a cluster of them, on loopback, each with data that outlives its process."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from restate_steps.errors import ServerError
from restate_steps.server import JournalEntry, RestateServer
from restate_steps.server._ports import free_ports

__all__ = ["Servers"]

T = TypeVar("T")

# With kills every second, retries must be quick and unlimited. By default, the server pauses an invocation after 70
# attempts, until an operator resumes it.
_RETRIES = {
    "RESTATE_DEFAULT_RETRY_POLICY__INITIAL_INTERVAL": "50ms",
    "RESTATE_DEFAULT_RETRY_POLICY__MAX_INTERVAL": "500ms",
    "RESTATE_DEFAULT_RETRY_POLICY__MAX_ATTEMPTS": "unlimited",
}
_ASK_WITHIN = 60.0


class Servers:
    """The servers of one campaign.

    Args:
        folder: The folder for data and logs.
        count: The number of servers. More than one form a cluster, which stores every record twice, and its metadata on
            every node.
        always_replay: Whether the servers suspend a handler whenever it waits.
    """

    def __init__(self, folder: Path, count: int, *, always_replay: bool = False) -> None:
        if count > 1:
            self.nodes = _cluster(folder, count, always_replay)
        else:
            self.nodes = [RestateServer(base_dir=folder / "server", env=_RETRIES, always_replay=always_replay)]

    def __enter__(self) -> Self:
        try:
            # The nodes of a cluster wait for each other, so they start together.
            with ThreadPoolExecutor(len(self.nodes)) as pool:
                list(pool.map(RestateServer.start, self.nodes))
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        # No need for a clean shutdown: the folder is removed with the data.
        for node in self.nodes:
            node.kill()

    @property
    def ingress_urls(self) -> list[str]:
        """The URLs of all ingresses, including those of killed nodes, which clients have to handle."""
        return [node.ingress_url for node in self.nodes]

    def register(self, url: str, *, http1: bool) -> None:
        self._ask(lambda node: node.admin.register(url, http1=http1))

    def query(self, sql: str) -> list[dict[str, Any]]:
        return self._ask(lambda node: node.admin.query(sql))

    def journal(self, invocation: str) -> list[JournalEntry]:
        return self._ask(lambda node: node.admin.journal(invocation))

    def _ask(self, question: Callable[[RestateServer], T]) -> T:
        """Query any running node, with retries: a query can fail on all of them while leaders change."""
        deadline = time.monotonic() + _ASK_WITHIN
        while True:
            failure = ServerError("no server is running.")
            for node in self.nodes:
                if node.running:
                    try:
                        return question(node)
                    except ServerError as error:
                        failure = error
            if time.monotonic() > deadline:
                raise failure
            time.sleep(0.2)


def _cluster(folder: Path, count: int, always_replay: bool) -> list[RestateServer]:
    # Every node needs the addresses of all nodes, so choose the ports here.
    ports = free_ports(3 * count)
    addresses = [f"http://127.0.0.1:{port}" for port in ports[2 * count :]]
    name = f"chaos-{secrets.token_hex(8)}"
    return [
        RestateServer(
            base_dir=_named(folder / f"node-{number}", name),
            always_replay=always_replay,
            env=_settings(number, addresses),
            ingress_port=ports[number],
            admin_port=ports[count + number],
            node_port=ports[2 * count + number],
            # A node becomes ready only after it has found the others.
            startup_timeout=120,
        )
        for number in range(count)
    ]


def _named(folder: Path, cluster: str) -> Path:
    # RestateServer stores the cluster's name with the data, and uses a name that it finds there.
    folder.mkdir()
    (folder / "cluster-name").write_text(cluster)
    return folder


def _settings(number: int, addresses: list[str]) -> dict[str, str]:
    return {
        **_RETRIES,
        "RESTATE_NODE_NAME": f"node-{number}",
        "RESTATE_METADATA_CLIENT__ADDRESSES": json.dumps(addresses),
        "RESTATE_METADATA_SERVER__TYPE": "replicated",
        "RESTATE_BIFROST__DEFAULT_PROVIDER": "replicated",
        "RESTATE_DEFAULT_REPLICATION": "2",
        # More partitions than nodes, so that every node leads some.
        "RESTATE_DEFAULT_NUM_PARTITIONS": "6",
        # Only one node can provision the cluster; the others join it.
        "RESTATE_AUTO_PROVISION": "true" if number == 0 else "false",
    }
