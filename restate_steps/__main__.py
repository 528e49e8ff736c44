"""The entry point of ``python -m restate_steps``."""

from __future__ import annotations

import sys

from restate_steps.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    sys.exit(main())
