"""The cost of importing this package, compared with importing only its dependencies.

    python -m benchmarks imports

Every sample is a fresh interpreter that measures nothing but the import. "dependencies" imports the packages listed in
pyproject.toml. "used dependencies" also loads the parts of pydantic that this package uses and pydantic loads lazily.
"""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks._measure import by_turns, print_table, ratio, spread

SECONDS = 30.0
GOAL = 1.10
TOP = 12

DEPENDENCIES = "import restate, pydantic, typing_extensions"
USED = f"{DEPENDENCIES}; from pydantic import BaseModel, TypeAdapter, ValidationError"
OURS = "from restate_steps import *"

# Use the same search path in every candidate, so that none has more folders to search.
PREPARE = "import sys, time; sys.path.insert(0, sys.argv[1])"
MEASURE = f"""
{PREPARE}
wall, cpu = time.perf_counter(), time.process_time()
{{imports}}
print(time.perf_counter() - wall, time.process_time() - cpu)
"""


def package_root() -> str:
    spec = find_spec("restate_steps")
    assert spec is not None
    assert spec.origin is not None
    return str(Path(spec.origin).parents[1])


def run(code: str, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *flags, "-c", code, package_root()]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)


@cache
def environment() -> dict[str, str]:
    """Return an environment that caches bytecode, even if the current one does not or cannot write to the packages."""
    folder = TemporaryDirectory(prefix="restate-steps-imports-")
    atexit.register(folder.cleanup)
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**inherited, "PYTHONPYCACHEPREFIX": folder.name}


def contributors() -> list[list[str]]:
    """Return the slowest of the modules that only this package loads, and the total of all of them."""
    listed = run(f"{PREPARE}\n{OURS}", "-X", "importtime").stderr
    without = set(run(f"{PREPARE}\n{DEPENDENCIES}\nprint(*sys.modules)").stdout.split())
    rows: list[tuple[int, str]] = []
    for line in listed.splitlines():
        own, _, name = line.removeprefix("import time:").split("|")
        if own.strip().isdigit() and name.strip() not in without:
            rows.append((int(own), name.strip()))
    rows.sort(reverse=True)
    rows = [*rows[:TOP], (sum(own for own, _ in rows), f"all {len(rows)}")]
    return [[name, f"{own / 1000:.2f}"] for own, name in rows]


def main() -> int:
    samples: dict[str, list[tuple[float, float]]] = {}

    def sampler(name: str, imports: str) -> Callable[[], float]:
        code = MEASURE.format(imports=imports)

        def measure() -> float:
            wall, cpu = map(float, run(code).stdout.split())
            samples.setdefault(name, []).append((wall, cpu))
            return wall

        return measure

    candidates = {"dependencies": DEPENDENCIES, "used dependencies": USED, "restate_steps": OURS}
    taken = by_turns({name: sampler(name, code) for name, code in candidates.items()}, seconds=SECONDS)
    rows: list[list[str]] = []
    reached = True
    for place, clock in enumerate(("wall", "CPU")):
        # The first sample is a warm-up, which by_turns() does not return.
        times = {name: [sample[place] for sample in samples[name][-len(taken[name]) :]] for name in candidates}
        ours = times.pop("restate_steps")
        for name, base in times.items():
            found = ratio(ours, base)
            reached = reached and found.median <= GOAL
            rows.append(
                [
                    f"{clock} time, vs. {name}",
                    f"{spread(base).median * 1e3:.1f}",
                    f"{spread(ours).median * 1e3:.1f}",
                    f"{found.median:.2f}",
                    found.quartiles,
                    f"{GOAL:.2f}",
                    found.verdict(GOAL),
                ]
            )
    print("Milliseconds to import restate_steps, in fresh interpreters\n")
    print_table(["", "without", "with", "ratio", "quartiles", "goal", "verdict"], rows)
    if not reached:
        print("\nModules that only restate_steps loads, in milliseconds (-X importtime)\n")
        print_table(["module", "itself"], contributors())
    return 0


if __name__ == "__main__":
    sys.exit(main())
