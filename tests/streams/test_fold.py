"""The fold, rule by rule."""

from __future__ import annotations

import pytest
from pydantic import JsonValue

from restate_steps.streams import EventId, StreamEnd, StreamEvent, StreamGoneError, StreamReset, StreamView
from restate_steps.streams._fold import Fold, resume
from restate_steps.streams._records import (
    BodyEvents,
    Commit,
    End,
    EndStatus,
    HandlerEvent,
    HandlerEvents,
    Native,
    Record,
    Request,
)


def body(attempt: int, seq: int, *events: JsonValue, after: HandlerEvents | None = None, step: str = "step") -> Record:
    """Return a record of an attempt."""
    return Record(0, after, BodyEvents(step, f"attempt-{attempt}", seq, events))


def handler(position: int, *events: HandlerEvent | str, run: str = "run") -> HandlerEvents:
    """Return events of the handler."""
    natives = (Native(event) if isinstance(event, str) else event for event in events)
    return HandlerEvents(run, position, tuple(natives))


def seen(position: int, *events: HandlerEvent | str, run: str = "run") -> Record:
    """Return a record of the handler alone."""
    return Record(0, handler(position, *events, run=run))


def commit(attempt: int | None, count: int = 0, *parts: str) -> Commit:
    """Return the commit of the step; without parts, the store has acknowledged all events."""
    return Commit("step", None if attempt is None else f"attempt-{attempt}", count, parts or None)


def shown(*log: Record) -> list[list[object]]:
    """Return what each record shows: the data of events, and the names of resets and the end."""
    fold = Fold()
    return [[_short(view) for view in fold.add(record)] for record in log]


def _short(view: StreamView) -> object:
    match view:
        case StreamEvent():
            return view.data
        case StreamReset():
            return f"RESET {view.producer} {view.epoch}"
        case StreamEnd():
            return f"END {view.status}"


class TestIds:
    """R3, R6: a record keeps its number, and an id means the same to everyone."""

    def test_an_id_is_the_record_and_the_index_among_what_it_shows(self) -> None:
        """R6: the same log gives the same ids."""
        _, views = resume([body(1, 0, "a", "b"), body(2, 0), body(2, 0, "c")], None)

        assert ["0.0", "0.1", "1.0", "2.0"] == [str(view.id) for view in views]

    def test_a_record_that_shows_nothing_has_a_number(self) -> None:
        """R3: numbers count records, so a repeated record leaves a gap in the ids."""
        _, views = resume([body(1, 0, "a"), body(1, 0, "a"), body(1, 1, "b")], None)

        assert ["0.0", "2.0"] == [str(view.id) for view in views]

    def test_what_is_shown_late_has_the_id_of_the_record_that_shows_it(self) -> None:
        """R6: ids grow, whenever an event was published."""
        _, views = resume([seen(1, "b"), seen(0, "a")], None)

        assert [("1.0", "a"), ("1.1", "b")] == [(str(view.id), _short(view)) for view in views]

    def test_the_time_decides_nothing(self) -> None:
        """R6: what is shown is a function of the order in the log."""
        late, early = Record(9, body=body(1, 0, "a").body), Record(1, body=body(2, 0, "b").body)

        assert shown(body(1, 0, "a"), body(2, 0, "b")) == shown(late, early)


class TestPositions:
    """R2: what the handler sees rides along."""

    def test_events_of_the_handler_precede_those_of_the_body(self) -> None:
        """R2: they are the head of the body's first record."""
        assert [["tool", "a"]] == shown(body(1, 0, "a", after=handler(0, "tool")))

    def test_a_position_is_shown_once(self) -> None:
        """R2: parallel bodies, and every attempt, carry the same events."""
        assert [["x", "y"], ["z"], []] == shown(seen(0, "x", "y"), seen(1, "y", "z"), seen(0, "x", "y"))

    def test_what_comes_too_early_waits(self) -> None:
        """R2: a later position is shown after the earlier ones."""
        assert [[], [], ["a", "b", "c", "d"]] == shown(seen(2, "c", "d"), seen(1, "b"), seen(0, "a"))

    def test_a_body_waits_for_the_positions_before_it(self) -> None:
        """R2: the body began after the handler had seen them."""
        early = body(1, 0, "text", after=handler(1, "tool"))

        assert [[], [], ["call", "tool", "text", "more"]] == shown(early, body(1, 1, "more"), seen(0, "call"))

    def test_a_body_waits_for_positions_that_others_carry(self) -> None:
        """R2: a record without events of the handler may depend on a position."""
        assert [[], ["call", "text"]] == shown(body(1, 0, "text", after=handler(1)), seen(0, "call"))

    def test_a_waiting_body_is_shown_as_soon_as_its_positions_are(self) -> None:
        """R2: later events of the same record come after it, so its commit finds the events."""
        waiting = body(1, 0, "text", after=handler(1))

        assert [[], ["call", "text", "tool"]] == shown(waiting, seen(0, "call", commit(1, 1), "tool"))

    def test_an_attempt_that_waits_does_not_replace_another(self) -> None:
        """R2, R4: an attempt begins with its record of the sequence number 0, once that need not wait."""
        log = [body(1, 0, "a"), body(2, 0, "b", after=handler(1)), body(2, 1, "c"), seen(0, "call")]

        assert [["a"], [], [], ["call", "RESET step 0", "b", "c"]] == shown(*log)

    def test_runs_count_for_themselves(self) -> None:
        """R2: two agents of one handler publish to one stream."""
        assert [["a"], ["x"], [], ["y", "z"]] == shown(
            seen(0, "a"), seen(0, "x", run="other"), seen(2, "z", run="other"), seen(1, "y", run="other")
        )

    def test_a_long_chain_of_early_positions(self) -> None:
        """R2: what waits is released without recursion."""
        early = [body(1, 0, after=handler(position, str(position))) for position in range(1500, 0, -1)]

        assert list(map(str, range(1501))) == shown(*early, seen(0, "0"))[-1]


class TestAttempts:
    """R4: one attempt of a step is visible at a time."""

    def test_the_first_record_of_a_later_attempt_takes_back_what_the_earlier_one_showed(self) -> None:
        """R4: even if it has no event yet."""
        assert [["a", "b"], ["RESET step 0"], ["c"]] == shown(body(1, 0, "a", "b"), body(2, 0), body(2, 0, "c"))

    def test_nothing_is_taken_back_if_nothing_was_shown(self) -> None:
        """R4: an attempt may crash before its first event."""
        assert [[], ["b"]] == shown(body(1, 0), body(2, 0, "b"))

    def test_each_time_the_epoch_is_the_next(self) -> None:
        """R4: readers tell apart what is taken back and what follows."""
        _, views = resume([body(1, 0, "a"), body(2, 0, "b"), body(3, 0, "c")], None)

        assert [("a", 0), ("b", 1), ("c", 2)] == [(v.data, v.epoch) for v in views if isinstance(v, StreamEvent)]
        assert [0, 1] == [view.epoch for view in views if isinstance(view, StreamReset)]

    def test_an_attempt_that_was_replaced_shows_nothing_more(self) -> None:
        """R4: a zombie continues to write."""
        assert [["a"], ["RESET step 0", "b"], [], ["c"]] == shown(
            body(1, 0, "a"), body(2, 0, "b"), body(1, 1, "zombie"), body(2, 1, "c")
        )

    def test_an_attempt_begins_once(self) -> None:
        """R4: a repeated first record of a zombie does not bring it back."""
        assert [["a"], ["RESET step 0", "b"], []] == shown(body(1, 0, "a"), body(2, 0, "b"), body(1, 0, "a"))

    def test_a_repeated_record_shows_nothing(self) -> None:
        """R4, R7: a publisher that got no answer appends it again, with what has been added since."""
        assert [["a", "b"], [], ["c"], []] == shown(
            body(1, 0, "a", "b"), body(1, 0, "a", "b"), body(1, 1, "b", "c"), body(1, 2, "c")
        )

    def test_events_after_a_gap_wait(self) -> None:
        """R4: the events of an attempt are shown in order."""
        assert [["a"], [], ["b", "c"]] == shown(body(1, 0, "a"), body(1, 2, "c"), body(1, 1, "b"))

    def test_an_attempt_does_not_begin_in_its_middle(self) -> None:
        """R4: its first record may come late, or never."""
        assert [["a"], [], ["RESET step 0", "b", "c"]] == shown(body(1, 0, "a"), body(2, 1, "c"), body(2, 0, "b"))

    def test_steps_are_independent(self) -> None:
        """R4: parallel steps are taken back one by one."""
        assert [["a"], ["x"], ["RESET step 0", "b"], ["y"]] == shown(
            body(1, 0, "a"), body(1, 0, "x", step="other"), body(2, 0, "b"), body(1, 1, "y", step="other")
        )


class TestCommits:
    """R5: the journal has the last word."""

    def test_a_commit_of_the_visible_attempt_shows_nothing(self) -> None:
        """R5: readers have seen what was recorded."""
        assert [["a"], []] == shown(body(1, 0, "a"), seen(0, commit(1, 1)))

    def test_a_commit_shows_the_recorded_attempt_if_another_is_visible(self) -> None:
        """R5: a zombie that began later has misled readers."""
        assert [["a"], ["RESET step 0", "z"], [], ["RESET step 1", "a", "b"]] == shown(
            body(1, 0, "a"), body(2, 0, "z"), body(1, 1, "b"), seen(0, commit(1, 2))
        )

    def test_what_a_zombie_writes_after_the_commit_is_ignored(self) -> None:
        """R5: whether it has begun before or not."""
        assert [["a"], ["RESET step 0", "b"], [], [], []] == shown(
            body(1, 0, "a"), body(2, 0, "b"), seen(0, commit(2, 1)), body(1, 1, "zombie"), body(3, 0, "zombie")
        )

    def test_a_commit_may_precede_all_events(self) -> None:
        """R5: those of the recorded attempt are shown when they come, and no others."""
        assert [[], [], ["a"], ["b"], []] == shown(
            seen(0, commit(2, 2)), body(1, 0, "z"), body(2, 0, "a"), body(2, 1, "b", "c"), body(2, 2, "c")
        )

    def test_a_commit_may_precede_the_last_events(self) -> None:
        """R5: as above, for an attempt that is visible."""
        assert [["a"], [], ["b"]] == shown(body(1, 0, "a"), seen(0, commit(1, 2)), body(1, 1, "b", "c"))

    def test_only_the_recorded_number_of_events_counts(self) -> None:
        """R5: the view is what was recorded, no more."""
        assert [["a", "b"], ["RESET step 0", "a"]] == shown(body(1, 0, "a", "b"), seen(0, commit(1, 1)))

    def test_finished_parts_replace_events_that_are_missing(self) -> None:
        """R5, R8: the publisher gave up waiting for the store."""
        assert [["a"], ["RESET step 0", "ab"]] == shown(body(1, 0, "a"), seen(0, commit(1, 2, "ab")))

    def test_finished_parts_are_shown_if_there_were_no_events(self) -> None:
        """R5, R8: the store was not reached at all."""
        assert [["ab"]] == shown(seen(0, commit(1, 2, "ab")))

    def test_finished_parts_are_ignored_if_nothing_is_missing(self) -> None:
        """R5: the records were appended after all, only the answers came late."""
        assert [["a", "b"], []] == shown(body(1, 0, "a", "b"), seen(0, commit(1, 2, "ab")))

    def test_events_after_their_finished_parts_are_ignored(self) -> None:
        """R5: as in the log of a store that was slow."""
        assert [["ab"], [], []] == shown(seen(0, commit(1, 2, "ab")), body(1, 0, "a", "b"), body(2, 0, "c"))

    def test_a_failed_step_shows_nothing(self) -> None:
        """R5: the journal has a failure, so no attempt counts."""
        assert [["a"], ["RESET step 0"], []] == shown(body(1, 0, "a"), seen(0, commit(None)), body(2, 0, "b"))

    def test_commits_have_positions(self) -> None:
        """R2, R5: a commit is shown where the handler saw it."""
        assert [["z"], [], ["call", "RESET step 0", "text", "tool"]] == shown(
            body(1, 0, "z"), seen(1, commit(2, 1, "text"), "tool"), seen(0, "call")
        )

    def test_a_second_commit_of_a_step_is_ignored(self) -> None:
        """R5: the journal has one result, so this one belongs to something else."""
        assert [["a"], [], []] == shown(body(1, 0, "a"), seen(0, commit(1, 1)), seen(1, commit(2, 1, "b")))


class TestEnd:
    """R9: every stream ends."""

    @pytest.mark.parametrize("status", ["success", "failure", "cancelled", "timeout", "killed"])
    def test_the_end_says_how(self, status: EndStatus) -> None:
        """R9: with the result or the error."""
        [view] = Fold().add(seen(0, End(status, {"output": 1})))

        assert StreamEnd(EventId(0, 0), status, {"output": 1}) == view

    def test_nothing_follows(self) -> None:
        """R9: whatever is late."""
        end = seen(0, "last", End("success"), "late")

        assert [["last", "END success"], [], []] == shown(end, seen(3, End("failure")), body(1, 0, "late"))

    def test_a_body_in_the_record_of_the_end_is_ignored(self) -> None:
        """R9: it would follow the end."""
        assert [["END success"]] == shown(body(1, 0, "late", after=handler(0, End("success"))))

    def test_it_does_not_wait_for_missing_positions(self) -> None:
        """R9: the publisher has given up on them, and readers must not wait forever."""
        waiting = body(1, 0, "text", after=handler(2, "tool"))

        assert [[], ["tool", "text", "last", "END success"]] == shown(
            waiting, seen(4, commit(1, 1), "last", End("success"))
        )

    def test_what_was_shown_is_not_missing(self) -> None:
        """R2, R9: after the gap, no position comes again."""
        assert [["x"], [], ["z", "END success"]] == shown(seen(0, "x"), seen(0, "x"), seen(2, "z", End("success")))

    def test_readers_may_append_it(self) -> None:
        """R9: a run that was killed cannot say so, and the reader does not know the positions."""
        edge = seen(0, End("killed"), run="edge")

        assert [["call"], ["END killed"]] == shown(seen(0, "call"), edge)

    def test_it_takes_back_what_was_not_recorded(self) -> None:
        """R5, R9: the final view is what the journal has."""
        log = [body(1, 0, "a"), body(1, 0, "x", step="other"), seen(0, commit(1, 1), End("cancelled"))]

        assert [["a"], ["x"], ["RESET other 0", "END cancelled"]] == shown(*log)


class TestRequests:
    """R10: a question to a person."""

    def test_the_token_stays_at_the_edge(self) -> None:
        """R10: it is not in what readers get, nor in logs."""
        [view] = Fold().add(seen(0, Request("call-1", "secret", {"tool": "pay"})))

        assert isinstance(view, StreamEvent)
        assert ("call-1", "secret") == (view.request, view.token)
        assert {"producer": "run", "epoch": 0, "data": {"tool": "pay"}, "request": "call-1"} == view.payload()
        assert "secret" not in repr(view) + repr(Request("call-1", "secret", None))


class TestResume:
    """R7: nothing twice, nothing lost."""

    LOG = (
        body(1, 0, "a", "b", after=handler(0, "call")),
        body(2, 0, "c"),
        seen(1, commit(2, 1), "tool", End("success")),
    )

    def test_a_new_reader_gets_everything(self) -> None:
        """R7: without an id."""
        fold, views = resume(self.LOG, None)

        assert (3, True) == (fold.records, fold.has_ended)
        assert ["0.0", "0.1", "0.2", "1.0", "1.1", "2.0", "2.1"] == [str(view.id) for view in views]

    def test_a_reader_gets_what_follows_its_id(self) -> None:
        """R7: in the middle of a record, too."""
        _, views = resume(self.LOG, EventId(0, 2))

        assert ["1.0", "1.1", "2.0", "2.1"] == [str(view.id) for view in views]

    def test_after_the_last_id_nothing_follows(self) -> None:
        """R7: the reader has seen the end."""
        assert [] == resume(self.LOG, EventId(2, 1))[1]

    def test_a_reader_that_has_a_part_of_an_event_gets_it_once_more(self) -> None:
        """R6, R7: the edge then sends the chunks after its id."""
        _, views = resume(self.LOG, EventId(1, 1, chunk=3))

        assert ["1.1", "2.0", "2.1"] == [str(view.id) for view in views]

    @pytest.mark.parametrize("after", [EventId(3, 0), EventId(0, 3), EventId(2, 2, chunk=0)], ids=str)
    def test_an_id_that_the_log_has_not_caused_is_gone(self, after: EventId) -> None:
        """R7: the log was deleted since, so the reader has to start again."""
        with pytest.raises(StreamGoneError, match=f"event '{after}' is not in the log"):
            resume(self.LOG, after)

    def test_readers_from_different_places_converge(self) -> None:
        """R7: each shows the same at the end, and the fold continues where the log was."""
        fold, missed = resume(self.LOG[:2], EventId(0, 1))

        _, whole = resume(self.LOG, None)
        assert whole == whole[:2] + missed + fold.add(self.LOG[2])
