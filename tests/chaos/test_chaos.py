"""A short version of ``make chaos``, and tests that its audit finds every kind of violation."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from tests.chaos.__main__ import conclude
from tests.chaos.audit import Audit, audit
from tests.chaos.campaign import Campaign, Result
from tests.chaos.clients import Outcome
from tests.chaos.event_log import Entry
from tests.chaos.monkey import Snapshot, make_plan
from tests.chaos.payment_service import PaymentService
from tests.chaos.runs import Run
from tests.support import ROOT


def chaos(*options: str) -> dict[str, int]:
    """Run it, and return the table's first column, by the names of the rows."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos", "--seconds=80", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=115,
    )

    assert 0 == done.returncode, done.stdout + done.stderr
    rows = re.findall(r"^ *(\S.*?)  +(\d+)\b", done.stdout, re.MULTILINE)
    return {name: int(count) for name, count in rows}


@pytest.mark.timeout(120)
def test_one_server() -> None:
    """Checkouts and agents end correctly and once, although their process and their server are killed repeatedly."""
    counts = chaos("--runs=40", "--service-kills=8", "--server-kills=2", "--no-cluster", "--no-drained")

    assert (40, 0, 0) == (counts["finished"], counts["steps seen twice"], counts["doubled despite the key"])
    assert (8, 2) == (counts["service kills"], counts["server kills"])
    assert counts["results recorded at kills"] > 0


@pytest.mark.timeout(120)
def test_cluster() -> None:
    """The same holds on a cluster of three servers, one of which is killed halfway and restarted."""
    counts = chaos("--runs=30", "--service-kills=4", "--node-kills=1", "--no-single", "--no-drained")

    assert (30, 0, 0) == (counts["finished"], counts["steps seen twice"], counts["doubled despite the key"])
    assert (4, 1) == (counts["service kills"], counts["server kills"])


@pytest.mark.timeout(120)
def test_drained() -> None:
    """If the process is ended with SIGTERM instead, no body runs again."""
    counts = chaos("--runs=30", "--service-kills=6", "--no-single", "--no-cluster")

    assert (30, 0, 0) == (counts["finished"], counts["lost"], counts["started again"])
    assert 6 == counts["service kills"]


def nonce(number: int) -> str:
    return f"n-{number:032x}"


class Story:
    """The audit's input for one run with one step and one effect, for tests to modify."""

    def __init__(self) -> None:
        run = Run("o1", "Shop/checkout", {}, [1], None, frozenset({"charge o1"}), 1)
        answer = {"value": [1], "nonces": [nonce(1)]}
        self.outcomes = [Outcome(run, "inv_1", 200, answer)]
        self.events = [self.began(1), self.saw(1)]
        self.snapshots: list[Snapshot] = []
        self.recorded = {"inv_1": [nonce(1)]}
        self.requests = {"charge o1": 1}
        self.receipts = {"charge o1": {"inv_1/0": "receipt"}}

    def began(self, number: int) -> Entry:
        """Return an entry of the event log: the step's body started, with this nonce."""
        return Entry(1, (nonce(number),), "inv_1", "charge", "inv_1/0")

    def saw(self, number: int) -> Entry:
        """Return an entry of the event log: the handler saw this nonce."""
        return Entry(1, (nonce(number),))

    def snapshot(self, number: int, entries: int) -> Snapshot:
        """Return a snapshot with this nonce, taken when the event log had this number of entries."""
        return Snapshot(frozenset({nonce(number)}), entries)

    def audit(self) -> Audit:
        """Return the audit of the story."""
        return audit(self.outcomes, self.events, self.snapshots, self.recorded, self.requests, self.receipts)


@pytest.fixture
def story() -> Story:
    """A run without violations."""
    return Story()


def test_nothing_wrong(story: Story) -> None:
    """A run that ended as expected is not a violation."""
    found = story.audit()

    assert (1, 0, 0, 0, 0, []) == (
        found.finished,
        found.lost,
        found.wrong,
        found.seen_twice,
        found.doubled,
        found.violations,
    )


def test_body_without_a_result_may_run_again(story: Story) -> None:
    """A body may start again before a handler saw a result, and repeat its request: both are only counted."""
    story.events.insert(0, story.began(0))
    story.snapshots.append(story.snapshot(1, 2))
    story.requests["charge o1"] = 2

    found = story.audit()

    assert (1, 1, 1, 0, []) == (
        found.bodies_again,
        found.at_risk,
        found.repeated_requests,
        found.doubled,
        found.violations,
    )


def test_run_without_an_end_is_lost(story: Story) -> None:
    """A run that has not ended is lost, and its missing effects are not wrong."""
    story.outcomes[0].status = None
    story.receipts.clear()

    found = story.audit()

    assert (0, 1, 0) == (found.finished, found.lost, found.wrong)


@pytest.mark.parametrize("body", [{"value": [2], "nonces": [nonce(1)]}, {"value": [1], "nonces": []}, "no"], ids=str)
def test_wrong_answer(story: Story, body: object) -> None:
    """A different value, missing steps, and an answer of another shape are wrong."""
    story.outcomes[0].body = body

    assert 1 == story.audit().wrong


def test_failure_that_must_not_be(story: Story) -> None:
    """An unexpected failure is wrong."""
    story.outcomes[0].status = 402

    assert 1 == story.audit().wrong


def test_failure_that_must_be(story: Story) -> None:
    """A run that must fail is correct only with its own failure."""
    story.outcomes[0].run = replace(story.outcomes[0].run, failure=402, value=None)
    assert 1 == story.audit().wrong

    story.outcomes[0].status, story.outcomes[0].body = 402, {"message": "declined: o1"}
    assert 0 == story.audit().wrong


def test_run_that_was_started_twice(story: Story) -> None:
    """An invocation that no client knows is wrong."""
    story.recorded["inv_2"] = []

    assert 1 == story.audit().wrong


def test_two_results_of_one_step(story: Story) -> None:
    """A step is seen twice if handlers saw two of its results, even if one is only in the answer."""
    story.events.insert(0, story.began(2))
    story.outcomes[0].body["nonces"] = [nonce(2)]

    found = story.audit()

    assert 1 == found.seen_twice
    assert "handlers saw 2 results" in found.violations[0].what


def test_body_after_its_result_was_seen(story: Story) -> None:
    """A step is seen twice if its body starts again after a handler saw its result."""
    story.events.append(story.began(2))

    found = story.audit()

    assert 1 == found.seen_twice
    assert "after a handler had seen its result" in found.violations[0].what


def test_body_although_its_result_was_recorded(story: Story) -> None:
    """A step is seen twice if its body starts after its result was in the journal."""
    story.events[:] = [story.began(1), story.began(2), story.saw(1)]
    story.snapshots.append(story.snapshot(1, 1))

    found = story.audit()

    assert 1 == found.seen_twice
    assert "although its result was in the journal" in found.violations[0].what


def test_journal_with_another_result(story: Story) -> None:
    """A step is seen twice if the journal has a different result than the handler saw."""
    story.events.insert(0, story.began(2))
    story.recorded["inv_1"] = [nonce(2)]

    assert 1 == story.audit().seen_twice


def test_result_from_nowhere(story: Story) -> None:
    """A result that no body produced is wrong."""
    story.events.append(story.saw(3))

    assert 1 == story.audit().wrong


def test_doubled_despite_the_key(story: Story) -> None:
    """An effect that happened with two keys is doubled, and so is an unexpected effect."""
    story.receipts["charge o1"]["inv_1/1"] = "another receipt"
    story.receipts["release o1"] = {"inv_1/2": "receipt"}

    assert 2 == story.audit().doubled


def test_effect_that_never_happened(story: Story) -> None:
    """A run that ended without its effect is wrong."""
    story.receipts.clear()

    assert 1 == story.audit().wrong


@pytest.mark.parametrize(("again", "kills", "code"), [(1, 3, 0), (0, 3, 1), (1, 2, 1)])
def test_exit_code(story: Story, again: int, kills: int, code: int) -> None:
    """A campaign fails if its kills came too late or interrupted nothing, because it then proves nothing."""
    found = story.audit()
    found.bodies_again = again
    plan = Campaign("test", runs=1, service_kills=3, server_kills=1, nodes=1, seconds=1, seed=1)

    assert code == conclude([Result(plan, found, kills, 1, 1.0)])


def test_drained_process_repeats_nothing(story: Story) -> None:
    """A body that runs again after a graceful restart fails the campaign."""
    found = story.audit()
    plan = Campaign("test", runs=1, service_kills=1, server_kills=0, nodes=1, seconds=1, seed=1, gracefully=True)
    codes: list[int] = []
    for again in (0, 1):
        found.bodies_again = again
        codes.append(conclude([Result(plan, found, 1, 0, 1.0)]))

    assert [0, 1] == codes


def test_violation_fails(story: Story, capsys: pytest.CaptureFixture[str]) -> None:
    """A violation is printed with its invocation, and fails the campaign."""
    story.outcomes[0].status = None
    plan = Campaign("test", runs=1, service_kills=0, server_kills=0, nodes=1, seconds=1, seed=1)

    code = conclude([Result(plan, story.audit(), 0, 0, 1.0)])

    assert 1 == code
    assert "FAIL (test): inv_1: o1 was lost" in capsys.readouterr().out


@pytest.mark.parametrize("nodes", [1, 3])
def test_plan(nodes: int) -> None:
    """A plan has every kill, in order, and restarts each killed server before it kills the next."""
    plan = make_plan(30, 5, random.Random(1), nodes=nodes)
    actions = [action for _, action in plan.actions]

    assert 30 == actions.count("kill service")
    assert ["kill server", "start server"] * 5 == [action for action in actions if action != "kill service"]
    assert sorted(share for share, _ in plan.actions) == [share for share, _ in plan.actions]


def test_payment_service_acts_once_for_each_key() -> None:
    """The payment service counts every request, and returns the same receipt for the same key."""
    with PaymentService() as payments:
        receipts = [payments.act("charge o1", key, "") for key in ("a", "a", "b")]

    assert receipts[0] == receipts[1] != receipts[2]
    assert ({"charge o1": 3}, 2) == (payments.requests, len(payments.receipts["charge o1"]))
