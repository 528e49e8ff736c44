"""Find free ports on loopback."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack

__all__ = ["LOOPBACK", "free_ports", "port_or_free"]

LOOPBACK = "127.0.0.1"

# Below the ephemeral ports of Linux (from 32768) and macOS (from 49152): outgoing connections often take a free port of
# that range before the server binds it.
_RANGE = range(20_000, 32_000)
_ATTEMPTS = 200


def free_ports(count: int) -> list[int]:
    """Find ports on loopback that are free right now.

    Args:
        count: The number of different ports to find.

    Returns:
        The ports. Another process can still bind one of them before you do.

    Raises:
        OSError: If no port can be bound at all.

    Example:
        >>> len(set(free_ports(3)))
        3
    """
    choose = random.SystemRandom()
    found: list[int] = []
    with ExitStack() as held:
        while len(found) < count:
            probe = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            for _ in range(_ATTEMPTS):
                try:
                    probe.bind((LOOPBACK, choose.choice(_RANGE)))
                    break
                except OSError:
                    continue
            else:
                probe.bind((LOOPBACK, 0))
            port: int = probe.getsockname()[1]
            found.append(port)
    return found


def port_or_free(wanted: int) -> int:
    """Return a port on loopback if it is free, and another free port if it is not.

    Args:
        wanted: The preferred port.

    Returns:
        A port that is free right now.

    Example:
        >>> with socket.create_server(("127.0.0.1", 0)) as taken:
        ...     port_or_free(taken.getsockname()[1]) == taken.getsockname()[1]
        False
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # Treat ports with connections in TIME_WAIT as free, as a server does.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, wanted))
        except OSError:
            return free_ports(1)[0]
        return wanted
