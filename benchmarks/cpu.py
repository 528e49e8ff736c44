"""CPU time per step without a server: durable steps compared with the SDK alone, and the growth of `gather`'s cost.

    python -m benchmarks cpu

An attempt runs in-process, against a simulated server whose own time is subtracted. The time of a whole attempt, from
its first byte to its last, is divided by the number of steps. "fresh" runs every body; "replay" has all results in the
journal.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Sequence

from benchmarks._handlers import application
from benchmarks._measure import by_turns, print_table, ratio, spread
from benchmarks._player import Player, first

STEPS = 100
"""The minimum number of steps per sample."""

STEP_GOAL = 1.15
LONG_GOAL = 1.10
LINEAR_GOAL = 1.25
FAN_OUT_GOAL = 60.0

SEQUENTIAL = (("int", 1), ("int", 10), ("int", 100), ("int", 1000), ("model", 100), ("model", 1000))
"""The steps' result, and the number of steps."""

COUNTS = (1, 10, 100, 1000)
HEAD = ["", "by hand", "steps", "ratio", "quartiles", "goal", "verdict"]


def measurement(player: Player, mode: str, handler: str, count: int) -> Callable[[], float]:
    """Return a function that measures the CPU time per step, in seconds."""
    journal = first(count) if mode == "fresh" else player.record(handler, count)
    # Repeat short attempts, because code is slow right after a garbage collection.
    times = max(1, STEPS // count)
    # The player measures itself in wall time, which includes pauses, so subtract the minimum of several.
    own = min(player.play(handler, journal, times=times)[1] for _ in range(3))
    return lambda: (player.play(handler, journal, times=times)[0] - own) / (times * count)


def micros(samples: Sequence[float]) -> str:
    return f"{spread(samples).median * 1e6:.1f}"


def one_after_another(player: Player) -> None:
    rows: list[list[str]] = []
    for mode in ("fresh", "replay"):
        for result, count in SEQUENTIAL:
            goal = {1: None, 1000: LONG_GOAL}.get(count, STEP_GOAL)
            handlers = {
                "by hand": f"{result}_by_hand",
                "verify on": f"{result}_steps",
                "verify off": f"{result}_unverified",
            }
            if (mode, result, count) == ("fresh", "int", 100):
                handlers["by hand against itself"] = "int_by_hand"
            if (result, count) == ("int", 100):
                handlers["by hand, nothing encoded"] = "bytes_by_hand"
            measured = {label: measurement(player, mode, name, count) for label, name in handlers.items()}
            samples = by_turns(measured, seconds=0.8 + count / 300)
            base = samples.pop("by hand")
            for label, ours in samples.items():
                found = ratio(ours, base)
                row = [f"{mode}, {result}, {count:,} {'step' if count == 1 else 'steps'}, {label}"]
                row += [micros(base), micros(ours), f"{found.median:.2f}", found.quartiles]
                if goal is None or not label.startswith("verify"):
                    rows.append([*row, "", ""])
                else:
                    rows.append([*row, f"{goal:.2f}", found.verdict(goal)])
    print("Sequential steps: CPU time per step in microseconds, compared with run_typed with an explicit serde\n")
    print_table(HEAD, rows)


def together(player: Player, deliveries: str) -> None:
    rows: list[list[str]] = []
    for mode in ("fresh", "replay"):
        measured: dict[str, Callable[[], float]] = {}
        for count in COUNTS:
            measured[f"by hand {count}"] = measurement(player, mode, "gather_by_hand", count)
            measured[f"steps {count}"] = measurement(player, mode, "gather_steps", count)
        samples = by_turns(measured, seconds=5.0, least=5)
        for count in COUNTS:
            base, ours = samples[f"by hand {count}"], samples[f"steps {count}"]
            found = ratio(ours, base)
            row = [f"{mode}, {count:,} {'branch' if count == 1 else 'branches'}", micros(base), micros(ours)]
            row += [f"{found.median:.2f}", found.quartiles]
            if (mode, count) == ("fresh", 1000):
                taken = ratio(ours, [1e-6] * len(ours))
                row += [f"{FAN_OUT_GOAL:.0f} µs", taken.verdict(FAN_OUT_GOAL)]
            rows.append(row + [""] * (len(HEAD) - len(row)))
        for who in ("by hand", "steps"):
            growth = ratio(samples[f"{who} 1000"], samples[f"{who} 100"])
            row = [f"{mode}, 1,000 vs. 100, {who}", "", "", f"{growth.median:.2f}", growth.quartiles]
            rows.append([*row, f"{LINEAR_GOAL:.2f}", growth.verdict(LINEAR_GOAL)] if who == "steps" else [*row, "", ""])
    print(f"\nBranches of one step, {deliveries}: CPU time per step in microseconds, compared with restate.gather\n")
    print_table(HEAD, rows)


def main() -> int:
    app = application()
    # Exclude existing objects from the garbage collection before every sample.
    gc.collect()
    gc.freeze()
    player = Player(app)
    one_after_another(player)
    together(player, "results arriving together")
    player.close()
    player = Player(app, one_by_one=True)
    together(player, "results arriving one by one")
    player.close()
    gc.unfreeze()
    return 0


if __name__ == "__main__":
    sys.exit(main())
