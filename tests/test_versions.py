"""Versions that this release was not tested with: one sentence about the SDK at import, and about the server once."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from restate_steps import UntestedVersionWarning, _versions
from restate_steps._versions import TESTED_SDK, TESTED_SERVER, is_tested
from restate_steps.server import SERVER_VERSION
from restate_steps.server._doctor import examine
from tests.support import ROOT
from tests.support.harness import Serve
from tests.support.shop import shop as service

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def use(tmp_path: Path, installed: str, program: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a program with an SDK that says it is another version."""
    (tmp_path / "sitecustomize.py").write_text(f"import restate._internal as sdk\nsdk.SDK_VERSION = {installed!r}\n")
    path = tmp_path / "program.py"
    path.write_text(program)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    return subprocess.run(
        [sys.executable, *options, path], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("statement", ["from restate_steps import durable_step", "import restate_steps.step"])
def test_an_unknown_sdk_is_one_sentence_at_import(tmp_path: Path, statement: str) -> None:
    """It names both versions and what to do, once, at the line of the import."""
    done = use(tmp_path, "1.4.0", f"{statement}\n{statement}\nimport restate_steps.concurrency\n")

    assert 0 == done.returncode, done.stderr
    [line] = [line for line in done.stderr.splitlines() if "Warning" in line]
    assert line == (
        f"{tmp_path / 'program.py'}:1: UntestedVersionWarning: restate-sdk 1.4.0 is installed, but this release of "
        f"restate-steps was tested with {TESTED_SDK}, so install restate-sdk {TESTED_SDK}, or a release of "
        "restate-steps that knows 1.4.0."
    )


def test_it_can_be_silenced(tmp_path: Path) -> None:
    """By its public class, which can be imported without the warning."""
    program = "import warnings, restate_steps\n"
    program += "warnings.simplefilter('ignore', restate_steps.UntestedVersionWarning)\n"
    done = use(tmp_path, "1.4.0", program + "from restate_steps import durable_step\n")

    assert ("", 0) == (done.stderr, done.returncode)


@pytest.mark.parametrize("installed", ["1.3.0", "1.3.9"])
def test_a_tested_sdk_is_not_mentioned(tmp_path: Path, installed: str) -> None:
    done = use(tmp_path, installed, "from restate_steps import durable_step\n", "-W", "error")

    assert ("", 0) == (done.stderr, done.returncode)


@pytest.mark.parametrize(
    ("found", "series", "expected"),
    [("1.3.0", "1.3", True), ("1.3.1rc1", "1.3", True), ("1.30.0", "1.3", False), ("2.3.0", "1.3", False)],
)
def test_a_series_is_its_first_two_numbers(found: str, series: str, expected: bool) -> None:
    assert expected is is_tested(found, series)


def test_the_dependency_is_bound_to_what_was_tested() -> None:
    """The SDK that pip may install is the one that is not warned about, and the same goes for the pinned server."""
    [sdk] = [each for each in map(Requirement, PROJECT["dependencies"]) if each.name == "restate-sdk"]
    major, minor = map(int, TESTED_SDK.split("."))

    assert sdk.specifier.contains(f"{TESTED_SDK}.99")
    assert not sdk.specifier.contains(Version(f"{major}.{minor + 1}.0"))
    assert is_tested(SERVER_VERSION, TESTED_SERVER)


@pytest.fixture
def forgotten() -> Iterator[None]:
    """Let a warning about a server that was given before be given again."""
    _versions.warn_about_server.cache_clear()
    yield
    _versions.warn_about_server.cache_clear()


@pytest.mark.usefixtures("forgotten")
def test_an_unknown_server_is_one_sentence_at_registration(env_factory: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given once, however often an application is registered."""
    monkeypatch.setattr(_versions, "TESTED_SERVER", "1.6")

    def register_twice() -> str:
        env = env_factory(service)
        env.server.admin.register(env.app_server.url)
        return str(env.server.admin.version()["version"])

    with pytest.warns(UntestedVersionWarning) as caught:
        found = register_twice()

    assert [
        f"the server is restate-server {found}, but this release of restate-steps was "
        "tested with 1.6, so test your handlers on this server before you rely on it."
    ] == [str(each.message) for each in caught]


@pytest.mark.usefixtures("forgotten")
def test_the_tested_server_is_not_mentioned(env_factory: Serve) -> None:
    with warnings.catch_warnings(record=True) as caught:
        env_factory(service)

    assert [] == [each for each in caught if each.category is UntestedVersionWarning]


def test_doctor_says_which_sdk_was_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("restate_steps.server._doctor.TESTED_SDK", "1.2")

    [found] = [check for check in examine() if check.subject == "restate-sdk"]

    assert found.ok
    assert found.detail.endswith("; tested with 1.2")
