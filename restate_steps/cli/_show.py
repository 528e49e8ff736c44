"""Show invocations as text or JSON."""

from __future__ import annotations

import base64
import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import click

from restate_steps._printable import printable
from restate_steps.cli._text import columns, cut, middle_cut, pad
from restate_steps.server._report import EntryReport, InvocationReport, failure_in
from restate_steps.server._waits import Wait

__all__ = ["json_text", "report_lines", "table"]

_UNITS: Final = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
_COLOURS: Final = {"backing-off": "red", "paused": "red", "running": "green", "failed": "red", "succeeded": "green"}
_GAP: Final = "  "
_NAME_WIDTH: Final = 28
_NARROWEST: Final = 80


def json_text(found: Any) -> str:
    """Return rows or a report as JSON. Bytes that are not JSON become ``{"base64": ...}``."""
    return json.dumps(found, indent=2, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, InvocationReport):
        row = {"invocation": dict(value.row), "endpoint": value.endpoint}
        return row | {"waits_for": [*value.waits], "journal": [*value.journal]}
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    return dataclasses.asdict(value)


def table(rows: Sequence[Mapping[str, Any]], shorts: Mapping[str, str]) -> Iterator[str]:
    """Return the lines of a table of invocations, which fit the terminal.

    Args:
        rows: Rows of ``sys_invocation``.
        shorts: The short form of each id.
    """
    heads = ("ID", "TARGET", "STATUS", "AGE", "TRY", "LAST FAILURE")
    lines = [heads, *((shorts[row["id"]], *_cells(row)) for row in rows)]
    widths = [max(columns(line[column]) for line in lines) for column in range(len(heads))]
    free = _width() - sum(widths[column] for column in (0, 2, 3, 4)) - len(_GAP) * (len(heads) - 1)
    # A target names the invocation, so it gets more of the line than a failure.
    widths[1] = min(widths[1], max(free - widths[5], free * 3 // 5))
    widths[5] = free - widths[1]
    for line in lines:
        fitted = [pad(middle_cut(text, width), width) for text, width in zip(line[:5], widths, strict=False)]
        fitted[2] = click.style(fitted[2], fg=_COLOURS.get(line[2]))
        yield _GAP.join([*fitted, cut(line[5], widths[5])]).rstrip()


def _cells(row: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    failure = failure_in(row)[1]
    return (
        printable(row["target"]),
        _status(row),
        _age(row["created_at"]),
        str(row.get("retry_count") or ""),
        printable(failure.error) if failure else "",
    )


def report_lines(report: InvocationReport, *, full: bool) -> Iterator[str]:
    """Return the lines about an invocation.

    Args:
        report: The invocation.
        full: Whether to leave nothing out of values and tracebacks.
    """
    yield f"{printable(report.row['target'])}{_GAP}{report.row['id']}"
    yield _fact("status", _styled_status(report.row))
    for name, lines in _facts(report, full=full):
        head, *more = map(printable, lines)
        yield _fact(name, head)
        yield from (f"{'':15}{line}" for line in more)
    if not report.journal:
        return
    all_names = [printable(each.name or "") for each in report.journal]
    names = all_names if full else [middle_cut(each, _NAME_WIDTH) for each in all_names]
    name_width = min(max(map(columns, names)), _NAME_WIDTH)
    types = max(len(each.type) for each in report.journal)
    number = len(str(report.journal[-1].index))
    yield "  " + click.style("journal", dim=True)
    for entry, name in zip(report.journal, names, strict=True):
        head = f"  {entry.index:>{number}}  {entry.type:<{types}}  {pad(name, name_width)}  "
        yield from _entry_lines(head, entry, report, full=full)


def _fact(name: str, value: str) -> str:
    return f"  {click.style(name.ljust(13), dim=True)}{value}"


def _styled_status(row: Mapping[str, Any]) -> str:
    attempts, status = row.get("retry_count"), _status(row)
    tries = f", attempt {attempts}" if attempts and status in ("running", "backing-off", "paused") else ""
    return click.style(status, fg=_COLOURS.get(status)) + tries


def _facts(report: InvocationReport, *, full: bool) -> Iterator[tuple[str, list[str]]]:
    row = report.row
    source = row.get("invoked_by_target") or row.get("invoked_by", "")
    caller = f" ({row['invoked_by_id']})" if row.get("invoked_by_id") else ""
    yield "created", [f"{_at(row['created_at'])}, by {source}{caller}"]
    if ended := row.get("completed_at"):
        yield "completed", [_at(ended)]
    if key := row.get("idempotency_key"):
        yield "idempotency", [key]
    if report.deployment:
        sdk = row.get("last_attempt_server")
        yield "deployment", [_GAP.join(filter(None, [report.deployment, report.endpoint, sdk]))]
    for wait in report.waits:
        yield "waits for", [_wait(wait)]
    if row["status"] == "running" and not report.waits:
        yield "waits for", ["its code, or an awakeable (known when it is suspended)"]
    if report.failure is not None:
        name = "failure" if row["status"] == "completed" else "last failure"
        rt_code = row.get("last_failure_error_code")
        code = f"[{report.code}{f' {rt_code}' if rt_code else ''}] " if report.code is not None else ""
        lines = [code + report.failure.line, *report.failure.details.splitlines()]
        if full:
            text = str(row.get("completion_failure") or row.get("last_failure")).partition("] ")[2]
            lines = (code + text).splitlines() or [""]
        else:
            lines += [frame.described for frame in report.failure.frames]
        yield name, lines


def _wait(wait: Wait) -> str:
    text = f"{wait.text} {wait.id}" if wait.id is not None else wait.text
    return f"{text}, {_at(wait.until)}" if wait.until is not None else text


def _entry_lines(head: str, entry: EntryReport, report: InvocationReport, *, full: bool) -> Iterator[str]:
    text = _outcome(entry, report)
    if full and entry.failure is None and not isinstance(entry.value, bytes) and entry.value is not None:
        text = json.dumps(entry.value, indent=2, ensure_ascii=False)
    first, *more = map(printable, text.splitlines() or [""])
    yield (f"{head}{first}" if full else cut(head + first, _width())).rstrip()
    if full:
        yield from (f"      {line}" for line in more)


def _outcome(entry: EntryReport, report: InvocationReport) -> str:
    """Return the value of an entry, or its failure, or why it has none."""
    if entry.failure is not None:
        return f"failed: [{entry.failure.code}] {entry.failure.message}"
    if not entry.completed:
        is_failing = report.failure is not None and entry.type == "Run" and report.failure.step == entry.name
        waiting = f"until {_time(entry.until)}" if entry.until else "not completed"
        return "failing" if is_failing else waiting
    if entry.value is None:
        return _GAP.join(filter(None, [entry.invocation, entry.until and _time(entry.until)]))
    return repr(entry.value) if isinstance(entry.value, bytes) else json.dumps(entry.value, ensure_ascii=False)


def _status(row: Mapping[str, Any]) -> str:
    """Return the status; for a completed invocation, its result."""
    status = str(row["status"])
    if status == "completed":
        return {"success": "succeeded", "failure": "failed"}.get(str(row.get("completion_result")), status)
    return status


def _at(timestamp: str) -> str:
    """Return a time, and its distance from now."""
    seconds = _seconds_since(timestamp)
    distance = f"{_duration(seconds)} ago" if seconds >= 0 else f"in {_duration(-seconds)}"
    return f"{_time(timestamp)} ({distance})"


def _time(timestamp: str) -> str:
    """Return a time in UTC, without fractions of a second.

    Example:
        >>> _time("2026-11-29T06:01:01.339Z")
        '2026-11-29 06:01:01Z'
    """
    return f"{datetime.fromisoformat(timestamp):%Y-%m-%d %H:%M:%SZ}"


def _age(timestamp: str) -> str:
    return _duration(max(0.0, _seconds_since(timestamp)))


def _seconds_since(timestamp: str) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(timestamp)).total_seconds()


def _duration(seconds: float) -> str:
    """Return a duration in its largest unit.

    Example:
        >>> _duration(59.4), _duration(7300)
        ('59s', '2h')
    """
    unit, size = next(((unit, size) for unit, size in _UNITS if seconds >= size), _UNITS[-1])
    return f"{int(seconds // size)}{unit}"


def _width() -> int:
    return max(_NARROWEST, shutil.get_terminal_size((_NARROWEST, 24)).columns)
