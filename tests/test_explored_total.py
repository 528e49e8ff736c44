"""The total of what is explored: that workers add up to it, and that too little fails the run of the tests."""

from __future__ import annotations

import inspect

import pytest

from tests.support import explored_total

TESTS = """
import pytest

@pytest.mark.parametrize("runs", [3, 4])
def test_explores(runs, record_property):
    record_property("explored", (runs, 2, {needed}))
"""


@pytest.fixture(autouse=True)
def _plugin(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    # The installed plugins take most of the time to start.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makeconftest(inspect.getsource(explored_total))


@pytest.mark.parametrize("workers", [(), ("-p", "xdist.plugin", "-n", "2")], ids=["alone", "workers"])
def test_too_little(pytester: pytest.Pytester, workers: tuple[str, ...]) -> None:
    """One run is missing, so the tests fail although each has passed."""
    pytester.makepyfile(TESTS.format(needed=8))

    result = pytester.runpytest(*workers)

    assert pytest.ExitCode.TESTS_FAILED == result.ret
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["7 schedules and prefixes explored; at least 8 are needed"])


def test_enough(pytester: pytest.Pytester) -> None:
    """What two tests explored is just enough."""
    pytester.makepyfile(TESTS.format(needed=7))

    result = pytester.runpytest()

    assert pytest.ExitCode.OK == result.ret
    result.stdout.fnmatch_lines(["7 schedules and prefixes explored; at least 7 are needed"])


def test_some_of_the_tests(pytester: pytest.Pytester) -> None:
    """Nothing is asked of a selection."""
    pytester.makepyfile(TESTS.format(needed=8))

    result = pytester.runpytest("-k", "3")

    assert pytest.ExitCode.OK == result.ret
    result.stdout.no_fnmatch_line("*are needed")
