"""Check today's code against recorded journals."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

from typing_extensions import TypeIs

from restate_steps.testing._errors import NotReplaySafeError, ReplayDifferenceError, SimulationError
from restate_steps.testing._recording.attempt import run_against
from restate_steps.testing._recording.difference import difference, missing_handler
from restate_steps.testing._recording.recorded import Recordable, RecordedJournal, as_recorded
from restate_steps.testing._simulation.application import ASGIApp, read_manifest
from restate_steps.testing._simulation.journal import Journal
from restate_steps.testing._simulation.manifest import Manifest

__all__ = ["Journals", "load_journals", "replay"]

Journals: TypeAlias = str | Path | Recordable
"""A file, a folder, a pattern such as ``tests/journals/*.json``, or a journal."""


def replay(journals: Journals | Iterable[Journals], app: ASGIApp) -> None:
    """Check today's code against recorded journals, so that a release does not break runs in flight.

    The journal of a completed run is replayed to its end: the handler must issue the same commands in the same order,
    and return the same answer. The journal of a run in flight is replayed as far as it goes. No body of a step runs,
    nothing is sent, and no time passes.

    The comparison is that of the SDK: kinds and names of entries, targets, arguments, headers and keys of calls, and
    written values. The duration of a sleep is not compared.

    Args:
        journals: A file, a folder (including its subfolders), a pattern such as ``"tests/journals/*.json"``, anything
            that :func:`record` takes, or several of these.
        app: The application, as ``restate_steps.app(...)`` returns it.

    Raises:
        ReplayDifferenceError: Today's code diverges from the journal; the error shows where.
        NotReplaySafeError: Some of several journals cannot be replayed; the error lists all of these.
        SimulationError: A file does not exist, or is not a recorded journal.
        TypeError: ``app`` is not a Restate application.

    Example:
        >>> import restate, restate_steps
        >>> journal = RecordedJournal.from_text('''{
        ...     "format": 1, "made_by": {}, "protocol": 6, "target": {"service": "Shop", "handler": "checkout"},
        ...     "invocation": {"id": "inv_1", "raw_id": "00", "random_seed": 1},
        ...     "entries": [{"type": "INPUT", "value": {"json": "tea"}}, {"type": "RUN", "name": "charge"}]
        ... }''')
        >>> shop = restate.Service("Shop")
        >>> @shop.handler()
        ... async def checkout(ctx: restate.Context, item: str) -> str:
        ...     return await ctx.run_typed("pay", lambda: f"paid for {item}")
        >>> replay(journal, restate_steps.app([shop]))
        Traceback (most recent call last):
            ...
        restate_steps.testing.ReplayDifferenceError: inv_1: Shop/checkout: today's code diverges from the journal:
        ...
          at entry 1 the journal has  run charge
          and today's code issues     run pay
        ...
    """
    found = _all(journals)
    manifest = read_manifest(app)
    different = [error for each in found if (error := _replay_one(each, app, manifest)) is not None]
    if not different:
        return
    if len(found) == 1:
        raise different[0]
    listed = "\n".join(f"  {each.journal}" for each in different)
    details = "\n\n".join(f"{'-' * 80}\n{each}" for each in different)
    raise NotReplaySafeError(
        f"{len(different)} of {len(found)} journals cannot be replayed with today's code:\n{listed}\n\n{details}"
    )


def load_journals(journals: str | Path) -> list[RecordedJournal]:
    """Read recorded journals, for example to parametrize a test.

    Args:
        journals: A file, a folder (including its subfolders), or a pattern such as ``"tests/journals/*.json"``.

    Returns:
        The journals, sorted by path; there is at least one. ``str()`` of a journal is its path.

    Raises:
        SimulationError: There are no files, or one of them is not a recorded journal.

    Example:
        ```python
        import pytest


        @pytest.mark.parametrize("journal", load_journals("tests/journals"), ids=str)
        def test_runs_in_flight_can_continue(journal: RecordedJournal) -> None:
            replay(journal, app)
        ```
    """
    path = Path(journals)
    if path.is_dir():
        files = sorted(path.rglob("*.json"))
    elif path.exists() or not glob.has_magic(str(journals)):
        files = [path]
    else:
        files = sorted(map(Path, glob.glob(str(journals), recursive=True)))
    if not files:
        # A test that replays nothing would always pass.
        raise SimulationError(f"there is no recorded journal at {journals}.")
    return [RecordedJournal.load(file) for file in files]


def _all(journals: Journals | Iterable[Journals]) -> list[RecordedJournal]:
    if isinstance(journals, (str, Path)):
        return load_journals(journals)
    if _has_journal(journals):
        return [as_recorded(journals)]
    found = [each for part in journals for each in _all(part)]
    if not found:
        raise SimulationError("there is nothing to replay, because no journal was passed. Pass at least one.")
    return found


def _has_journal(value: object) -> TypeIs[Recordable]:
    # A journal is itself a sequence, and is not a sequence of journals.
    return isinstance(value, Journal) or hasattr(value, "journal")


def _replay_one(recorded: RecordedJournal, app: ASGIApp, manifest: Manifest) -> ReplayDifferenceError | None:
    missing = missing_handler(recorded, manifest)
    if missing is not None:
        return missing
    found = difference(recorded, run_against(recorded, app, places=False))
    if found is None:
        return None
    # Replay again to find the place in the code; a nondeterministic handler may not differ this time.
    return difference(recorded, run_against(recorded, app)) or found
