"""The agents benchmark, served by one worker and by two: runs per second, and per second of CPU time.

    python -m benchmarks workers
    python -m benchmarks.workers --quick

The server, the client and the workers share the cores. So the processes' CPU time is measured as well: if two workers
execute as many runs in a second of their CPU time as one, only the other processes limit the rate.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import NamedTuple

import httpx

from benchmarks._measure import Ratio, by_turns, print_table, ratio, spread
from benchmarks.agents import SCRIPTS, SERVICES
from restate_steps.server import RestateServer
from restate_steps.server._ports import free_ports

AT_ONCE = 16
SECONDS, QUICK_SECONDS = 120.0, 0.0
LEAST, QUICK_LEAST = 7, 2
SAMPLE = 3.0
"""The duration of a sample, in seconds."""

GOAL = 1.7
COUNTS = (1, 2)

PROGRAM = """
import sys
from restate_steps.server._workers import run_workers

run_workers(sys.argv[1], workers=int(sys.argv[2]), port=int(sys.argv[3]), ready=lambda url: print(url, flush=True))
"""
APP = "benchmarks._worker_app:app"


class Sample(NamedTuple):
    """A sample: the runs per second, and the CPU seconds per second of the workers and of the other processes."""

    runs: float
    workers: float
    others: float


class Workers:
    """Some workers that share a port."""

    def __init__(self, count: int) -> None:
        [port] = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-c", PROGRAM, APP, str(count), str(port)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.process.stdout.readline()

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextmanager
def serving(count: int) -> Generator[Workers, None, None]:
    workers = Workers(count)
    try:
        yield workers
    finally:
        workers.end()


def cpu_seconds(root: int) -> float:
    """Return the CPU time of a process and its descendants so far."""
    listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,cputimes="], capture_output=True, text=True, check=True)
    rows = [tuple(map(int, line.split())) for line in listing.stdout.splitlines()]
    below = {root}
    while more := {pid for pid, parent, _ in rows if parent in below} - below:
        below |= more
    return sum(_exact(pid, seconds) for pid, _, seconds in rows if pid in below)


def _exact(pid: int, seconds: int) -> float:
    # `ps` rounds to seconds; Linux has a finer clock.
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return float(seconds)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measurement(
    server: RestateServer, workers: Workers, client: httpx.AsyncClient, runner: asyncio.Runner, samples: list[Sample]
) -> Callable[[], float]:
    """Return a function that measures the time per run in seconds, and adds a sample."""
    script = SCRIPTS["turns"]
    url = f"{server.ingress_url}/{SERVICES['ours']}/ours_turns"

    async def one() -> None:
        answer = await client.post(url, json="What is left?")
        assert answer.json() == f"{script.turns * script.calls} articles", answer.text

    async def many() -> int:
        done = 0

        async def repeat() -> None:
            nonlocal done
            while time.perf_counter() - start < SAMPLE:
                await one()
                done += 1

        # New invocations use the latest deployment, after its connections are open.
        await asyncio.gather(*(one() for _ in range(AT_ONCE)))
        start = time.perf_counter()
        await asyncio.gather(*(repeat() for _ in range(AT_ONCE)))
        return done

    def measure() -> float:
        server.admin.register(workers.url, force=True)
        own, all_before = cpu_seconds(workers.process.pid), cpu_seconds(os.getpid())
        start = time.perf_counter()
        done = runner.run(many()) + AT_ONCE
        seconds = time.perf_counter() - start
        used = cpu_seconds(workers.process.pid) - own
        others = cpu_seconds(os.getpid()) - all_before - used
        samples.append(Sample(done / seconds, used / seconds, others / seconds))
        return seconds / done

    return measure


def main() -> int:
    quick = "--quick" in sys.argv
    samples: dict[int, list[Sample]] = {count: [] for count in COUNTS}
    with RestateServer() as server, serving(1) as one, serving(2) as two, asyncio.Runner() as runner:
        client = httpx.AsyncClient(trust_env=False, timeout=60)
        candidates = {
            str(count): measurement(server, workers, client, runner, samples[count])
            for count, workers in zip(COUNTS, (one, two), strict=True)
        }
        taken = by_turns(candidates, seconds=QUICK_SECONDS if quick else SECONDS, least=QUICK_LEAST if quick else LEAST)
        runner.run(client.aclose())

    rows: list[list[str]] = []
    for count in COUNTS:
        middle = [spread([sample[place] for sample in samples[count]]).median for place in range(3)]
        rate, used, others = middle
        per_cpu = spread([sample.runs / sample.workers for sample in samples[count]]).median
        label = f"{count} {'worker' if count == 1 else 'workers'}"
        rows.append([label, f"{rate:.1f}", f"{used:.2f}", f"{others:.2f}", f"{per_cpu:.1f}"])
    print(f"The scripted agent with {AT_ONCE} runs at once. CPU time is in seconds per second.\n")
    print_table(["", "runs/s", "workers' CPU", "server's and client's CPU", "runs per CPU second"], rows)

    found: Ratio = ratio(taken["1"], taken["2"])
    verdict = ratio(taken["2"], taken["1"]).verdict(1 / GOAL)
    per_cpu = ratio(*([sample.runs / sample.workers for sample in samples[count][1:]] for count in (2, 1)))
    print("\nTwo workers compared with one\n")
    print_table(
        ["", "ratio", "quartiles", "goal", "verdict"],
        [
            ["runs per second", f"{found.median:.2f}", found.quartiles, f"≥ {GOAL:.2f}", verdict],
            ["runs per CPU second", f"{per_cpu.median:.2f}", per_cpu.quartiles, "", ""],
        ],
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
