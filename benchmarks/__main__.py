"""Run the benchmarks named on the command line, or all of them.

    python -m benchmarks
    python -m benchmarks cpu fan_out

Numbers are for people: a goal that is missed is said in its row, and is no failure.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time

from ._measure import machine

# Those that need a restate-server come last, as it may have to be fetched.
BENCHMARKS = {
    "imports": "import time, against importing the dependencies alone",
    "codec": "encoding and decoding, against a bare TypeAdapter and the SDK's pydantic serde",
    "testing": "what a simulated attempt costs and how many schedules are explored a second, then cpu",
    "cpu": "CPU time per step without a server, against the SDK alone",
    "steps": "wall time per step on a server, against the SDK alone",
    "fan_out": "wall time of concurrent branches on a server, against the SDK alone",
    "agents": "a scripted agent on a server, against restate.ext.pydantic, DBOS, and one that is not durable",
}


def main() -> int:
    listed = "\n".join(f"  {name:<8} {what}" for name, what in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure the claims of the documentation.",
        epilog=f"benchmarks:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="name", help="what to run; all if left out")
    names: list[str] = parser.parse_args().names
    if unknown := [name for name in names if name not in BENCHMARKS]:
        parser.error(f"there is no benchmark {unknown[0]!r}; there are: {', '.join(BENCHMARKS)}")
    print(machine())
    print("Medians; quartiles are those of the ratios. A verdict that is given just could be another in the next run.")
    for name in names or [name for name in BENCHMARKS if name != "cpu"]:
        print(f"\n=== {name} ===\n", flush=True)
        start = time.perf_counter()
        importlib.import_module(f"{__package__}.{name}").main()
        print(f"\n({name}: {time.perf_counter() - start:.0f} s)", flush=True)
    print(f"\n{machine()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
