"""Run a part of the tests on every supported Python, and with the oldest and newest dependencies: ``make matrix``.

Each environment is a folder in ``.matrix``, with a log beside it:

- ``3.11`` and later: the locked packages on that version of Python;
- ``lowest``: the oldest versions that ``pyproject.toml`` allows for users and tests, on the oldest Python found;
- ``newest``: the newest versions of everything, on the newest Python found.

``make matrix SDK=1.4.0`` or ``SERVER=1.8.0``, or both, tests these versions instead, in an environment of their own,
with everything else as locked.

Each private name that is gone, and each assumption about the server that no longer holds, gets a line.

A version of Python that is not installed is reported as missing. Interpreters are looked up on the path and in pyenv;
the one that runs this module counts too.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from restate_steps.errors import ServerError
from restate_steps.server._binary import cache_dir, server_platform
from restate_steps.server._fetch import fetch_server
from tests.support import ROOT

FOLDER: Final = ROOT / ".matrix"
PYTHONS: Final = ("3.11", "3.12", "3.13", "3.14")
TESTS: Final = (
    "tests/agents/test_agent.py",
    "tests/agents/test_pydantic_ai.py",
    "tests/agents/test_streaming.py",
    "tests/concurrency/test_refused.py",
    "tests/concurrency/test_semantics.py",
    "tests/journals",
    "tests/loop/test_app.py",
    "tests/loop/test_invariants.py",
    "tests/server/test_server_seam.py",
    "tests/test_codec.py",
    "tests/test_compare.py",
    "tests/test_failures.py",
    "tests/test_options.py",
    "tests/test_private_names.py",
    "tests/test_sdk_seam.py",
    "tests/test_serde.py",
    "tests/test_spans.py",
    "tests/test_step.py",
    "tests/test_step_values.py",
    "tests/testing/test_deterministic.py",
    "tests/testing/test_plugin.py",
    "tests/testing/test_simulator.py",
)


@dataclass(frozen=True)
class Environment:
    """What the tests run on.

    Attributes:
        name: Its name: a version of Python, or the choice of dependencies.
        python: The interpreter; None if it is missing.
        sdk: The version of restate-sdk, if it is not the locked one.
        server: The version of restate-server, if it is not the pinned one.
    """

    name: str
    python: Path | None
    sdk: str | None = None
    server: str | None = None

    @property
    def folder(self) -> Path:
        return FOLDER / self.name

    @property
    def log(self) -> Path:
        return FOLDER / f"{self.name}.log"


def find_python(version: str) -> Path | None:
    """Return an interpreter of a version such as 3.12, or None."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    installed = map(str, sorted(pyenv.glob(f"{version}.*/bin/python"), reverse=True))
    for candidate in (f"python{version}", *installed, sys.executable):
        # A shim of pyenv may be on the path for a version that is not active.
        code = "import sys; print(*sys.version_info[:2], sep='.'); print(sys.executable)"
        try:
            done = subprocess.run([candidate, "-c", code], capture_output=True, text=True, check=False)
        except FileNotFoundError:
            continue
        if done.returncode == 0 and done.stdout.split()[0] == version:
            return Path(done.stdout.split()[1])
    return None


def environments() -> list[Environment]:
    """Return every environment there should be, the missing ones too."""
    found = [Environment(version, find_python(version)) for version in PYTHONS]
    there = [each.python for each in found if each.python is not None]
    return [*found, Environment("lowest", there[0]), Environment("newest", there[-1])]


def environment_with(sdk: str | None, server: str | None) -> Environment:
    """Return the environment with other versions, on the Python that runs this module."""
    parts = [f"{name}-{version}" for name, version in (("sdk", sdk), ("server", server)) if version is not None]
    return Environment("-".join(parts), Path(sys.executable), sdk, server)


def set_up(environment: Environment, uv: str) -> bool:
    """Create the environment or bring it up to date, and return whether that worked."""
    python = str(environment.folder / "bin" / "python")
    install = [uv, "pip", "install", "--python", python, "--editable", ".[agents,mcp,server,cli,testing]", "--group"]
    if not environment.folder.exists() and not _run(
        environment, [uv, "venv", "--python", str(environment.python), str(environment.folder)]
    ):
        return False
    if environment.name == "newest":
        return _run(environment, [*install, "dev", "--upgrade"])
    if environment.name == "lowest":
        return _run(environment, [*install, "test", "--upgrade", "--resolution", "lowest-direct"])
    if environment.sdk is not None:
        locked, override = FOLDER / f"{environment.name}.locked.txt", FOLDER / f"{environment.name}.override.txt"
        export = [uv, "export", "--locked", "--quiet", "--all-extras", "--group", "test", "--no-emit-project"]
        if not _run(environment, [*export, "--no-hashes", "--output-file", str(locked)]):
            return False
        # A constraint cannot change what the lock says, and an override also changes what the package asks for.
        override.write_text(f"restate-sdk=={environment.sdk}\n")
        kept = [line for line in locked.read_text().splitlines() if not line.startswith("restate-sdk==")]
        locked.write_text("\n".join(kept))
        limits = ["--constraint", str(locked), "--override", str(override)]
        return _run(environment, [*install, "test", *limits])
    sync = [uv, "sync", "--locked", "--quiet", "--no-build-isolation-package", "restate-steps"]
    return _run(environment, sync, UV_PROJECT_ENVIRONMENT=str(environment.folder))


def _run(environment: Environment, command: Sequence[str], **variables: str) -> bool:
    with environment.log.open("a") as log:
        print("$", *command, file=log, flush=True)
        done = subprocess.run(
            command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **variables}, check=False
        )
    return done.returncode == 0


def fetched(server: str) -> str:
    """Return the path of a version of restate-server, which is fetched if necessary."""
    path = cache_dir() / "restate-server" / server / server_platform() / "restate-server"
    if not path.exists():
        fetch_server(path, version=server, platform=server_platform(), looked_in=[str(path)], progress=True)
    return str(path)


def check(environment: Environment, uv: str, arguments: Sequence[str]) -> tuple[str, bool]:
    """Run the tests in an environment, and return a line about it and whether they have passed."""
    if environment.python is None:
        return "MISSING: no such interpreter on the path or in pyenv", True
    environment.log.write_text("")
    if not set_up(environment, uv):
        return f"FAILED: the packages cannot be installed; see {environment.log.relative_to(ROOT)}", False
    variables = {"COLUMNS": "240"}
    if environment.server is not None:
        try:
            variables["RESTATE_SERVER"] = fetched(environment.server)
        except ServerError as error:
            return f"FAILED: {error}", False
    # First, and without the package, whose import fails if certain names are gone.
    names = _run(environment, [str(environment.folder / "bin" / "python"), "-m", "tests.support.private_names"])
    started = time.monotonic()
    pytest = [str(environment.folder / "bin" / "pytest"), "-p", "no:cacheprovider", "-q", "-n", "auto"]
    pytest += ["-W", "ignore::restate_steps._versions.UntestedVersionWarning"]
    passed = _run(environment, [*pytest, *arguments], **variables) and names
    for line in moved(environment.log.read_text()):
        print(f"{environment.name:8} {line}", flush=True)
    counts = re.findall(r"^=* ?(\d+ .*) in [\d.]+s", environment.log.read_text(), re.MULTILINE)
    said = f"{counts[-1] if counts else 'no test ran'} in {time.monotonic() - started:.0f} s"
    return (said, True) if passed else (f"FAILED: {said}; see {environment.log.relative_to(ROOT)}", False)


def moved(log: str) -> list[str]:
    """Return the lines of a log about what has moved, each once, and then about the other tests of the seams."""
    named = re.findall(r"^(?:E +AssertionError: )?(moved: .*)$", log, re.MULTILINE)
    others = re.findall(r"^FAILED (tests/(?:test_sdk_seam|agents/test_pydantic_ai)\.py::.*)$", log, re.MULTILINE)
    return [*dict.fromkeys(named), *(f"moved: see {test}" for test in others if "moved: " not in test)]


def main() -> int:
    parser = argparse.ArgumentParser(prog="make matrix", description="Run tests in every supported environment.")
    parser.add_argument("--only", action="append", metavar="NAME", help="only this environment; can be repeated")
    parser.add_argument("--sdk", metavar="VERSION", help="test this version of restate-sdk instead")
    parser.add_argument("--server", metavar="VERSION", help="test this version of restate-server instead")
    parser.add_argument("tests", nargs="*", default=TESTS, help="other tests, and after -- options of pytest")
    options = parser.parse_args()
    uv = str(Path(sys.executable).with_name("uv"))
    FOLDER.mkdir(exist_ok=True)
    failed = False
    other = options.sdk is not None or options.server is not None
    for environment in [environment_with(options.sdk, options.server)] if other else environments():
        if options.only and environment.name not in options.only:
            continue
        said, passed = check(environment, uv, options.tests)
        print(f"{environment.name:8} {said}", flush=True)
        failed |= not passed
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
