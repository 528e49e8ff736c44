"""Export the journal of an invocation from a real server.

``sys_journal`` has the bytes of each entry exactly as they were sent (``raw``). The other inputs of an attempt are not
in the tables, and are computed: the bytes of the id from its text, and the random seed from these bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from restate_steps.errors import ServerError
from restate_steps.server import AdminClient
from restate_steps.server._admin import quoted
from restate_steps.testing._recording.recorded import RecordedJournal, recorded_from
from restate_steps.testing._simulation.journal import Origin
from restate_steps.testing._simulation.server_model import Target
from restate_steps.testing._simulation.wire import Frame, MessageType, decode

__all__ = ["export_journal", "raw_id", "seed_of"]

_PROTOCOL: Final = 6
# The first version in which the bytes of an entry are those of the service protocol.
_JOURNAL_VERSION: Final = 2
_DIGITS: Final = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_ID: Final = re.compile(r"inv_1([0-9a-zA-Z]{11})([0-9a-zA-Z]{22})")
_MASK: Final = 2**64 - 1


def export_journal(server: AdminClient | str, invocation_id: str) -> RecordedJournal:
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
    admin = AdminClient(server) if isinstance(server, str) else server
    row = admin.invocation(invocation_id)
    columns = '"index", entry_type, raw, version'
    rows = admin.query(f'SELECT {columns} FROM sys_journal WHERE id = {quoted(invocation_id)} ORDER BY "index"')
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


def raw_id(invocation_id: str) -> bytes:
    """Return the bytes of an invocation's id: its partition key and its unique part.

    Raises:
        ServerError: The text is not the id of an invocation.

    Example:
        >>> raw_id("inv_1hE48kUaAOCi3acv1vMrexTV9iUyzGaabq").hex()
        '8ea5adc3e86089cd5ce97fe7a9f2f3791ee69ac1a016fa67'
    """
    found = _ID.fullmatch(invocation_id)
    if found is None:
        raise ServerError(
            f"{invocation_id!r} is not the id of an invocation. An id starts with 'inv_1' and has 38 characters."
        )
    return b"".join(_number(part).to_bytes(size, "little") for part, size in zip(found.groups(), (8, 16), strict=True))


def _number(digits: str) -> int:
    number = 0
    for digit in digits:
        number = number * len(_DIGITS) + _DIGITS.index(digit)
    return number


def seed_of(raw: bytes) -> int:
    """Return the random seed that a server gives to an invocation, unless ``unique_random_seeds`` is enabled.

    It is the hash that Rust's ``DefaultHasher`` computes: SipHash-1-3 of the number of the id's bytes and the bytes.

    Example:
        >>> seed_of(raw_id("inv_1hE48kUaAOCi3acv1vMrexTV9iUyzGaabq"))
        17493510548412997302
    """
    return _siphash(len(raw).to_bytes(8, "little") + raw)


def _siphash(data: bytes) -> int:
    # The four words spell "somepseudorandomlygeneratedbytes"; both keys are 0.
    words = [0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573]
    tail = len(data) % 8
    blocks = [int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data) - tail, 8)]
    blocks.append(int.from_bytes(data[len(data) - tail :], "little") | (len(data) & 0xFF) << 56)
    for block in blocks:
        words[3] ^= block
        _round(words)
        words[0] ^= block
    words[2] ^= 0xFF
    for _ in range(3):
        _round(words)
    return words[0] ^ words[1] ^ words[2] ^ words[3]


def _round(v: list[int]) -> None:
    v[0] = (v[0] + v[1]) & _MASK
    v[1] = _rotated(v[1], 13) ^ v[0]
    v[0] = _rotated(v[0], 32)
    v[2] = (v[2] + v[3]) & _MASK
    v[3] = _rotated(v[3], 16) ^ v[2]
    v[0] = (v[0] + v[3]) & _MASK
    v[3] = _rotated(v[3], 21) ^ v[0]
    v[2] = (v[2] + v[1]) & _MASK
    v[1] = _rotated(v[1], 17) ^ v[2]
    v[2] = _rotated(v[2], 32)


def _rotated(word: int, by: int) -> int:
    return (word << by | word >> (64 - by)) & _MASK
