"""Export the journal of an invocation from a real server.

``sys_journal`` has the bytes of each entry exactly as they were sent (``raw``). The other inputs of an attempt are not
in the tables, and are computed: the bytes of the id from its text, and the random seed from these bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from restate_steps._ids import raw_id, seed_of
from restate_steps._protocol.types import MessageType
from restate_steps._protocol.wire import Frame, decode
from restate_steps.errors import ServerError
from restate_steps.server import AdminClient, RestateServer, _sql
from restate_steps.server._process import admin_of
from restate_steps.testing._recording.recorded import RecordedJournal, recorded_from
from restate_steps.testing._simulation.journal import Origin
from restate_steps.testing._simulation.manifest import Target

__all__ = ["export_journal", "frames_of_rows"]

_PROTOCOL: Final = 6
# The first version in which the bytes of an entry are those of the service protocol.
_JOURNAL_VERSION: Final = 2


def export_journal(server: RestateServer | AdminClient | str, invocation_id: str) -> RecordedJournal:
    """Export the journal of an invocation from a real server, to :func:`record` and :func:`replay` it.

    The invocation may be in flight, with any status, or completed. A server keeps the journal of a completed invocation
    for the ``journal_retention`` of its handler or service. This function blocks until the server answers.

    The random seed is computed from the id of the invocation. On a server with ``unique_random_seeds`` this would be
    wrong, so the journal states that the seed is not known.

    A journal has the values that the handler saw. Only the values of headers that carry credentials are removed, so
    review the journal before you commit it to a repository.

    Args:
        server: The server, a client of its admin API, or the URL of that API, for example ``http://127.0.0.1:9070``.
        invocation_id: The id, which starts with ``inv_``.

    Returns:
        The journal; :meth:`RecordedJournal.save` writes it to a file.

    Raises:
        ServerError: The server cannot be reached, does not know the invocation, or has no journal of it.

    Example:
        >>> export_journal("http://127.0.0.1:1", "inv_1hE48kUaAOCi3acv1vMrexTV9iUyzGaabq")
        Traceback (most recent call last):
            ...
        restate_steps.ServerError: cannot look up the invocation ...
    """
    admin = admin_of(server)
    row = admin.invocation(invocation_id)
    rows = admin.query(_sql.messages_of(invocation_id))
    if not rows:
        raise ServerError(
            f"the server has no journal of the invocation {invocation_id!r}, which is {row.get('status')}. The server "
            "keeps journals of completed invocations for the handler's journal_retention, by default for a day."
        )
    frames = frames_of_rows(rows, invocation_id)
    about = admin.version()
    raw = raw_id(invocation_id)
    unique = bool(about.get("features", {}).get("unique_random_seeds", False))
    origin = Origin(
        target=Target(row["target_service_name"], row["target_handler_name"], row.get("target_service_key")),
        invocation_id=invocation_id,
        raw_id=raw,
        protocol=row.get("pinned_service_protocol_version", _PROTOCOL),
        random_seed=None if unique else seed_of(raw),
        idempotency_key=row.get("idempotency_key"),
    )
    return recorded_from(origin, frames, server=str(about["version"]))


def frames_of_rows(rows: Sequence[Mapping[str, Any]], invocation_id: str) -> list[Frame]:
    """Return the messages in rows of ``sys_journal``.

    Raises:
        ServerError: An entry is missing, or its type or version is unknown.
    """
    frames: list[Frame] = []
    for index, row in enumerate(rows):
        entry_type = str(row["entry_type"])
        kind = _kind(entry_type)
        if row["index"] != index or row.get("version") != _JOURNAL_VERSION or kind is None:
            raise ServerError(
                f"the journal of the invocation {invocation_id!r} cannot be exported: entry {index} is not understood "
                f"({entry_type!r}, version {row.get('version')}, index {row['index']}). It was recorded with a version "
                "of the service protocol before 5, or by a server newer than this version of restate-steps."
            )
        # The server omits empty columns, and an entry may have no bytes.
        frame = Frame(kind, bytes.fromhex(row.get("raw", "")))
        decode(frame)
        frames.append(frame)
    return frames


def _kind(entry_type: str) -> MessageType | None:
    what, _, name = entry_type.partition(": ")
    upper = re.sub(r"(?<!^)(?=[A-Z])", "_", name).upper()
    if what == "Notification" and upper != "SIGNAL":
        upper += "_COMPLETION"
    return MessageType.__members__.get(upper)
