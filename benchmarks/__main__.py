"""Run the benchmarks named on the command line, or all of them.

    python -m benchmarks
    python -m benchmarks cpu fan_out

The numbers are for people to read: a missed goal is reported in its row, but does not change the exit code.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time

from benchmarks._measure import machine

# Benchmarks that need a restate-server come last, because it may have to be fetched.
BENCHMARKS = {
    "imports": "import time, compared with importing only the dependencies",
    "codec": "encoding and decoding, compared with a bare TypeAdapter and the SDK's pydantic serde",
    "testing": "the cost of a simulated attempt and the explored schedules per second, followed by cpu",
    "cpu": "CPU time per step without a server, compared with the SDK alone",
    "steps": "wall time per step on a server, compared with the SDK alone",
    "fan_out": "wall time of concurrent branches on a server, compared with the SDK alone",
    "agents": "a scripted agent on a server, compared with restate.ext.pydantic, DBOS and a plain agent",
    "workers": "the scripted agent, served by two workers, compared with one",
}


def main() -> int:
    listed = "\n".join(f"  {name:<8} {what}" for name, what in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure the performance claims in the documentation.",
        epilog=f"benchmarks:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="name", help="the benchmarks to run; default: all")
    names: list[str] = parser.parse_args().names
    if unknown := [name for name in names if name not in BENCHMARKS]:
        parser.error(f"unknown benchmark {unknown[0]!r}; choose from: {', '.join(BENCHMARKS)}")
    print(machine())
    print(
        "Times and ratios are medians; quartiles are those of the ratios. A 'just' verdict may change in the next run."
    )
    for name in names or [name for name in BENCHMARKS if name != "cpu"]:
        print(f"\n=== {name} ===\n", flush=True)
        start = time.perf_counter()
        importlib.import_module(f"{__package__}.{name}").main()
        print(f"\n({name}: {time.perf_counter() - start:.0f} s)", flush=True)
    print(f"\n{machine()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
