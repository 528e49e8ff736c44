"""Find where today's code diverges from a journal, and write it to a file as a JSON list of lines.

Run as ``python -m restate_steps._dev.divergence APP JOURNAL OUTPUT``: the current code must be imported into a new
process, which may print something.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from restate_steps.server._load import load_app
from restate_steps.testing import ReplayDifferenceError, load_journals, replay

__all__ = ["divergence"]


def divergence(target: str, journal: str) -> list[str]:
    """Return the difference in a few lines; empty if there is none."""
    try:
        replay(load_journals(journal), load_app(target).app)
    except ReplayDifferenceError as error:
        place = f" ({error.line})" if error.line else ""
        at = f"At entry {error.entry} its" if error.entry is not None else "Its"
        return [f"{at} journal has:  {error.recorded or 'nothing more'}", f"The code now does:  {error.today}{place}"]
    return []


if __name__ == "__main__":
    Path(sys.argv[3]).write_text(json.dumps(divergence(sys.argv[1], sys.argv[2])))
