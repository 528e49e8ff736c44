"""The pytest plugin: fixtures, a marker and options. ``_exploration.pytest_runs`` runs marked tests.

pytest imports this module in every test run, wherever the package is installed. Importing the SDK and pydantic takes
most of a second. So this module imports only pytest until a test needs more.
"""

from __future__ import annotations

import argparse
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from restate_steps.server import RestateServer
    from restate_steps.testing import Simulator
    from restate_steps.testing._exploration.options import ExplorationOptions

__all__: list[str] = []

_MARKER: Final = "every_crash_point"
_EXPLORED: Final = "restate_explored"

_NO_APP: Final = """\
The fixture 'simulator' needs the application from the fixture 'restate_app', which is not defined.
Define it in the test module, or in conftest.py:

    @pytest.fixture
    def restate_app():
        return restate.app([my_service])"""

_simulator: Final[pytest.StashKey[Simulator]] = pytest.StashKey()
_options: Final[pytest.StashKey[ExplorationOptions]] = pytest.StashKey()


# --- options --------------------------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("restate", "durable handlers (restate-steps)")
    group.addoption(
        "--restate-explore",
        type=_count,
        metavar="N",
        help=f"Run each test marked with {_MARKER} up to N times, overriding its marker; 0 runs it once, without a "
        "crash.",
    )
    group.addoption(
        "--restate-schedule",
        metavar="SCHEDULE",
        help=f"Run each test marked with {_MARKER} once, under this schedule, as printed by a failure.",
    )
    group.addoption(
        "--restate-server",
        metavar="PATH",
        help="The restate-server binary to test with; by default, it is found or downloaded.",
    )


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"the number of runs must be a non-negative integer, not {text!r}")
    return int(text)


def pytest_configure(config: pytest.Config) -> None:
    """Check the options, and register the marker."""
    config.addinivalue_line(
        "markers",
        f"{_MARKER}(*, crashes=1, cancel=False, orders='all', max_runs=2000, max_seconds=60, seed=0, before_each=None, "
        "on_crash=None, version=6, mode='bidirectional'): run the test many times, each with a crash of its handlers "
        "at a different point, or a different order of events. The test must use the fixture 'simulator'. The "
        "arguments are those of restate_steps.testing.explore.",
    )
    if (schedule := config.getoption("restate_schedule")) is not None:
        from restate_steps.testing import Schedule, SimulationError

        try:
            Schedule.parse(schedule)
        except SimulationError as error:
            raise pytest.UsageError(f"--restate-schedule: {error}") from None
    if (server := config.getoption("restate_server")) is not None:
        path = config.invocation_params.dir / server
        if not path.is_file():
            raise pytest.UsageError(f"--restate-server: there is no file {str(path)!r}.")
        # Everything that looks for a server reads this variable: the fixtures, restate_server(), and child processes.
        patch = pytest.MonkeyPatch()
        config.add_cleanup(patch.undo)
        patch.setenv("RESTATE_SERVER", str(path))


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Report the options that are set."""
    names = ("restate_explore", "restate_schedule", "restate_server")
    given = {name.removeprefix("restate_"): config.getoption(name) for name in names}
    shown = ", ".join(f"{name}={value}" for name, value in given.items() if value is not None)
    return [f"restate: {shown}"] if shown else []


# --- fixtures -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def restate_server() -> Iterator[RestateServer]:
    """A real restate-server for the session: a restate_steps.server.RestateServer, started on first use."""
    from restate_steps.server import RestateServer

    with RestateServer() as server:
        yield server


@pytest.fixture(scope="session")
def restate_replay_server() -> Iterator[RestateServer]:
    """Like restate_server, but the server suspends handlers at every wait, so that each continues by replay."""
    from restate_steps.server import RestateServer

    with RestateServer(always_replay=True) as server:
        yield server


@pytest.fixture
def restate_app() -> Any:
    """The application for the fixture simulator. Define your own, which returns restate.app([...])."""
    pytest.fail(_NO_APP, pytrace=False)


@pytest.fixture
def simulator(request: pytest.FixtureRequest, restate_app: Any) -> Iterator[Simulator]:
    """A restate_steps.testing.Simulator, which plays the server for the application of the fixture restate_app."""
    from restate_steps.testing import simulate

    options = request.node.stash.get(_options, None)
    connected = {} if options is None else {"version": options.version, "mode": options.mode}
    with simulate(restate_app, **connected) as simulator:
        request.node.stash[_simulator] = simulator
        yield simulator


# --- the marker -----------------------------------------------------------------------------------------------------


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Read the marker, before any fixture is set up."""
    marker = item.get_closest_marker(_MARKER)
    if marker is None:
        return
    from restate_steps.testing import SimulationError
    from restate_steps.testing._exploration.options import ExplorationOptions

    try:
        options = ExplorationOptions(*marker.args, **marker.kwargs)
    except (TypeError, SimulationError) as error:
        wrong = str(error).removeprefix("ExplorationOptions.__init__() ")
    else:
        item.stash[_options], wrong = options, ""
    if wrong:
        pytest.fail(f"{_MARKER}: {wrong}", pytrace=False)
    if "simulator" not in getattr(item, "fixturenames", ()):
        pytest.fail(
            f"{item.name} is marked with {_MARKER}, but does not use the fixture 'simulator', so it calls no handler "
            "that could crash. Add the argument 'simulator' and call the handler with it, or remove the marker.",
            pytrace=False,
        )
    if getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
        pytest.fail(
            f"{item.name} is marked with {_MARKER}, but draws examples with hypothesis. Its runs would differ, so it "
            "could not follow a schedule. Use pytest.mark.parametrize, or explore in the test: "
            "restate_steps.testing.explore(...).assert_replay_safe().",
            pytrace=False,
        )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """Run a marked test under many schedules, instead of once.

    Each run calls the item's own ``runtest``, and so the plugin that runs its coroutine.
    """
    __tracebackhide__ = True
    options = item.stash.get(_options, None)
    if options is None or item.config.getoption("restate_explore") == 0:
        return (yield)
    held = item.stash.get(_simulator, None)
    if held is None:
        pytest.fail(
            f"{item.name} is marked with {_MARKER}, but its fixture 'simulator' is not that of restate_steps, so the "
            "plugin cannot make it crash. Rename yours, or define the fixture 'restate_app' instead.",
            pytrace=False,
        )
    from restate_steps.testing import Schedule
    from restate_steps.testing._exploration.pytest_runs import run_explored, run_scheduled

    runtest = item.runtest
    schedule: str | None = item.config.getoption("restate_schedule")

    def run_marked() -> None:
        __tracebackhide__ = True
        if schedule is not None:
            run_scheduled(item, options, held, runtest, Schedule.parse(schedule))
            return
        counts, failure = run_explored(item, options, held, runtest, item.config.getoption("restate_explore"))
        item.user_properties.append((_EXPLORED, counts))
        if failure is not None:
            raise failure

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(item, "runtest", run_marked)
        return (yield)


# --- what is shown --------------------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the simulator's timeline to a failure, unless the error already has it."""
    report = yield
    held = item.stash.get(_simulator, None)
    if held is not None and call.when == "call" and call.excinfo is not None and report.failed:
        from restate_steps.testing import NotReplaySafeError
        from restate_steps.testing._simulation.timeline import shortened

        if not isinstance(call.excinfo.value, NotReplaySafeError) and (timeline := held.timeline()):
            report.sections.insert(0, ("What happened in the simulator", shortened(timeline)))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Report how much was explored, for every marked test."""
    found: dict[str, dict[str, Any]] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport) and report.when == "call":
                for name, value in report.user_properties:
                    if name == _EXPLORED and isinstance(value, dict):
                        found[report.nodeid] = value
    if not found:
        return
    terminalreporter.section("explored with crashes")
    if not terminalreporter.no_summary and terminalreporter.verbosity >= 0:
        for nodeid, each in found.items():
            terminalreporter.line(f"{nodeid}: {_counts(each)}, {each['covered']}")
    total = {key: sum(each[key] for each in found.values()) for key in ("schedules", "prefixes", "seconds")}
    tests = "1 test" if len(found) == 1 else f"{len(found)} tests"
    runs = total["schedules"] + total["prefixes"]
    rate = f"{runs / total['seconds']:,.0f} runs a second" if total["seconds"] else "at once"
    terminalreporter.line(f"{tests}: {_counts(total)} in {total['seconds']:.1f} s, {rate}")


def _counts(each: dict[str, Any]) -> str:
    return f"{each['schedules']:,} schedules, {each['prefixes']:,} prefixes after a crash"
