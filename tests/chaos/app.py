"""The process that the campaigns kill or stop: serve the checkout and the agent.

    python -m tests.chaos.app PORT [http1]

It prints its port to stdout, and exits when stdin is closed, that is when its parent process is gone.
"""

from __future__ import annotations

import os
import sys
import threading

import restate

from restate_steps.server._run import run_app
from tests.chaos.agent_workload import travel
from tests.chaos.checkout_workload import shop


def main() -> int:
    port, *http1 = sys.argv[1:]
    threading.Thread(target=end_with_parent, daemon=True).start()
    run_app(
        restate.app([shop, travel]),
        port=int(port),
        http1=bool(http1),
        ready=lambda url: print(url.rpartition(":")[2], flush=True),
    )
    return 0


def end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
