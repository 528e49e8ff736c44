"""The process that the campaigns kill: serve the checkout and the agent.

    python -m tests.chaos.app PORT [http1]

It prints its port to stdout, and exits when stdin is closed, that is when its parent process is gone.
"""

from __future__ import annotations

import sys

import restate

from restate_steps.server import AppServer
from tests.chaos.agent_workload import travel
from tests.chaos.checkout_workload import shop


def main() -> int:
    port, *http1 = sys.argv[1:]
    with AppServer(restate.app([shop, travel]), port=int(port) or None, http1=bool(http1)) as served:
        print(served.url.rpartition(":")[2], flush=True)
        sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main())
