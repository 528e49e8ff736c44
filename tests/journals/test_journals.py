"""Every journal that a version has left behind can be replayed by this one."""

from __future__ import annotations

import pytest

from restate_steps.testing import RecordedJournal, load_journals, replay

from .handlers import app
from .write import CASES, FOLDER

JOURNALS = load_journals(FOLDER)


@pytest.mark.parametrize("journal", JOURNALS, ids=lambda journal: journal.name.removeprefix(f"{FOLDER}/"))
def test_replay(journal: RecordedJournal) -> None:
    """Today's code asks for what the journal has, and gives the answer that it has."""
    replay(journal, app)


def test_every_case_has_a_journal() -> None:
    """Whoever adds a case writes its journals: ``python -m tests.journals.write --server``."""
    folders = sorted({folder for folder in FOLDER.glob("*/*") if folder.is_dir()})

    assert folders
    for folder in folders[-4:]:
        assert {case.name for case in CASES} <= {path.stem for path in folder.glob("*.json")}, folder
