"""The plugin of pytest, run by pytest: what its users write, and what they get to read."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import httpcore
import pytest
import restate

from restate_steps.server import ensure_server
from restate_steps.testing import Simulator
from restate_steps.testing._exploration import pytest_runs

# What is imported here is not imported again in each session inside. httpx imports httpcore with its first client, and
# would hold a module that the end of that session has removed.
assert pytest_runs, httpcore

INI = """
[pytest]
addopts = --strict-markers --strict-config -p no:langsmith_plugin
filterwarnings = error
asyncio_mode = {mode}
asyncio_default_fixture_loop_scope = function
"""

SHOP = """
import asyncio
import pytest
import restate

shop = restate.Service("Shop")
charged = []  # what a payment service has on its list


@shop.handler()
async def checkout(ctx: restate.Context, item: str) -> str:
    price = await ctx.run_typed("quote", lambda: 3)
    return await ctx.run_typed("charge", lambda: charged.append(item) or f"{item} for {price}")


@shop.handler()
async def differs(ctx: restate.Context) -> str:
    differs.attempts += 1
    return await ctx.run_typed(f"attempt {differs.attempts}", lambda: "done")


differs.attempts = 0


@shop.handler()
async def hangs_when_replayed(ctx: restate.Context) -> str:
    hangs_when_replayed.attempts += 1
    answer = await ctx.run_typed("quote", lambda: "done")
    if hangs_when_replayed.attempts > 1:
        await ctx.awakeable(type_hint=str)[1]
    return answer


hangs_when_replayed.attempts = 0


@shop.handler()
async def waits(ctx: restate.Context) -> None:
    await ctx.promise("never") if False else await ctx.awakeable(type_hint=str)[1]


@shop.handler()
async def leaves_behind(ctx: restate.Context) -> str:
    ctx.service_send(waits, None)
    return "done"


@pytest.fixture
def restate_app():
    return restate.app([shop])
"""

TestFile: TypeAlias = Callable[..., None]


@pytest.fixture(autouse=True)
def nothing_left_by_others() -> None:
    """Collect the garbage of other tests: the sessions inside turn each warning into an error."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gc.collect()
    finally:
        sys.unraisablehook = hook


@pytest.fixture(scope="session")
def server_binary() -> Path:
    """The server, found before pytester moves the home folder, and the cache in it."""
    return ensure_server()


@pytest.fixture(autouse=True)
def inner_session(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """As strict as this one, and without the plugin of hypothesis, which takes longer than all the rest."""
    pytester.makeini(INI.format(mode="auto"))
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:hypothesispytest")


@pytest.fixture
def testfile(pytester: pytest.Pytester) -> TestFile:
    """Writes a module of tests, which knows the shop."""

    def write(source: str, *, mode: str = "auto") -> None:
        pytester.makeini(INI.format(mode=mode))
        head = "import asyncio\nimport pytest\nfrom shop import *\nfrom shop import restate_app\nruns = []\n"
        pytester.makepyfile(shop=SHOP, test_shop=head + textwrap.dedent(source))

    return write


# --- the fixture simulator ------------------------------------------------------------------------------------------


def test_simulator_plays_the_server_for_the_app_of_the_fixture(pytester: pytest.Pytester, testfile: TestFile) -> None:
    """A test takes the fixture, and calls the handlers of the application that restate_app returns."""
    testfile(
        """
        async def test_checkout(simulator):
            result = await simulator.call(checkout, "tea")
            assert (result.value, result.effects["charge"]) == ("tea for 3", 1)
        """
    )
    pytester.runpytest_inprocess().assert_outcomes(passed=1)


def test_simulator_works_in_plain_functions(pytester: pytest.Pytester, testfile: TestFile) -> None:
    """A test that is no coroutine runs the coroutines of the simulator with its run()."""
    testfile(
        """
        def test_checkout(simulator):
            assert simulator.run(simulator.call(checkout, "tea")).value == "tea for 3"
        """
    )
    pytester.runpytest_inprocess().assert_outcomes(passed=1)


def test_simulator_is_closed_with_the_test(pytester: pytest.Pytester, testfile: TestFile) -> None:
    """What still waits when a test ends leaves nothing behind, not even a warning."""
    testfile(
        """
        async def test_waits(simulator):
            assert (await simulator.send(waits)).status == "running"

        def test_after():
            import gc
            gc.collect()
        """
    )
    # In its own process: a collection finds what other tests of this one have left, too.
    pytester.runpytest_subprocess().assert_outcomes(passed=2)


def test_simulator_says_how_to_define_the_app(pytester: pytest.Pytester) -> None:
    """Without a fixture restate_app there is an error that shows how to write one."""
    pytester.makepyfile("def test_it(simulator): pass")

    result = pytester.runpytest_inprocess()

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        [
            "The fixture 'simulator' needs the application from the fixture 'restate_app', which is not defined.",
            "    @pytest.fixture",
            "    def restate_app():",
            "        return restate.app(*my_service*)",
        ]
    )
    result.stdout.no_fnmatch_line("*Traceback*")


def test_failure_shows_what_has_happened(pytester: pytest.Pytester, testfile: TestFile) -> None:
    """A test that fails shows the timeline of its simulator, whether it is marked or not."""
    testfile(
        """
        async def test_checkout(simulator):
            assert "tea" == (await simulator.call(checkout, "tea")).value
        """
    )
    pytester.runpytest_inprocess().stdout.fnmatch_lines(
        ["E*'tea' == 'tea for 3'", "*What happened in the simulator*", "*2   → run quote*", "*← run completion 2 = *"]
    )


def test_failure_leaves_out_the_middle_of_a_long_story(pytester: pytest.Pytester, testfile: TestFile) -> None:
    """A handler that fails seventy times does not fill the screen with it."""
    testfile(
        """
        @shop.handler()
        async def fails(ctx: restate.Context) -> None:
            raise ValueError("no")

        async def test_fails(simulator):
            await simulator.call(fails)
        """
    )
    result = pytester.runpytest_inprocess("--show-capture=all", "-p", "no:logging")

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E*fails is paused after 70 attempts; *ValueError('no')", "* lines left out"])
    assert len(result.outlines) < 150


# --- the marker -----------------------------------------------------------------------------------------------------


def test_marked_test_runs_with_every_crash(pytester: pytest.Pytester, testfile: TestFile) -> None:
    """It is run again and again; each run begins with nothing, and has a crash at another point."""
    testfile(
        """
        @pytest.mark.every_crash_point
        async def test_checkout(simulator):
            assert [] == simulator.invocations
            result = await simulator.call(checkout, "tea")
            assert result.value == "tea for 3"
            runs.append(simulator.timeline())

        def test_after():
            assert len(runs) == 18
            crashed = [run for run in runs if "crash" in run]
            assert len(crashed) == len(set(crashed)) == 16
        """
    )
    pytester.runpytest_inprocess().assert_outcomes(passed=2)


def test_marker_is_registered(pytester: pytest.Pytester) -> None:
    """It may be used with --strict-markers, and is listed with its arguments."""
    result = pytester.runpytest_inprocess("--markers")
    result.stdout.fnmatch_lines(["@pytest.mark.every_crash_point(*, crashes=1, *): run the test many times, *"])


FAILS_AFTER_A_CRASH = """
    @pytest.mark.every_crash_point(before_each=charged.clear)
    async def test_checkout(simulator):
        print("tea is ordered")
        await simulator.call(checkout, "tea")
        assert charged == ["tea"]
"""


def test_failure_after_a_crash_is_explained(pytester: pytest.Pytester, testfile: TestFile) -> None:
    """The report has the assertion with its values, and then the schedule, the timeline, and how to see it again."""
    testfile(FAILS_AFTER_A_CRASH)

    result = pytester.runpytest_inprocess()

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            '>       assert charged == ["tea"]',
            "E       AssertionError: assert ['tea', 'tea'] == ['tea']",
            "*Left contains one more item: 'tea'",
            "The above exception was the direct cause of the following exception:",
            "E   *NotReplaySafeError: under the schedule '!4~': the test fails: AssertionError: assert *'tea', 'tea'*",
            "*4   → run charge*",
            "*· run charge",
            "*✂ crash",
            "*· run charge",
            "*6   → output 'tea for 3'",
            "    Found after * schedules and * prefixes with a crash. To run only this schedule:",
            "    pytest test_shop.py::test_checkout --restate-schedule='!4~'",
        ]
    )
    # Neither pytest's frames nor ours, and the output of one run of many.
    result.stdout.no_fnmatch_line("*def pytest_*")
    result.stdout.no_fnmatch_line("*pytest_runs.py:*")
    assert 1 == result.outlines.count("tea is ordered")


def test_schedule_of_a_failure_can_be_run_alone(pytester: pytest.Pytester, testfile: TestFile) -> None:
    """With --restate-schedule the test is run once, and fails as itself: a debugger would stop in it."""
    testfile(FAILS_AFTER_A_CRASH)

    result = pytester.runpytest_inprocess("--restate-schedule=!4~")

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "restate: schedule=!4~",
            "E*assert ?'tea', 'tea'? == ?'tea'?",
            "*What happened in the simulator*",
            "*✂ crash",
            "FAILED test_shop.py::test_checkout - AssertionError: *",
        ]
    )
    result.stdout.no_fnmatch_line("*NotReplaySafeError*")
    assert 1 == result.outlines.count("tea is ordered")
    pytester.runpytest_inprocess("--restate-schedule=!3").assert_outcomes(passed=1)


def test_schedule_that_finds_something_behind_the_test(pytester: pytest.Pytester, testfile: TestFile) -> None:
    """A schedule that is run alone tells as well what no line of the test has seen."""
    testfile(
        """
        @pytest.mark.every_crash_point
        async def test_it(simulator):
            await simulator.call(leaves_behind)
        """
    )
    result = pytester.runpytest_inprocess("--restate-schedule=")

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E*NotReplaySafeError: without any crash: *Shop/waits is *", "*→ *Shop/waits*"])


def test_failure_without_a_crash_is_a_plain_failure(pytester: pytest.Pytester, testfile: TestFile) -> None:
    """A test that fails without any crash fails at once, with its own error and its own logs (P3)."""
    testfile(
        """
        import logging

        @pytest.mark.every_crash_point
        async def test_checkout(simulator):
            logging.getLogger("shop").warning("a log of the test")
            print("once")
            assert "tea" == (await simulator.call(checkout, "tea")).value
        """
    )
    result = pytester.runpytest_inprocess()

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E*'tea' == 'tea for 3'", "*What happened in the simulator*", "*a log of the test"])
    result.stdout.no_fnmatch_line("*NotReplaySafeError*")
    assert 1 == result.outlines.count("once")


@pytest.mark.parametrize(
    ("handler", "said"),
    [
        ("differs", "*NotReplaySafeError: under the schedule '*': a replay does not match the journal.*"),
        ("hangs_when_replayed", "*NotReplaySafeError: under the schedule '*': nothing more can happen, *"),
    ],
)
def test_handler_that_is_not_replay_safe(
    pytester: pytest.Pytester, testfile: TestFile, handler: str, said: str
) -> None:
    """A replay that goes another way, or hangs, fails a test that has nothing to complain of without a crash."""
    testfile(
        f"""
        @pytest.mark.every_crash_point(before_each=lambda: setattr({handler}, "attempts", 0))
        async def test_it(simulator):
            assert "done" == (await simulator.call({handler})).value
        """
    )
    result = pytester.runpytest_inprocess()

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([said])


def test_what_goes_on_behind_the_test_has_to_end(pytester: pytest.Pytester, testfile: TestFile) -> None:
    """An invocation that hangs fails the test, though the test has not waited for it."""
    testfile(
        """
        @pytest.mark.every_crash_point
        async def test_it(simulator):
            await simulator.call(leaves_behind)
        """
    )
    result = pytester.runpytest_inprocess()

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E*NotReplaySafeError: without any crash: nothing more can happen, *Shop/waits *"])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("pytest.fail('charged twice')", "the test fails: Failed: charged twice"),
        ("with pytest.raises(ValueError): pass", "the test fails: Failed: DID NOT RAISE*ValueError*"),
        ("raise KeyError('tea')", "the test fails: KeyError: 'tea'"),
        ("raise ExceptionGroup('tasks', [ValueError('no tea')])", "the test fails: ValueError: no tea"),
        ("raise restate.TerminalError('sold out', 409)", "the test fails: TerminalError: sold out"),
    ],
)
def test_every_way_to_fail_is_found(pytester: pytest.Pytester, testfile: TestFile, line: str, said: str) -> None:
    """pytest.fail, pytest.raises without an exception, and any exception count as an assertion does."""
    testfile(
        f"""
        @pytest.mark.every_crash_point(before_each=charged.clear)
        async def test_checkout(simulator):
            await simulator.call(checkout, "tea")
            if len(charged) > 1:
                {line}
        """
    )
    result = pytester.runpytest_inprocess()

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"E*NotReplaySafeError: under the schedule '!4~': {said}"])


def test_skip_and_expected_failure_end_the_exploration(pytester: pytest.Pytester, testfile: TestFile) -> None:
    """Whatever ends a test without failing it does so in any run (P4)."""
    testfile(
        """
        @pytest.mark.every_crash_point
        async def test_skip(simulator):
            runs.append("skip")
            pytest.skip("not here")

        @pytest.mark.every_crash_point
        async def test_xfail(simulator):
            runs.append("xfail")
            pytest.xfail("not yet")

        def test_after():
            assert ["skip", "xfail"] == runs
        """
    )
    pytester.runpytest_inprocess().assert_outcomes(passed=1, skipped=1, xfailed=1)


def test_marked_test_that_is_expected_to_fail(pytester: pytest.Pytester, testfile: TestFile) -> None:
    """A known window can be marked with xfail; what is found is an AssertionError."""
    testfile(FAILS_AFTER_A_CRASH.replace("    @", "    @pytest.mark.xfail(raises=AssertionError, strict=True)\n    @"))
    pytester.runpytest_inprocess().assert_outcomes(xfailed=1)


def test_interruption_ends_the_exploration(pytester: pytest.Pytester, testfile: TestFile) -> None:
    """Ctrl-C ends the session, in the middle of whatever run (P4)."""
    testfile(
        """
        @pytest.mark.every_crash_point
        async def test_it(simulator):
            await simulator.call(checkout, "tea")
            runs.append(1)
            if len(runs) == 3:
                raise KeyboardInterrupt
        """
    )
    result = pytester.runpytest_inprocess(no_reraise_ctrlc=True)

    assert pytest.ExitCode.INTERRUPTED == result.ret


# --- what is shared between the runs --------------------------------------------------------------------------------


def test_setup_is_called_before_each_run(pytester: pytest.Pytester, testfile: TestFile) -> None:
    """It resets what is outside of the test."""
    testfile(
        """
        @pytest.mark.every_crash_point(before_each=lambda: runs.append("setup"))
        async def test_it(simulator):
            runs.append("run")
            await simulator.call(checkout, "tea")

        def test_after():
            assert ["setup", "run"] * 18 == runs
        """
    )
    pytester.runpytest_inprocess().assert_outcomes(passed=2)


def test_fixtures_are_shared_between_the_runs(pytester: pytest.Pytester, testfile: TestFile) -> None:
    """A fixture is set up once a test; what has been made of the simulator sees the new one in each run (P2)."""
    testfile(
        """
        class Client:
            def __init__(self, simulator):
                runs.append("set up")
                self.simulator = simulator

            async def order(self):
                return (await self.simulator.call(checkout, "tea")).value

        @pytest.fixture
        def client(simulator):
            yield Client(simulator)
            runs.append("torn down")

        @pytest.mark.every_crash_point
        async def test_it(client):
            assert "tea for 3" == await client.order()
            assert 1 == len(client.simulator.invocations)
            runs.append("run")

        def test_after():
            assert ["set up", *["run"] * 18, "torn down"] == runs
        """
    )
    pytester.runpytest_inprocess().assert_outcomes(passed=2)


def test_fixture_that_calls_a_handler_is_refused(pytester: pytest.Pytester, testfile: TestFile) -> None:
    """What a fixture did in the simulator would be missing from every run."""
    testfile(
        """
        @pytest.fixture
        def order(simulator):
            return simulator.run(simulator.call(checkout, "tea"))

        @pytest.mark.every_crash_point
        async def test_it(simulator, order): pass
        """
    )
    result = pytester.runpytest_inprocess()

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["A fixture has already called a handler: *checkout*But test_it runs many times, *"])


# --- misuse ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            "@pytest.mark.every_crash_point(crash=1)\ndef test_it(simulator): pass",
            # Python 3.13 suggests a name.
            "every_crash_point: got an unexpected keyword argument 'crash'*",
        ),
        (
            "@pytest.mark.every_crash_point(1)\ndef test_it(simulator): pass",
            "every_crash_point: takes 1 positional argument but 2 were given",
        ),
        (
            "@pytest.mark.every_crash_point(orders='some')\ndef test_it(simulator): pass",
            "every_crash_point: orders must be 'all' or an integer of at least 1, not 'some'.",
        ),
        (
            "@pytest.mark.every_crash_point(max_runs=0)\ndef test_it(simulator): pass",
            "every_crash_point: max_runs must be an integer of at least 1, not 0.",
        ),
        (
            "@pytest.mark.every_crash_point(mode='http2')\ndef test_it(simulator): pass",
            "every_crash_point: mode must be 'bidirectional' or 'request_response', not 'http2'.",
        ),
        (
            "@pytest.mark.every_crash_point(before_each='clear')\ndef test_it(simulator): pass",
            "every_crash_point: before_each must be a function without arguments, not 'clear'.",
        ),
        (
            "@pytest.mark.every_crash_point\ndef test_it(): pass",
            "test_it is marked with every_crash_point, but does not use the fixture 'simulator', *",
        ),
        (
            "import unittest\nclass TestIt(unittest.TestCase):\n"
            "    @pytest.mark.every_crash_point\n    def test_it(self): pass",
            "test_it is marked with every_crash_point, but does not use the fixture 'simulator', *",
        ),
        (
            "@pytest.fixture\ndef simulator(): return 1\n@pytest.mark.every_crash_point\ndef test_it(simulator): pass",
            "test_it is marked with every_crash_point, but its fixture 'simulator' is not that of restate_steps*",
        ),
        (
            "import hypothesis\n@pytest.mark.every_crash_point\n@hypothesis.given(hypothesis.strategies.integers())\n"
            "def test_it(simulator, number): pass",
            "test_it is marked with every_crash_point, but draws examples with hypothesis. *",
        ),
        (
            "@pytest.fixture\ndef restate_app(): return 1\n"
            "@pytest.mark.every_crash_point\ndef test_it(simulator): pass",
            "E*TypeError: *",
        ),
        (
            "@pytest.mark.every_crash_point\nasync def test_it(simulator): await simulator.call('Shop/nothing')",
            "E*SimulationError: *nothing*",
        ),
    ],
    ids=[
        "argument",
        "position",
        "orders",
        "runs",
        "mode",
        "setup",
        "no simulator",
        "unittest",
        "other simulator",
        "hypothesis",
        "no app",
        "no handler",
    ],
)
def test_misuse_is_told(pytester: pytest.Pytester, testfile: TestFile, source: str, said: str) -> None:
    """What cannot work says so, in the test that it concerns."""
    testfile(source)

    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")

    assert 1 == sum(result.parseoutcomes().values()), result.parseoutcomes()
    assert pytest.ExitCode.TESTS_FAILED == result.ret
    result.stdout.fnmatch_lines([said])


# --- options --------------------------------------------------------------------------------------------------------

COUNTS = """
    @pytest.mark.every_crash_point(max_runs=3)
    async def test_it(simulator):
        await simulator.call(checkout, "tea")
        runs.append(1)

    def test_after():
        print("runs:", len(runs))
"""


@pytest.mark.parametrize(
    ("options", "runs"),
    [([], 3), (["--restate-explore=0"], 1), (["--restate-explore=5"], 5), (["--restate-explore=1000"], 18)],
)
def test_budget_of_runs(pytester: pytest.Pytester, testfile: TestFile, options: list[str], runs: int) -> None:
    """The option wins over the marker, and 0 runs the test once, plainly."""
    testfile(COUNTS)

    result = pytester.runpytest_inprocess("-s", *options)

    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines([f"*runs: {runs}"])
    if options:
        result.stdout.fnmatch_lines([f"restate: {options[0].removeprefix('--restate-')}"])


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--restate-explore=many", "*--restate-explore: the number of runs must be a non-negative integer, not *"),
        ("--restate-explore=-1", "*--restate-explore: the number of runs must be a non-negative integer, not '-1'*"),
        ("--restate-schedule=!a", "*--restate-schedule: '!a' is not a schedule. Pass one *, such as *"),
        ("--restate-server=nowhere", "*--restate-server: there is no file '*nowhere'."),
    ],
)
def test_wrong_options_are_told(pytester: pytest.Pytester, option: str, said: str) -> None:
    """An option that makes no sense ends the session before it begins."""
    result = pytester.runpytest_inprocess(option)

    assert pytest.ExitCode.USAGE_ERROR == result.ret
    result.stderr.fnmatch_lines([said])


@pytest.mark.parametrize(
    ("arguments", "looks"),
    [
        ("crashes=0", "all('crash' not in run for run in runs)"),
        ("crashes=2", "max(run.count('crash') for run in runs) == 2"),
        ("orders=4, crashes=0", "len(runs) == 5"),
        ("max_runs=4", "len(runs) == 4"),
        ("max_seconds=0", "len(runs) == 1"),
        ("mode='request_response'", "all('attempt 2' in run for run in runs)"),
        ("version=7", "all(version == 7 for version in versions)"),
        ("cancel=True", "any('cancel' in run for run in runs)"),
    ],
)
def test_arguments_of_the_marker(pytester: pytest.Pytester, testfile: TestFile, arguments: str, looks: str) -> None:
    """They are those of explore()."""
    testfile(
        f"""
        versions = []

        @pytest.mark.every_crash_point({arguments})
        async def test_it(simulator):
            try:
                await simulator.call(checkout, "tea")
            except restate.TerminalError as error:
                assert error.status_code == 409
            versions.append(simulator.driver.model.version)
            runs.append(simulator.timeline())

        def test_after():
            assert {looks}
        """
    )
    pytester.runpytest_inprocess().assert_outcomes(passed=2)


def test_seed_decides_what_is_tried(pytester: pytest.Pytester, testfile: TestFile) -> None:
    """The same seed tries the same in the same order, and another one does not."""
    testfile(
        """
        found = {}

        @pytest.mark.parametrize("name, seed", [
            pytest.param(name, seed, marks=pytest.mark.every_crash_point(seed=seed, max_runs=6))
            for name, seed in [("a", 1), ("b", 1), ("c", 2), ("d", 3)]
        ])
        async def test_it(simulator, name, seed):
            await simulator.call(checkout, "tea")
            found.setdefault(name, []).append(simulator.timeline())

        def test_after():
            assert found["a"] == found["b"]
            assert not (found["a"] == found["c"] == found["d"])
        """
    )
    pytester.runpytest_inprocess().assert_outcomes(passed=5)


# --- the summary ----------------------------------------------------------------------------------------------------

TWO_TESTS = """
    @pytest.mark.every_crash_point
    async def test_all(simulator):
        await simulator.call(checkout, "tea")

    @pytest.mark.every_crash_point(max_runs=4)
    async def test_some(simulator):
        await simulator.call(checkout, "tea")

    async def test_plain(simulator):
        await simulator.call(checkout, "tea")
"""


def test_summary_says_what_was_explored(pytester: pytest.Pytester, testfile: TestFile) -> None:
    """Each marked test with its numbers, and all of them with how fast it went."""
    testfile(TWO_TESTS)

    pytester.runpytest_inprocess().stdout.fnmatch_lines(
        [
            "*= explored with crashes =*",
            "test_shop.py::test_all: 2 schedules, 16 prefixes after a crash, all there are",
            "test_shop.py::test_some: 2 schedules, 2 prefixes after a crash, a sample",
            "2 tests: 4 schedules, 18 prefixes after a crash in *.* s, * runs a second",
        ]
    )


def test_summary_is_short_where_that_is_asked_for(pytester: pytest.Pytester, testfile: TestFile) -> None:
    """With -q there is one line for all."""
    testfile(TWO_TESTS)

    result = pytester.runpytest_inprocess("-q")

    result.stdout.fnmatch_lines(["2 tests: 4 schedules, 18 prefixes after a crash in *"])
    result.stdout.no_fnmatch_line("test_shop.py::test_all: *")


def test_summary_is_missing_where_nothing_was_explored(pytester: pytest.Pytester, testfile: TestFile) -> None:
    """Who uses no marker reads nothing of it."""
    testfile(TWO_TESTS)

    result = pytester.runpytest_inprocess("-k", "plain")

    result.assert_outcomes(passed=1, deselected=2)
    result.stdout.no_fnmatch_line("*explored with crashes*")
    result.stdout.no_fnmatch_line("restate: *")


def test_numbers_are_in_the_report_of_the_test(pytester: pytest.Pytester, testfile: TestFile) -> None:
    """They are a property of the test, and so in the file for continuous integration."""
    testfile(TWO_TESTS)

    pytester.runpytest_inprocess("--junitxml=report.xml")

    assert 2 == (pytester.path / "report.xml").read_text().count('<property name="restate_explored"')


# --- logs and output ------------------------------------------------------------------------------------------------


def test_logs_are_there_for_who_looks_at_them(pytester: pytest.Pytester, testfile: TestFile) -> None:
    """The runs are silent, but for a test that uses caplog."""
    testfile(
        """
        import logging

        @pytest.mark.every_crash_point
        async def test_it(simulator, caplog):
            caplog.clear()
            logging.getLogger("shop").warning("an order")
            await simulator.call(checkout, "tea")
            assert "an order" in caplog.messages
        """
    )
    pytester.runpytest_inprocess().assert_outcomes(passed=1)


def test_logs_of_a_failure_are_those_of_its_schedule(pytester: pytest.Pytester, testfile: TestFile) -> None:
    """Of the many runs, the one that is shown has its logs."""
    testfile(
        """
        import logging

        @pytest.mark.every_crash_point(before_each=charged.clear)
        async def test_checkout(simulator):
            await simulator.call(checkout, "tea")
            if len(charged) > 1:
                logging.getLogger("shop").warning("charged twice")
                raise AssertionError
        """
    )
    result = pytester.runpytest_inprocess()

    result.assert_outcomes(failed=1)
    assert 1 == sum("charged twice" in line and "WARNING" in line for line in result.outlines)


# --- other plugins --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["auto", "strict"])
def test_works_with_pytest_asyncio(pytester: pytest.Pytester, testfile: TestFile, mode: str) -> None:
    """All runs of a test are on the event loop that pytest-asyncio has for it and for its fixtures."""
    testfile(
        """
        import pytest_asyncio

        @pytest_asyncio.fixture
        async def queue():
            return asyncio.get_running_loop(), asyncio.Queue()

        @pytest.mark.asyncio
        @pytest.mark.every_crash_point
        async def test_it(simulator, queue):
            loop, orders = queue
            assert loop is asyncio.get_running_loop()
            asyncio.get_running_loop().call_soon(orders.put_nowait, "tea")
            assert "tea for 3" == (await simulator.call(checkout, await orders.get())).value
            runs.append(1)

        def test_after():
            assert 18 == len(runs)
        """,
        mode=mode,
    )
    pytester.runpytest_inprocess().assert_outcomes(passed=2)


def test_works_with_anyio(pytester: pytest.Pytester, testfile: TestFile) -> None:
    """On asyncio and on trio; the handlers run on asyncio in both, as they do in production."""
    testfile(
        """
        import anyio
        import sniffio

        pytestmark = pytest.mark.anyio

        @shop.handler()
        async def sleeps(ctx: restate.Context) -> str:
            async def body() -> str:
                async with anyio.create_task_group() as group:
                    group.start_soon(anyio.sleep, 1)
                return sniffio.current_async_library()

            return await ctx.run_typed("sleep", body)

        @pytest.fixture(params=["asyncio", "trio"])
        def anyio_backend(request):
            return request.param

        @pytest.fixture
        async def event(anyio_backend):
            return anyio.Event()

        @pytest.mark.every_crash_point
        async def test_explored(simulator, event, anyio_backend):
            async with anyio.create_task_group() as group:
                group.start_soon(anyio.lowlevel.checkpoint)
                assert "asyncio" == (await simulator.call(sleeps)).value
            assert anyio_backend == sniffio.current_async_library()
            runs.append(anyio_backend)

        async def test_plain(simulator):
            assert "asyncio" == (await simulator.call(sleeps)).value

        @pytest.mark.every_crash_point(before_each=charged.clear)
        async def test_fails(simulator):
            await simulator.call(checkout, "tea")
            assert charged == ["tea"]

        def test_after():
            assert {"asyncio": 12, "trio": 12} == {name: runs.count(name) for name in runs}
        """,
        mode="strict",
    )
    result = pytester.runpytest_inprocess()

    result.assert_outcomes(passed=5, failed=2)
    result.stdout.fnmatch_lines(
        [
            "E*NotReplaySafeError: under the schedule '!4~': the test fails: *",
            "E*NotReplaySafeError: under the schedule '!4~': the test fails: *",
        ]
    )


def test_works_with_plain_functions(pytester: pytest.Pytester, testfile: TestFile) -> None:
    """A plain function is explored as a coroutine is."""
    testfile(
        """
        @pytest.mark.every_crash_point(before_each=charged.clear)
        def test_it(simulator):
            assert simulator.run(simulator.call(checkout, "tea")).value == "tea for 3"
            assert charged == ["tea"]
        """
    )
    pytester.runpytest_inprocess("-p", "no:asyncio", "-o", "addopts=", "-W", "default").stdout.fnmatch_lines(
        [">       assert charged == *", "E*NotReplaySafeError: under the schedule '!4~': the test fails: *"]
    )


def test_works_with_methods_parameters_and_other_marks(pytester: pytest.Pytester, testfile: TestFile) -> None:
    """A class or a module may be marked; what is nearest to the test counts, and each parameter is explored."""
    testfile(
        """
        pytestmark = pytest.mark.every_crash_point(max_runs=1)

        @pytest.mark.every_crash_point(max_runs=3)
        class TestShop:
            @pytest.mark.parametrize("item", ["tea", "milk"])
            async def test_it(self, simulator, item):
                assert f"{item} for 3" == (await simulator.call(checkout, item)).value
                runs.append(item)

        async def test_other(simulator):
            await simulator.call(checkout, "rum")
            assert ["tea"] * 3 + ["milk"] * 3 == runs
        """
    )
    pytester.runpytest_inprocess().assert_outcomes(passed=3)


# --- real servers ---------------------------------------------------------------------------------------------------

ON_A_SERVER = """
    import httpx
    from restate_steps.server import AppServer

    attempts = []

    @shop.handler()
    async def naps(ctx: restate.Context) -> None:
        attempts.append(1)
        await ctx.run_typed("nap", lambda: None)

    def call(server, app):
        attempts.clear()
        with AppServer(app) as served:
            server.admin.register(served.url)
            httpx.post(f"{server.ingress_url}/Shop/naps", trust_env=False).raise_for_status()
        print("pid", server.pid)

    def test_normal(restate_server, restate_app):
        call(restate_server, restate_app)
        assert 1 == len(attempts)

    def test_again(restate_server, restate_app):
        call(restate_server, restate_app)
        assert 1 == len(attempts)

    def test_replay(restate_replay_server, restate_app):
        call(restate_replay_server, restate_app)
        assert 1 < len(attempts)
"""


def test_servers_are_shared_and_end_with_the_session(
    pytester: pytest.Pytester, testfile: TestFile, server_binary: Path
) -> None:
    """There is one of each kind, started at its first use; the second one suspends handlers at every wait."""
    testfile(ON_A_SERVER)

    result = pytester.runpytest_inprocess("-s", f"--restate-server={server_binary}")

    result.assert_outcomes(passed=3)
    normal, again, replay = (int(pid) for pid in re.findall(r"pid (\d+)", result.stdout.str()))
    assert normal == again != replay
    for pid in (normal, replay):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_server_binary_holds_for_whatever_looks_for_one(pytester: pytest.Pytester) -> None:
    """The option is what RESTATE_SERVER is, for the session, and relative to where pytest was started."""
    pytester.path.joinpath("my-server").write_text("#!/bin/sh\n")
    pytester.path.joinpath("my-server").chmod(0o755)
    pytester.makepyfile(
        """
        from pathlib import Path
        from restate_steps.server import find_server

        def test_it():
            assert Path("my-server").absolute() == find_server()
        """
    )
    before = os.environ.get("RESTATE_SERVER")

    pytester.runpytest_inprocess("--restate-server=my-server").assert_outcomes(passed=1)

    assert before == os.environ.get("RESTATE_SERVER")


# --- the plugin itself ----------------------------------------------------------------------------------------------


def test_plugin_costs_nothing_where_it_is_not_used(pytester: pytest.Pytester) -> None:
    """In a session that does not use it, nothing is imported that takes long: only the plugin itself."""
    pytester.makeini("[pytest]")
    pytester.makepyfile(
        """
        import sys

        def test_it(pytestconfig):
            assert pytestconfig.pluginmanager.has_plugin("restate_steps")
            loaded = {name for name in sys.modules if name.split(".")[0] == "restate_steps"}
            assert loaded == {"restate_steps", "restate_steps._pytest"}
            assert not {"restate", "httpx", "pydantic", "hypercorn"} & set(sys.modules)
        """
    )
    others = ("-p", "no:asyncio", "-p", "no:langsmith_plugin")
    pytester.runpytest_subprocess("-W", "error", *others).assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("options", "there"),
    [
        ([], True),
        (["-p", "restate_steps"], True),
        (["--disable-plugin-autoload", "-p", "restate_steps"], True),
        (["--disable-plugin-autoload"], False),
        (["-p", "no:restate_steps"], False),
    ],
)
def test_plugin_can_be_named_and_left_out(pytester: pytest.Pytester, options: list[str], there: bool) -> None:
    """It is loaded once, however often it is named, and whoever leaves it out misses nothing but it."""
    pytester.makeini("[pytest]")
    pytester.makepyfile(
        f"""
        def test_it(pytestconfig):
            assert {there} == pytestconfig.pluginmanager.has_plugin("restate_steps")
            assert {there} == ("restate_explore" in pytestconfig.option)
        """
    )
    pytester.runpytest_subprocess(*options).assert_outcomes(passed=1)


def test_testing_kit_does_not_need_pytest() -> None:
    """The simulator and the explorer can be used with another runner of tests."""
    code = "import sys; sys.modules['pytest'] = None; import restate_steps.testing"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_fixtures_are_described(pytester: pytest.Pytester) -> None:
    """pytest --fixtures says what each of them is."""
    pytester.runpytest_inprocess("--fixtures").stdout.fnmatch_lines_random(
        [
            "restate_server [[]session scope[]] -- *",
            "restate_replay_server [[]session scope[]] -- *",
            "simulator -- *",
            "    A restate_steps.testing.Simulator, which plays the server for the application of *",
            "    The application for the fixture simulator. Define your own, which returns restate.app(*",
        ]
    )


# --- at work --------------------------------------------------------------------------------------------------------

counter = restate.VirtualObject("Counter")


@counter.handler()
async def add(ctx: restate.ObjectContext, number: int) -> int:
    before: int = await ctx.get("sum", type_hint=int) or 0
    total = await ctx.run_typed("add", lambda: before + number)
    ctx.set("sum", total)
    return total


@pytest.fixture
def restate_app() -> Any:
    return restate.app([counter])


@pytest.mark.every_crash_point(crashes=2)
async def test_object_adds_up_whatever_crashes(simulator: Simulator) -> None:
    """Used in this very session: calls of one key come after each other, and none is counted twice."""
    first = await simulator.send(add, 1, key="a")
    second = await simulator.call(add, 2, key="a")

    assert (1, 3) == ((await first.result()).value, second.value)
    assert {"sum": 3} == simulator.state("Counter", "a")
