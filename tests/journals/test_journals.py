"""Every journal that a version has left behind can be replayed by this one."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from dataclasses import replace

import pytest

from restate_steps.testing import RecordedJournal, ReplayDifferenceError, load_journals, replay
from restate_steps.testing._simulation.wire import Kind, decode, make

from .handlers import app
from .write import CASES, FOLDER

each_journal = pytest.mark.parametrize(
    "journal", load_journals(FOLDER), ids=lambda journal: journal.name.removeprefix(f"{FOLDER}/")
)


@each_journal
def test_replay(journal: RecordedJournal) -> None:
    """Today's code asks for what the journal has, and gives the answer that it has."""
    replay(journal, app)


@each_journal
def test_replay_of_every_beginning(journal: RecordedJournal) -> None:
    """Wherever the run had been when it was recorded, today's code would go on from there."""
    replay([replace(journal, frames=journal.frames[:end]) for end in range(1, len(journal.frames) + 1)], app)


@pytest.fixture
def collected() -> Iterator[None]:
    """Collect garbage at the end of the test only, and without a warning.

    A task that fails at once cancels others before they have started, and what those were given is never awaited.
    """
    gc.disable()
    try:
        yield
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            gc.collect()
    finally:
        gc.enable()


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.usefixtures("collected")
@each_journal
def test_another_name_is_noticed(journal: RecordedJournal) -> None:
    """No step of any journal can have another name without a difference; so the tests above do see something."""
    for index, frame in enumerate(journal.frames):
        if frame.kind == Kind.RUN:
            other = make(Kind.RUN, name="another", completion_id=decode(frame)["completion_id"])
            changed = (*journal.frames[:index], other, *journal.frames[index + 1 :])
            with pytest.raises(ReplayDifferenceError, match="run another") as caught:
                replay(replace(journal, frames=changed), app)
            assert index == caught.value.entry


def test_every_case_has_a_journal() -> None:
    """Whoever adds a case writes its journals: ``python -m tests.journals.write --server``."""
    folders = sorted({folder for folder in FOLDER.glob("*/*") if folder.is_dir()})

    assert folders
    for folder in folders[-4:]:
        assert {case.name for case in CASES} <= {path.stem for path in folder.glob("*.json")}, folder
