"""``make matrix`` finds interpreters, and reports those that are missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.matrix import TESTS, Environment, check, environment_with, find_python, moved

CURRENT = "{}.{}".format(*sys.version_info)


def script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder in which interpreters are looked up."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    return tmp_path


def test_an_interpreter_on_the_path(folder: Path) -> None:
    """It is taken if it has the version that its name promises."""
    script(folder / "python3.99", "echo 3.99; echo /there/python3.99")

    assert Path("/there/python3.99") == find_python("3.99")


def test_an_interpreter_of_pyenv_behind_a_shim(folder: Path) -> None:
    """The shim of an inactive version fails, and the interpreter itself is found."""
    script(folder / "python3.99", "exit 127")
    script(folder / "pyenv" / "versions" / "3.99.1" / "bin" / "python", "echo 3.99; echo /pyenv/python")

    assert Path("/pyenv/python") == find_python("3.99")


def test_the_interpreter_that_runs_the_tests(folder: Path) -> None:
    """It counts, even if it is not on the path."""
    assert Path(sys.executable) == find_python(CURRENT)


def test_a_missing_interpreter_is_reported(folder: Path) -> None:
    """It is not a failure, but its line says that nothing was tested."""
    assert find_python("3.99") is None
    assert ("MISSING: no such interpreter on the path or in pyenv", True) == check(Environment("3.99", None), "uv", ())


def test_its_tests_exist() -> None:
    """A file that moves must move here too."""
    assert [] == [test for test in TESTS if not (ROOT / test).exists()]


def test_another_version_is_one_command() -> None:
    """`make matrix SDK=1.4.0 SERVER=1.8.0` tests these versions, in an environment of their own."""
    made = subprocess.run(
        ["make", "--dry-run", "matrix", "SDK=1.4.0", "SERVER=1.8.0"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )

    assert "-m tests.support.matrix --sdk 1.4.0 --server 1.8.0" in made.stdout
    assert Environment("sdk-1.4.0-server-1.8.0", Path(sys.executable), "1.4.0", "1.8.0") == environment_with(
        "1.4.0", "1.8.0"
    )
    assert "sdk-1.4.0" == environment_with("1.4.0", None).name


def test_what_has_moved_is_taken_from_the_log(tmp_path: Path) -> None:
    """Each line is shown once, although pytest and the check before it both print it."""
    line = "moved: restate-sdk 1.4.0 has no VMWrapper.vm. Used in: restate_steps/_sdk/_port.py."
    test = tmp_path / "tests" / "test_sdk_seam.py"
    test.parent.mkdir()
    test.write_text(f"def test_names():\n    assert False, {line!r}\n\ndef test_other():\n    raise TypeError('new')\n")
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, test],
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "240"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert [
        line,
        "moved: see tests/test_sdk_seam.py::test_other - TypeError: new",
    ] == moved(f"{line}\n{ran.stdout}")
