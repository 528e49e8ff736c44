"""Free ports on loopback."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack

__all__ = ["LOOPBACK", "free_ports", "port_or_free"]

LOOPBACK = "127.0.0.1"

# Below the range from which Linux (32768 and up) and macOS (49152 and up) take the local ports of outgoing
# connections: a port found free in there is often taken again before a server gets round to binding it.
_RANGE = range(20_000, 32_000)
_ATTEMPTS = 200


def free_ports(count: int) -> list[int]:
    """Find ports on loopback that nothing listens on right now.

    Args:
        count: How many different ports to find.

    Returns:
        The ports, each of which could be bound a moment ago; another process may still be quicker.

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
    """Take a port of loopback if it is free, and another if it is not.

    Args:
        wanted: The port to take if it is free.

    Returns:
        A port that is free now.

    Example:
        >>> with socket.create_server(("127.0.0.1", 0)) as taken:
        ...     port_or_free(taken.getsockname()[1]) == taken.getsockname()[1]
        False
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # A port whose last connections are still winding down counts as free, as it does for a server.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, wanted))
        except OSError:
            return free_ports(1)[0]
        return wanted
