"""Random programs, played on the server and in the simulator."""

from __future__ import annotations

import os
import secrets
from typing import Any

import pytest

from tests.conformance.programs import handlers, recorded, written
from tests.conformance.programs.generate import DEEPEST, generate
from tests.conformance.programs.handlers import Interpreter
from tests.conformance.programs.play import play
from tests.conformance.programs.program import Program, depth, text
from tests.conformance.record import PROGRAM_VARIANTS, recording
from tests.conformance.simulated import SimulatedServer
from tests.support.harness import Harness

FRESH = 10
"""How many programs are drawn in each run of the tests."""


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Keep back what the SDK says of handlers that fail on purpose."""
    caplog.set_level("CRITICAL", "restate")


async def simulated(program: Program, variant: str) -> dict[str, Any]:
    world = SimulatedServer(variant)
    with world.simulating(handlers.app()):
        return await play(world, program, "simulated")


def seed() -> int:
    """Return the seed of this run; see ``pytest_report_header`` in ``tests/conftest.py``."""
    return int(os.environ["PROGRAMS_SEED"])


@pytest.mark.parametrize("variant", PROGRAM_VARIANTS)
async def test_simulator_plays_recorded_programs(variant: str) -> None:
    """What came of a program on the server comes of it in the simulator."""
    found: list[str] = []
    for number in recorded.numbers():
        program, played, _ = recorded.load(number)
        found.append(recorded.differences(program, played, await simulated(program, variant), of="simulator"))

    assert "" == "\n\n".join(filter(None, found))


@pytest.mark.parametrize("name", written.PROGRAMS)
@pytest.mark.parametrize("variant", PROGRAM_VARIANTS)
async def test_simulator_plays_written_programs(name: str, variant: str) -> None:
    """What a difference was found with stays the same."""
    program, seen = written.PROGRAMS[name]

    assert seen == (await simulated(program, variant))["answer"]


@pytest.mark.parametrize("mode", ["normal", "replay"])
async def test_server_and_simulator_agree(mode: str, request: pytest.FixtureRequest) -> None:
    """Programs of a fresh seed end in the same way on both, and so do those that a difference was found with."""
    harness: Harness = request.getfixturevalue(f"{mode}_harness")
    variant = f"v6-{mode}"
    programs = [generate(seed() + number) for number in range(FRESH)]
    programs += [program for program, _ in written.PROGRAMS.values()]
    async with recording(harness.server, variant, handlers.app()) as server:
        try:
            played = await recorded.play_all(server, programs, f"{mode}-{secrets.token_hex(4)}-")
        except BaseException:
            await server.clean_up()
            raise
    found = [
        recorded.differences(program, expected, await simulated(program, variant), of="simulator")
        for program, expected in zip(programs, played, strict=True)
    ]

    assert "" == "\n\n".join(filter(None, found)), f"run it again with PROGRAMS_SEED={seed()}"


def test_enough_is_recorded() -> None:
    """The recorded programs do everything there is, at all depths."""
    programs = [recorded.load(number)[0] for number in recorded.numbers()]
    known = {name.removeprefix("do_") for name in dir(Interpreter) if name.startswith("do_")}
    done = {name for program in programs for name in recorded.operations(program)}

    assert recorded.HOW_MANY == len(programs)
    assert known <= done, sorted(known - done)
    assert {*range(1, DEEPEST + 1)} == {depth(program) for program in programs}


def test_a_seed_is_a_program() -> None:
    """The same seed gives the same program, and it can be read."""
    program = generate(7)

    assert program == generate(7)
    assert program != generate(8)
    for number in range(len(program["nodes"])):
        assert f"#{number} " in text(program)
