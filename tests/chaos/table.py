"""The table of results."""

from __future__ import annotations

from collections.abc import Sequence

from tests.chaos.campaign import Result

__all__ = ["print_table"]


def print_table(results: Sequence[Result]) -> None:
    """Print a table with a column for each campaign, and the goals in the last column."""
    rows = [["", *(result.campaign.title for result in results), "goal"]]
    rows += [[name, *cells, goal] for name, goal, cells in _rows(results)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    for first, *others in rows:
        aligned = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        print("  ".join([first.ljust(widths[0]), *aligned]).rstrip())


def _rows(results: Sequence[Result]) -> list[tuple[str, str, list[str]]]:
    audits = [result.audit for result in results]
    return [
        ("runs", "", [str(found.runs) for found in audits]),
        ("finished", "all", [str(found.finished) for found in audits]),
        ("lost", "0", [str(found.lost) for found in audits]),
        ("wrong answers", "0", [str(found.wrong) for found in audits]),
        ("step bodies started", "", [str(found.bodies) for found in audits]),
        ("  started again", "> 0; drained: 0", [str(found.bodies_again) for found in audits]),
        ("results recorded at kills", "", [str(found.at_risk) for found in audits]),
        ("  steps seen twice", "0", [str(found.seen_twice) for found in audits]),
        ("external effects", "", [str(found.effects) for found in audits]),
        ("  repeated requests", "", [str(found.repeated_requests) for found in audits]),
        ("  doubled despite the key", "0", [str(found.doubled) for found in audits]),
        ("service kills", "", [str(result.service_kills) for result in results]),
        ("server kills", "", [str(result.server_kills) for result in results]),
        ("seconds", "", [f"{result.seconds:.0f}" for result in results]),
    ]
