"""Wall time per step on a real restate-server: durable steps compared with `run_typed` with an explicit serde.

    python -m benchmarks steps

The handler measures the time itself, from its first step to its last, in one attempt. Most of it is the round trip to
the server, which stores every result before the handler continues.
"""

from __future__ import annotations

import sys
from functools import partial

from benchmarks._measure import by_turns, print_table, ratio, spread
from benchmarks._server import served

SECONDS = {10: 6.0, 100: 18.0}
"""The numbers of steps, each with the minimum duration of its measurement."""

GOAL = 1.05


def main() -> int:
    rows: list[list[str]] = []
    with served() as call:
        for result in ("int", "model"):
            for count, seconds in SECONDS.items():
                candidates = {
                    "": f"{result}_by_hand",
                    "by hand against itself": f"{result}_by_hand",
                    "verify on": f"{result}_steps",
                    "verify off": f"{result}_unverified",
                }
                samples = by_turns(
                    {label: partial(call, handler, count) for label, handler in candidates.items()}, seconds=seconds
                )
                base = samples.pop("")
                for label, ours in samples.items():
                    found = ratio(ours, base)
                    control = label == "by hand against itself"
                    rows.append(
                        [
                            f"{result}, {count} steps, {label}",
                            f"{spread(base).median / count * 1e6:.0f}",
                            f"{spread(ours).median / count * 1e6:.0f}",
                            f"{found.median:.2f}",
                            found.quartiles,
                            "" if control else f"{GOAL:.2f}",
                            "" if control else found.verdict(GOAL),
                        ]
                    )
    print("Sequential steps on a restate-server: microseconds per step\n")
    print_table(["", "by hand", "steps", "ratio", "quartiles", "goal", "verdict"], rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
