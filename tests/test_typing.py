"""What the type checker must refuse: `tests/typing/reject_*.py` says so on the line, as ``# error: CODE``.

The files `tests/typing/api_*.py` are the other half: they must pass, in mypy and in pyright, and `make lint` checks
them. Neither half is ever run.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

FOLDER = ROOT / "tests" / "typing"
REJECTED = sorted(FOLDER.glob("reject_*.py"))

Found = list[tuple[int, str]]


def expectations(text: str) -> Found:
    """The lines and codes of the errors that a file expects; several codes are separated by commas."""
    return [
        (number, code.strip())
        for number, line in enumerate(text.splitlines(), 1)
        if (comment := re.search(r"# error: ([a-z, -]+)$", line))
        for code in comment[1].split(",")
    ]


def check(files: list[Path], cache: Path | str) -> dict[str, Found]:
    """Run mypy once over all files, and collect the lines and codes of its errors by the name of the file."""
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml")]
    command += ["--cache-dir", str(cache), "--output", "json", *map(str, files)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert not done.stderr, done.stderr
    found: dict[str, Found] = {path.name: [] for path in files}
    for line in done.stdout.splitlines():
        error = json.loads(line)
        if error["severity"] == "error":
            found.setdefault(Path(error["file"]).name, []).append((error["line"], error["code"]))
    return found


@pytest.fixture(scope="module")
def errors() -> dict[str, Found]:
    """What mypy says about all the files."""
    return check(REJECTED, ROOT / ".mypy_cache")


@pytest.mark.parametrize("path", REJECTED, ids=lambda path: path.stem)
def test_is_rejected_as_expected(path: Path, errors: dict[str, Found]) -> None:
    """Every expected error is found on its line, and no other."""
    expected = expectations(path.read_text())

    assert expected
    assert sorted(set(expected)) == sorted(set(errors[path.name]))


def test_only_the_files_themselves_have_errors(errors: dict[str, Found]) -> None:
    """The package that they use is clean."""
    assert {path.name for path in REJECTED} == set(errors)


def test_checker_tells_an_error_that_is_missing_or_not_expected(tmp_path: Path) -> None:
    """The machinery sees both differences."""
    path = tmp_path / "reject_sample.py"
    path.write_text("x: int = 'a'  # error: assignment\ny: int = 1  # error: assignment, misc\nz: int = 'b'\n")

    assert [(1, "assignment"), (2, "assignment"), (2, "misc")] == expectations(path.read_text())
    assert {"reject_sample.py": [(1, "assignment"), (3, "assignment")]} == check([path], tmp_path / "cache")


def test_every_file_belongs_to_a_half() -> None:
    """A file with another name would be checked by nobody."""
    assert [] == [path.name for path in FOLDER.glob("[!_]*.py") if not path.name.startswith(("api_", "reject_"))]
