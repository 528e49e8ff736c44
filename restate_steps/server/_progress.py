"""Show the progress of a download on stderr: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib.util import find_spec

__all__ = ["download_progress"]

_LINE_EVERY = 5.0
_MEGABYTE = 1_000_000


@contextmanager
def download_progress(
    what: str, expected: int, *, enabled: bool = True
) -> Generator[Callable[[int], None], None, None]:
    """Show the progress of a download until the block ends.

    Args:
        what: The name of the download, for example ``restate-server 1.7.12``.
        expected: The approximate size, in bytes.
        enabled: Whether to show anything.

    Yields:
        A function that takes the number of bytes received so far.
    """
    if not enabled:
        yield lambda _: None
        return
    report = _bar if sys.stderr.isatty() and find_spec("rich") is not None else _lines
    with report(what, expected) as update:
        yield update


@contextmanager
def _bar(what: str, expected: int) -> Generator[Callable[[int], None], None, None]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("fetching {task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=expected)

        def update(received: int) -> None:
            bar.update(task, completed=min(received, expected))

        yield update
        bar.update(task, completed=expected)


@contextmanager
def _lines(what: str, expected: int) -> Generator[Callable[[int], None], None, None]:
    started = last = time.monotonic()
    print(f"fetching {what} (about {expected // _MEGABYTE} MB)", file=sys.stderr, flush=True)

    def update(received: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _LINE_EVERY:
            last = now
            print(f"fetching {what}: {received // _MEGABYTE} MB so far", file=sys.stderr, flush=True)

    yield update
    print(f"fetched {what} in {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)
