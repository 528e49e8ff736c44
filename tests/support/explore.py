"""Explore on and on: ``make explore SECONDS=600 SEED=7``.

Everything in the list of ``tests/support/exploration.py`` is explored in every variant, one after another, in an order
drawn from the seed. It is explored again with other seeds until the time is up. The first problem ends the exploration,
with the shortest schedule and the command that repeats it.
"""

from __future__ import annotations

import argparse
import sys
import time
from random import Random, SystemRandom

from restate_steps.testing import Report
from tests.support.exploration import VARIANTS, Subject, Variant, subjects

LEAST_SECONDS = 2.0
MOST_SECONDS = 30.0


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make explore", description="Explore schedules, crashes and cancellations.")
    parser.add_argument("names", nargs="*", help="explore only what has one of these in its name")
    parser.add_argument("--seconds", type=float, default=120.0, help="for how long (default 120)")
    parser.add_argument("--seed", type=int, help="what is drawn from; without it, another one each time")
    parser.add_argument("--schedule", help="run only this schedule, as it was printed")
    parser.add_argument("--variant", choices=[str(variant) for variant in VARIANTS], help="only this one")
    parser.add_argument("--list", action="store_true", help="say what there is to explore")
    return parser.parse_args(arguments)


def line(subject: Subject, variant: Variant, report: Report) -> str:
    covered = "all" if report.complete else "   "
    return (
        f"{subject.name:52} {variant!s:20} {report.schedules:6,} {report.prefixes:6,} {report.cancellations:6,} "
        f"{covered} {report.seconds:6.1f} s  {'FOUND' if report.findings else ''}"
    ).rstrip()


def show_problem(subject: Subject, variant: Variant, seed: int, report: Report) -> None:
    finding = report.findings[0]
    print(f"\n{subject.name} in {variant}: {finding}\n")
    print("Again:")
    print(f"  make explore ARGS=\"{subject.name} --variant {variant} --seed {seed} --schedule '{finding.schedule}'\"")


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    chosen = [
        subject for subject in subjects() if not options.names or any(name in subject.name for name in options.names)
    ]
    if options.list or not chosen:
        print("\n".join(subject.name for subject in (chosen or subjects())))
        return 0 if chosen else 2
    variants = [variant for variant in VARIANTS if options.variant in (None, str(variant))]
    seed = SystemRandom().randrange(10**9) if options.seed is None else options.seed
    print(f"exploring {len(chosen)} subjects in {len(variants)} variants, seed {seed}")
    print(f"{'':52} {'':20} {'orders':>6} {'resume':>6} {'cancel':>6}")
    end = time.monotonic() + options.seconds
    slice_of_time = min(MOST_SECONDS, max(LEAST_SECONDS, options.seconds / (len(chosen) * len(variants))))
    counts = [0, 0, 0]
    while True:
        pairs = [(subject, variant) for subject in chosen for variant in variants]
        Random(seed).shuffle(pairs)
        for subject, variant in pairs:
            report = subject.explore(
                variant,
                seed=seed,
                max_runs=1_000_000,
                max_seconds=slice_of_time,
                schedule=options.schedule,
            )
            print(line(subject, variant, report), flush=True)
            for index, count in enumerate((report.schedules, report.prefixes, report.cancellations)):
                counts[index] += count
            if report.findings:
                show_problem(subject, variant, seed, report)
                return 1
            if options.schedule is None and time.monotonic() > end:
                break
        seed += 1
        if options.schedule is not None or time.monotonic() > end:
            break
    schedules, prefixes, cancellations = counts
    print(
        f"\n{schedules:,} schedules and {prefixes:,} resumed prefixes, {cancellations:,} of them cancelled: no problem"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
