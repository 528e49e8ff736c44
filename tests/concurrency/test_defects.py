"""Every way in which a scheduler is known to go wrong, put back into ours: the exploration sees each of them.

A scenario that never failed proves nothing. Each defect here is a few lines that undo what the scheduler does against
it (see the invariants in ``restate_steps/concurrency/_scheduler.py``); with it the scenario fails, and without it the
same exploration finds nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context
from datetime import timedelta
from typing import Any

import pytest
import restate
from exploration import VARIANTS

import restate_steps
from concurrency import scenarios
from restate_steps import _sdk, durable_step, gather
from restate_steps.concurrency import _scheduler, _scope, _strand
from restate_steps.testing import Report, simulate

Defect = Callable[[pytest.MonkeyPatch], None]


def nothing(*args: Any, **options: Any) -> None:
    """Stands in for what is not done."""


def without_safety_net(patch: pytest.MonkeyPatch) -> None:
    """Let branches run out of turn: the scheduler would notice it by itself, and refuse."""
    parked, ended = _scheduler.Scheduler._park, _scheduler.Scheduler.finished

    def park(self: Any, strand: Any, wait: Any) -> None:
        if self.holder is None or self.holder is strand:
            parked(self, strand, wait)
        else:
            strand.state, strand.wait = _scheduler.State.PARKED, wait
            wait.strands.append(strand)

    def finished(self: Any, branch: Any) -> None:
        ended(self, branch)
        self._advance()

    patch.setattr(_scheduler.Scheduler, "_park", park)
    patch.setattr(_scheduler.Scheduler, "finished", finished)
    patch.setattr(_scheduler.Scheduler, "check", nothing)
    patch.setattr(_scheduler.Scheduler, "_deadlock", nothing)


def branches_start_at_once(patch: pytest.MonkeyPatch) -> None:
    """1. The code before the first step of a branch does not wait for its turn (B1)."""
    original = _scheduler.Scheduler._make_ready

    def start_at_once(self: Any, strand: Any) -> None:
        if strand.task is None and strand is not self.main:
            strand.state = _scheduler.State.RUNNING
            strand.grant(None)
        else:
            original(self, strand)

    patch.setattr(_scheduler.Scheduler, "_make_ready", start_at_once)
    without_safety_net(patch)


def local_waits_give_the_turn_away(patch: pytest.MonkeyPatch) -> None:
    """2. Others go on while a branch awaits something local, so that the time it takes decides the order (B2)."""
    original = _scheduler.Scheduler.blocked

    def blocked(self: Any, branch: Any, future: Any) -> None:
        original(self, branch, future)
        if future is None and self.holder is branch and branch._gate is None:
            self._make_ready(branch)
            self._release()

    patch.setattr(_scheduler.Scheduler, "blocked", blocked)


def parents_wake_beside_the_others(patch: pytest.MonkeyPatch) -> None:
    """3. Whoever waited for branches goes on by itself when they have ended, and nobody waits for it (B3)."""

    async def wait_for_strands(self: Any, register: Callable[[Callable[[], None]], None]) -> None:
        strand = self.current()
        wait = _strand.Wait(None, None)

        def wake() -> None:
            strand.state, strand.wait = _scheduler.State.RUNNING, None
            wait.settle()
            if isinstance(strand, _strand.Branch):
                strand.poke()

        register(wake)
        self._park(strand, wait)
        await wait.future

    patch.setattr(_scheduler.Scheduler, "wait_for_strands", wait_for_strands)
    without_safety_net(patch)


def locks_keep_the_turn(patch: pytest.MonkeyPatch) -> None:
    """4. A branch that waits for a lock, an event or a queue counts as one that can go on (B2)."""
    patch.setattr(_scheduler, "waits_for_another_strand", lambda chain: False)


def the_cancellation_sticks(patch: pytest.MonkeyPatch) -> None:
    """5. After a cancellation every later wait fails with it, so that nothing can be undone (B5)."""
    told, wait = _scheduler.Scheduler._tell_cancelled, _scheduler.Scheduler.wait_for_source

    def tell_cancelled(self: Any, strand: Any) -> None:
        self.sticky = True
        told(self, strand)

    async def wait_for_source(self: Any, source: Any) -> None:
        if getattr(self, "sticky", False):
            raise restate.TerminalError("cancelled", 409)
        await wait(self, source)

    patch.setattr(_scheduler.Scheduler, "_tell_cancelled", tell_cancelled)
    patch.setattr(_scheduler.Scheduler, "wait_for_source", wait_for_source)


def time_outs_are_local(patch: pytest.MonkeyPatch) -> None:
    """6. A time-out is a timer of the process, which a crash starts anew, and it interrupts durable waits (B7)."""

    async def wait_for(awaitable: Any, limit: timedelta) -> Any:
        async with asyncio.timeout(limit.total_seconds()):
            return await awaitable

    def interrupt(self: Any, strand: Any) -> None:
        self.interrupt(strand, asyncio.CancelledError())

    patch.setattr(scenarios, "wait_for", wait_for)
    patch.setattr(_scheduler.Scheduler, "refuse_cancellation", interrupt)


def parents_are_ready_too_late(patch: pytest.MonkeyPatch) -> None:
    """7. Whoever waited for branches is made ready a moment after the last has ended: others are polled for first."""

    async def wait_for_strands(self: Any, register: Callable[[Callable[[], None]], None]) -> None:
        strand = self.current()
        wait = _strand.Wait(None, None)

        def wake() -> None:
            if strand.wait is wait and strand.state is _scheduler.State.PARKED:
                self._make_ready(strand)
                self._advance()

        register(lambda: asyncio.get_running_loop().call_soon(wake) and None)
        self._park(strand, wait)
        await wait.future

    patch.setattr(_scheduler.Scheduler, "wait_for_strands", wait_for_strands)
    without_safety_net(patch)


def siblings_go_on(patch: pytest.MonkeyPatch) -> None:
    """8. A group that fails neither cancels its other branches nor waits for them."""

    async def abort(self: Any) -> None:
        return

    patch.setattr(_scope.Scope, "abort", abort)
    patch.setattr(_scope.Scope, "cancel", nothing)


def bodies_run_in_the_context_of_the_poller(patch: pytest.MonkeyPatch) -> None:
    """Context variables of the branch that asked for a body are not seen in it."""
    original = _strand.Wait.__init__

    def init(self: Any, source: Any, task: Any) -> None:
        original(self, source, task)
        self.context = Context()

    patch.setattr(_strand.Wait, "__init__", init)


def explored(name: str) -> Report:
    return scenarios.SCENARIOS[name].explore(VARIANTS[0], max_runs=80)


@pytest.mark.parametrize(
    ("defect", "name", "problems"),
    [
        (branches_start_at_once, "failure_1_local_waits_before_the_first_step", {"mismatch"}),
        (local_waits_give_the_turn_away, "failure_2_compensation_beside_siblings", {"mismatch"}),
        (parents_wake_beside_the_others, "failure_3_local_waits_after_an_inner_gather", {"mismatch"}),
        (locks_keep_the_turn, "failure_4_locks_events_and_queues", {"stuck", "paused"}),
        (the_cancellation_sticks, "failure_5_steps_after_a_cancellation", {"assertion"}),
        (time_outs_are_local, "failure_6_a_time_out_while_a_step_runs", {"mismatch"}),
        (parents_are_ready_too_late, "failure_7_a_parent_goes_on_while_siblings_run", {"mismatch"}),
        (siblings_go_on, "failure_8_siblings_of_a_failing_branch_end", {"paused"}),
        (bodies_run_in_the_context_of_the_poller, "context_variables", {"assertion", "paused"}),
    ],
)
def test_the_defect_is_seen(defect: Defect, name: str, problems: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With the defect there is a finding, and its schedule shows it again; without it there is none."""
    with monkeypatch.context() as patch:
        defect(patch)
        report = explored(name)
        [finding] = report.findings
        assert finding.problem in problems, finding
        again = scenarios.SCENARIOS[name].explore(VARIANTS[0], schedule=finding.schedule)
        assert [finding.problem] == [found.problem for found in again.findings]
    explored(name).assert_replay_safe()


async def test_a_result_that_is_kept_back_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body's result leaves when the body ends; sent with the next poll, a sibling's sleep would hold it up."""
    service = restate.Service("Flushed")

    @durable_step
    async def quick() -> None:
        await asyncio.sleep(1)

    @service.handler()
    async def handler(ctx: restate.Context) -> None:
        await gather(quick(), ctx.sleep(timedelta(seconds=30)))

    async def is_recorded_after_two_seconds() -> bool:
        async with simulate(restate_steps.app([service])) as sim:
            invocation = await sim.send(handler)
            await sim.advance(timedelta(seconds=2))
            return "Notification: Run" in [entry.type for entry in invocation.journal]

    assert await is_recorded_after_two_seconds()

    async def run_body(self: Any, run: Callable[[], Any]) -> None:
        await run()

    monkeypatch.setattr(_sdk.SdkPort, "_run_body", run_body)
    assert not await is_recorded_after_two_seconds()
