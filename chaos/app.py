"""The process that is killed: serves the checkout and the agent.

    python -m chaos.app PORT

It tells its port on stdout, and ends when its stdin is closed: when whoever started it is gone.
"""

from __future__ import annotations

import sys

import restate

from chaos.shop import shop
from chaos.travel import travel
from restate_steps.server import AppServer


def main() -> int:
    with AppServer(restate.app([shop, travel]), port=int(sys.argv[1]) or None) as served:
        print(served.url.rpartition(":")[2], flush=True)
        sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main())
