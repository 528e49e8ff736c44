"""The demonstration of ``make demo``: that it succeeds, and that it could fail."""

from __future__ import annotations

import importlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from restate_steps.server import JournalEntry
from tests.support import ROOT
from tests.support.harness import eventually

KILLED = "no, it was running"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)


@pytest.fixture
def report() -> Any:
    """The module that makes the tables."""
    return importlib.import_module("examples.report")


@pytest.fixture
def started() -> Any:
    """Makes an entry of the ledger from a step's name and number."""
    ledger = importlib.import_module("examples.ledger")
    return lambda step, number: ledger.Started("inv_1", step, f"inv_1/{number}", 1)


def journal(*steps: tuple[str, bool]) -> list[JournalEntry]:
    """A journal with some steps, of which some are completed."""
    return [
        JournalEntry(number, "Command: Run", name, completed, None, None, number)
        for number, (name, completed) in enumerate(steps, 1)
    ]


def environment() -> dict[str, str]:
    """The environment without what would make the demonstration ask a real model, or go at another pace."""
    return {name: value for name, value in os.environ.items() if name not in ("OPENAI_API_KEY", "RESTATE_STEPS_PACE")}


def rows(output: str) -> dict[str, list[Sequence[str]]]:
    """The rows of the tables in an output, by the name of the step."""
    found: dict[str, list[Sequence[str]]] = {}
    for line in output.splitlines():
        cells = re.split(r" {2,}", line)
        if len(cells) == 3:
            found.setdefault(cells[0], []).append(cells[1:])
    return found


@pytest.mark.parametrize("command", [["examples/demo.py"], ["-m", "examples.demo"]], ids=["script", "module"])
def test_demonstration(command: list[str]) -> None:
    """Both handlers are killed in the middle and answer all the same; what was recorded ran once."""
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=100
    )

    assert 0 == done.returncode, done.stdout + done.stderr
    table = rows(done.stdout)
    assert ["yes", "once"] == table["agent__function_toolset__<agent>.call_tool:greet"][0]
    requests = table["agent__model.request"]
    assert [["yes", "once"], KILLED] == [requests[0], requests[1][0]]
    assert [["yes", "once"]] * 2 == [table["add_up"][0], table["reserve"][0]]
    recorded, ran = table["charge order-1"][0]
    assert KILLED == recorded
    assert ran.startswith("twice")
    assert "answer: Hello Ada!" in done.stdout
    assert "got the request twice, and charged the card once" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("Both calls were answered")


def test_interrupt_ends_what_was_started() -> None:
    """Ctrl-C ends the demonstration, and with it the server and the process that serves the examples."""
    demo = subprocess.Popen(
        [sys.executable, "examples/demo.py"],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert demo.stdout is not None
        seen = ""
        while "served by process" not in seen:
            seen = demo.stdout.readline()
            assert seen, "it ended before it was interrupted"
        served = int(re.findall(r"process (\d+)", seen)[0])
        os.kill(demo.pid, signal.SIGINT)

        assert 130 == demo.wait(30)
        eventually(lambda: not Path(f"/proc/{served}").exists() if Path("/proc").exists() else True)
    finally:
        demo.kill()
        demo.wait()
        if demo.stdout is not None:
            demo.stdout.close()


def test_recorded_step_that_runs_again_is_a_problem(report: Any, started: Any) -> None:
    """If the ledger shows a second run of a step that was recorded, the demonstration fails and names the step."""
    then = [started("a", 0)]
    steps = report.report_steps(
        journal(("a", True), ("b", True)), journal(("a", True)), [*then, started("a", 0), started("b", 1)], then
    )

    assert ["call: 'a' was recorded before the kill, but its body ran again"] == report.Report(
        "call", steps, "answer", None
    ).problems


def test_running_step_may_run_again(report: Any, started: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A second run of a step that had no result is no problem, and the table says why it happened."""
    then = [started("a", 0)]
    steps = report.report_steps(journal(("a", True)), journal(("a", False)), [*then, started("a", 0)], then)
    made = report.Report("call", steps, "answer", None)

    report.show(made)

    assert [] == made.problems
    assert ["no, it was running", "twice, because it had no result"] == rows(capsys.readouterr().out)["a"][0]


def test_steps_of_one_name_are_told_apart(report: Any, started: Any) -> None:
    """Steps with the same name are counted by their place."""
    then = [started("a", 0), started("a", 1)]
    steps = report.report_steps(
        journal(("a", True), ("a", True)), journal(("a", True), ("a", False)), [*then, started("a", 1)], then
    )

    assert [(True, 1, 0), (False, 1, 1)] == [(step.recorded, step.runs_before, step.runs_after) for step in steps]


def test_step_without_a_trace_is_a_problem(report: Any) -> None:
    """A step that left nothing in the ledger proves nothing, so the demonstration fails."""
    steps = report.report_steps(journal(("a", True)), [], [], [])

    assert ["call: 'a' is in the journal, but nothing shows that its body ran"] == report.Report(
        "call", steps, "answer", None
    ).problems


@pytest.mark.parametrize(("wrong", "charged"), [("the answer is wrong", 1), (None, 2)])
def test_exit_code_tells_a_failure(
    report: Any, started: Any, capsys: pytest.CaptureFixture[str], wrong: str | None, charged: int
) -> None:
    """A wrong answer and a card that is charged twice are failures of the demonstration."""
    demo = importlib.import_module("examples.demo")
    steps = report.report_steps(journal(("a", True)), [], [started("a", 0)], [])

    assert 1 == demo.conclude([report.Report("call", steps, "answer", wrong)], charged)
    assert "WRONG: " in capsys.readouterr().out


def test_answers_are_checked() -> None:
    """A greeting of somebody else and a receipt over another total are wrong."""
    greet, checkout = importlib.import_module("examples.demo").CALLS
    receipt = {"order_id": "order-1", "payment_id": "p", "total": "42.50", "delivered_on": "2026-03-04T12:00:00Z"}

    assert greet.check("Hello Ada!") is None
    assert greet.check("Hello Bob!")
    assert checkout.check(receipt) is None
    assert checkout.check({**receipt, "total": "0"})
    assert checkout.check("error 500")


def test_the_report_is_a_table(report: Any, started: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Columns line up in plain text."""
    steps = report.report_steps(journal(("a", True)), journal(("a", True)), [started("a", 0)], [started("a", 0)])

    report.show(report.Report("call", steps, "answer", None))

    assert "a     yes" in capsys.readouterr().out
