"""Carry out many runs while their process and their servers are killed, and print what went wrong.

    python -m chaos
    python -m chaos --runs 40 --service-kills 8 --server-kills 2 --no-cluster

First with one restate-server, then with a cluster of three, of which one node is killed in the middle. The exit code is
0 if every run has ended rightly and nothing happened twice.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys

from chaos.campaign import Campaign, Result, carry_out
from chaos.table import print_table


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m chaos", description="Disturb many runs, and count what went wrong."
    )
    both = argparse.BooleanOptionalAction
    parser.add_argument("--runs", type=int, default=200, help="runs in each part (default: 200)")
    parser.add_argument("--service-kills", type=int, default=30, help="kills of the handlers' process (default: 30)")
    parser.add_argument("--server-kills", type=int, default=5, help="kills of the single server (default: 5)")
    parser.add_argument("--node-kills", type=int, default=1, help="kills of nodes of the cluster (default: 1)")
    parser.add_argument("--seconds", type=float, default=900, help="time for each part; what is left then is lost")
    parser.add_argument("--single", action=both, default=True, help="the part with a single server")
    parser.add_argument("--cluster", action=both, default=True, help="the part with a cluster of three")
    parser.add_argument("--always-replay", action="store_true", help="let servers suspend a handler at every wait")
    parser.add_argument("--http1", action="store_true", help="serve the handlers in request/response mode")
    parser.add_argument("--seed", type=int, help="for the same calls and the same plan of kills as another time")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(1_000_000) if options.seed is None else options.seed

    shared = {name: getattr(options, name) for name in ("runs", "service_kills", "seconds", "always_replay", "http1")}
    shared["seed"] = seed
    campaigns = [
        *([Campaign("one server", server_kills=options.server_kills, nodes=1, **shared)] if options.single else []),
        *([Campaign("cluster of 3", server_kills=options.node_kills, nodes=3, **shared)] if options.cluster else []),
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
    """Print what is wrong, and return the exit code."""
    for result in results:
        for problem in result.problems:
            print(f"WRONG ({result.campaign.title}): {problem}")
        for line in result.evidence:
            print(f"  {line}")
    if any(result.problems for result in results):
        return 1
    print("\nEvery run ended as it had to, and nothing that was recorded happened again.")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
