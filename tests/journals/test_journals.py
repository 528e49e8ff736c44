"""Every journal that a version has left behind can be replayed by this one."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from shutil import copy

import pytest

from restate_steps._protocol.types import MessageType
from restate_steps._protocol.wire import decode, make
from restate_steps.testing import RecordedJournal, ReplayDifferenceError, load_journals, replay
from tests.journals.handlers import app
from tests.journals.write import CASES, FOLDER

FOLDERS = sorted({folder for folder in FOLDER.glob("*/*") if folder.is_dir()})

each_folder = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(FOLDER)))


def check_each(folder: Path, check: Callable[[RecordedJournal], None]) -> None:
    """Check every journal of a folder, and fail with the names of all that failed, and with their errors."""
    journals = load_journals(folder)
    failed: dict[str, BaseException] = {}
    for journal in journals:
        try:
            check(journal)
        except (Exception, pytest.fail.Exception) as error:
            failed[Path(journal.name).stem] = error
    assert journals
    if failed:
        summary = f"{len(failed)} of {len(journals)} journals in {folder}: {', '.join(failed)}"
        raise BaseExceptionGroup(summary, list(failed.values()))


def every_beginning(journal: RecordedJournal) -> Iterator[RecordedJournal]:
    """What the journal was after each of its entries."""
    for end in range(1, len(journal.frames) + 1):
        yield replace(journal, frames=journal.frames[:end])


def with_another_name(journal: RecordedJournal) -> Iterator[tuple[int, RecordedJournal]]:
    """The journal with another name for one of its steps, and the number of that entry."""
    for index, frame in enumerate(journal.frames):
        if frame.type == MessageType.RUN:
            other = make(MessageType.RUN, name="another", completion_id=decode(frame)["completion_id"])
            yield index, replace(journal, frames=(*journal.frames[:index], other, *journal.frames[index + 1 :]))


@each_folder
def test_replay(folder: Path) -> None:
    """Today's code asks for what each journal has, and gives the answer that it has."""
    check_each(folder, lambda journal: replay(journal, app))


@each_folder
def test_replay_of_every_beginning(folder: Path) -> None:
    """Wherever a run had been when it was recorded, today's code would go on from there."""
    check_each(folder, lambda journal: replay(list(every_beginning(journal)), app))


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
@each_folder
def test_another_name_is_noticed(folder: Path) -> None:
    """No step of any journal can have another name without a difference; so the tests above do see something."""

    def check(journal: RecordedJournal) -> None:
        for index, changed in with_another_name(journal):
            with pytest.raises(ReplayDifferenceError, match="run another") as caught:
                replay(changed, app)
            assert index == caught.value.entry

    check_each(folder, check)


def test_failing_journals_are_named(tmp_path: Path) -> None:
    """A failure of one journal does not hide another's: all are named, with their errors."""
    for name in ("called", "codec", "slept"):
        copy(FOLDERS[0] / f"{name}.json", tmp_path)

    def check(journal: RecordedJournal) -> None:
        assert "called" in journal.name, "wrong"

    with pytest.raises(BaseExceptionGroup, match=r"2 of 3 journals in .*: codec, slept") as caught:
        check_each(tmp_path, check)
    assert ["wrong", "wrong"] == [str(error).splitlines()[0] for error in caught.value.exceptions]


def test_every_case_has_a_journal() -> None:
    """Whoever adds a case writes its journals: ``python -m tests.journals.write --server``."""
    assert FOLDERS
    for folder in FOLDERS[-4:]:
        assert {case.name for case in CASES} <= {path.stem for path in folder.glob("*.json")}, folder
