"""Programs that were played on a real server, and what came of them there: choosing, keeping, comparing them."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from difflib import unified_diff
from pathlib import Path
from typing import Any

from tests.conformance.programs.generate import generate
from tests.conformance.programs.play import PlayedIn, play
from tests.conformance.programs.program import Op, Program, text

__all__ = ["FOLDER", "HOW_MANY", "chosen", "differences", "load", "numbers", "operations", "play_all", "save"]

FOLDER = Path(__file__).parents[1] / "recordings" / "programs"
HOW_MANY = 40
_CHOSEN_FROM = 400
_AT_ONCE = 8
WITHIN = 60.0


def chosen() -> list[Program]:
    """Return the programs to record: those that together do everything several times, the smaller ones first."""
    candidates = [generate(seed) for seed in range(_CHOSEN_FROM)]
    found: list[Program] = []
    times: Counter[str] = Counter()

    def worth(program: Program) -> float:
        return sum(1 / (1 + times[name]) ** 2 for name in {*operations(program)}) / (3 + len(program["nodes"]))

    while len(found) < HOW_MANY:
        best = max(candidates, key=worth)
        candidates.remove(best)
        times.update({*operations(best)})
        found.append(best)
    return sorted(found, key=lambda program: int(program["seed"]))


def operations(program: Program) -> Iterator[str]:
    """Yield the names of the operations in a program, and what its client does."""

    def of(ops: list[Op]) -> Iterator[str]:
        for op in ops:
            yield op[0]
            for part in op[1:]:
                inner = part.get("between", []) if isinstance(part, dict) else part
                if isinstance(inner, list) and inner and isinstance(inner[0], list):
                    yield from of(inner)

    for node in program["nodes"]:
        yield from of(node["body"])
    for _, verb, *_ in program["client"]:
        yield f"client {verb}"


async def play_all(world: PlayedIn, programs: Sequence[Program], token: str) -> list[dict[str, Any]]:
    """Play programs on one server, some at a time, and return what came of each, in their order.

    Raises:
        AssertionError: One of them has come to no end; it is printed.
    """
    free = asyncio.Semaphore(_AT_ONCE)

    async def one(number: int, program: Program) -> dict[str, Any]:
        async with free:
            try:
                async with asyncio.timeout(WITHIN):
                    return await play(world, program, f"{token}p{number}x")
            except Exception as error:
                raise AssertionError(f"{error!r} in\n{text(program)}") from error

    return await asyncio.gather(*(one(number, program) for number, program in enumerate(programs)))


def differences(program: Program, expected: Mapping[str, Any], found: Mapping[str, Any], *, of: str) -> str:
    """Return a program and what is different about how it was played, as text; nothing if nothing is.

    Args:
        program: The program.
        expected: What came of it on a server.
        found: What came of it elsewhere.
        of: Who found it.
    """
    if expected == found:
        return ""
    lines = unified_diff(_dump(expected), _dump(found), "server", of, lineterm="", n=2)
    return "\n".join([text(program), *lines])


def _dump(played: Mapping[str, Any]) -> list[str]:
    return json.dumps(played, ensure_ascii=False, indent=1).splitlines()


def numbers() -> list[int]:
    """Return the seeds of the recorded programs."""
    return sorted(int(path.stem) for path in FOLDER.glob("*.json"))


def load(number: int) -> tuple[Program, dict[str, Any], dict[str, Any]]:
    """Return a recorded program, what came of it, and the note that says where."""
    kept = json.loads((FOLDER / f"{number}.json").read_text())
    return kept["program"], kept["played"], kept["note"]


def save(program: Program, played: Mapping[str, Any], note: Mapping[str, Any]) -> None:
    """Keep a program and what came of it: an entry of a journal is a line."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    parts = {"note": json.dumps(note), "program": json.dumps(program, ensure_ascii=False)}
    lines = [f' "{name}": {part},' for name, part in parts.items()]
    played_lines = "\n".join(_dump(played)).replace("\n", "\n ")
    kept = "\n".join(["{", *lines, f' "played": {played_lines}', "}", ""])
    (FOLDER / f"{program['seed']}.json").write_text(kept)
