"""Wall time of concurrent branches on a real restate-server, each with one step whose body takes 5 ms.

    python -m benchmarks fan_out

Compares `gather` of durable steps with `restate.gather` of `run_typed` futures, and with sequential `run_typed` calls.
The handler measures the time itself.
"""

from __future__ import annotations

import sys
from functools import partial
from statistics import median

from benchmarks._handlers import PAUSE
from benchmarks._measure import Ratio, by_turns, print_table, ratio, spread
from benchmarks._server import served

SECONDS = {1: 4.0, 100: 8.0, 1000: 10.0}
"""The numbers of branches, each with the minimum duration of its measurement."""

ROUNDS = 5
GOAL = 1.05
LINEAR_GOAL = 1.25


def main() -> int:
    rows: list[list[str]] = []
    growth: Ratio | None = None
    with served() as call:
        for count, seconds in SECONDS.items():
            candidates = {"by hand": ("gather_pause_by_hand", count), "steps": ("gather_pause_steps", count)}
            if count == 1000:
                candidates["fewer"] = ("gather_pause_steps", 100)
            calls = {label: partial(call, *arguments) for label, arguments in candidates.items()}
            samples = by_turns(calls, seconds=seconds, least=ROUNDS)
            # A thousand sequential round trips take long and vary little, so one sample is enough.
            alone = [call("pause_by_hand", count) for _ in range(1 if count == 1000 else ROUNDS)]
            if count == 1000:
                growth = ratio([taken / 10 for taken in samples["steps"]], samples["fewer"])
            found = ratio(samples["steps"], samples["by hand"])
            rows.append(
                [
                    f"{count:,} {'branch' if count == 1 else 'branches'}",
                    f"{median(alone) * 1e3:.1f}",
                    f"{spread(samples['by hand']).median * 1e3:.1f}",
                    f"{spread(samples['steps']).median * 1e3:.1f}",
                    f"{found.median:.2f}",
                    found.quartiles,
                    f"{GOAL:.2f}",
                    found.verdict(GOAL),
                ]
            )
    assert growth is not None
    row = ["1,000 vs. 100, per branch", "", "", "", f"{growth.median:.2f}", growth.quartiles]
    rows.append([*row, f"{LINEAR_GOAL:.2f}", growth.verdict(LINEAR_GOAL)])
    print(f"Milliseconds for all branches; every body takes {PAUSE * 1e3:.0f} ms; ratios to restate.gather\n")
    print_table(["", "sequential", "restate.gather", "steps", "ratio", "quartiles", "goal", "verdict"], rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
