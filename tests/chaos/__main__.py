"""Execute many runs while killing their process and their servers, and print the errors.

    python -m tests.chaos
    python -m tests.chaos --runs 40 --service-kills 8 --server-kills 2 --no-cluster

The first campaign uses one restate-server. The second uses a cluster of three, and kills one node halfway. The third
ends the handlers' process with SIGTERM instead, after which no step may run again. The exit code is 0 if every run
ended correctly and nothing happened twice.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys

from tests.chaos.campaign import Campaign, Result, carry_out
from tests.chaos.table import print_table


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description="Kill processes during many runs, and count the errors."
    )
    both = argparse.BooleanOptionalAction
    parser.add_argument("--runs", type=int, default=200, help="runs per campaign; default: %(default)s")
    parser.add_argument(
        "--service-kills", type=int, default=30, help="kills of the handlers' process; default: %(default)s"
    )
    parser.add_argument("--server-kills", type=int, default=5, help="kills of the single server; default: %(default)s")
    parser.add_argument("--node-kills", type=int, default=1, help="kills of cluster nodes; default: %(default)s")
    parser.add_argument(
        "--seconds", type=float, default=900, help="time limit per campaign, in seconds; unfinished runs count as lost"
    )
    parser.add_argument("--single", action=both, default=True, help="include the campaign with a single server")
    parser.add_argument("--cluster", action=both, default=True, help="include the campaign with a cluster of three")
    parser.add_argument("--drained", action=both, default=True, help="include the campaign with graceful restarts")
    parser.add_argument("--always-replay", action="store_true", help="suspend handlers whenever they wait")
    parser.add_argument("--http1", action="store_true", help="serve the handlers in request/response mode")
    parser.add_argument("--seed", type=int, help="repeat the calls and the kill plan of an earlier run")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(1_000_000) if options.seed is None else options.seed

    shared = {name: getattr(options, name) for name in ("runs", "service_kills", "seconds", "always_replay", "http1")}
    shared["seed"] = seed
    campaigns = [
        *([Campaign("one server", server_kills=options.server_kills, nodes=1, **shared)] if options.single else []),
        *([Campaign("cluster of 3", server_kills=options.node_kills, nodes=3, **shared)] if options.cluster else []),
        *([Campaign("drained", server_kills=0, nodes=1, gracefully=True, **shared)] if options.drained else []),
    ]
    print(f"seed {seed}", flush=True)
    results: list[Result] = []
    for campaign in campaigns:
        print(f"{campaign.title}: {campaign.runs} runs", flush=True)
        results.append(asyncio.run(carry_out(campaign)))
    print()
    print_table(results)
    return conclude(results)


def conclude(results: list[Result]) -> int:
    """Print the problems, and return the exit code."""
    for result in results:
        for problem in result.problems:
            print(f"FAIL ({result.campaign.title}): {problem}")
        for line in result.evidence:
            print(f"  {line}")
    if any(result.problems for result in results):
        return 1
    print("\nEvery run ended as expected, and nothing that was recorded happened again.")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
