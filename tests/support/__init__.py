"""Code that several tests share. A helper of one folder of tests stays in that folder."""

from __future__ import annotations

from pathlib import Path
from typing import Final

__all__ = ["ROOT"]

ROOT: Final = Path(__file__).resolve().parents[2]
"""The folder of the repository."""
