"""Find the private names of libraries that are gone, in the versions that are installed here.

    python -m tests.support.private_names

The names are those of the table in ``docs/design.md``. Each one that is gone gets a line that says where it is used,
what for, and what happens without it. This module does not import the package, whose import may fail without a name.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
MODULES: Final = {
    "restate": (
        "restate.server_context",
        "restate.vm",
        "restate.server_types",
        "restate._internal",
        "restate.handler",
        "restate.service",
        "restate.server",
    ),
    "asyncio": ("asyncio",),
    "anyio": ("anyio._backends._asyncio",),
    "pydantic_ai": (
        "pydantic_ai",
        "pydantic_ai.durable_exec",
        "pydantic_ai.durable_exec._utils",
        "pydantic_ai.toolsets",
        "pydantic_ai.tools",
        "pydantic_ai.mcp",
        "pydantic_ai.capabilities",
        "pydantic_ai.capabilities.hooks",
        "pydantic_ai._system_prompt",
    ),
    "pydantic_ai_harness": ("pydantic_ai_harness._monty_exec",),
}
"""Where the names of each library are looked up."""

DISTRIBUTIONS: Final = {
    "restate": "restate-sdk",
    "anyio": "anyio",
    "pydantic_ai": "pydantic-ai-slim",
    "pydantic_ai_harness": "pydantic-ai-harness",
}

_SEAMS: Final = ("restate_steps/_sdk/", "restate_steps/agents/_pydantic_ai.py")


@dataclass(frozen=True)
class PrivateName:
    """A private name.

    Attributes:
        library: The top-level module of its library.
        path: The name, with its class or module if it has one.
        used_for: What it is used for.
        without: What happens if it is gone.
    """

    library: str
    path: str
    used_for: str
    without: str

    def __str__(self) -> str:
        return f"{self.library}: {self.path}"

    @property
    def is_there(self) -> bool:
        """Whether the installed version of the library has it."""
        return any(_has(module, self.path.split(".")) for module in _modules(self.library))

    @property
    def is_optional(self) -> bool:
        """Whether the library is not installed, or this version of Python does not have the name yet."""
        missing = self.library in DISTRIBUTIONS and _version_of(self.library) is None
        return missing or (self.path == "tasks._swap_current_task" and sys.version_info < (3, 12))

    @property
    def used_in(self) -> list[str]:
        """The files of the package that use it."""
        word = re.compile(rf"(?<!\w){re.escape(self.path.rpartition('.')[2])}(?!\w)")
        files = [file for file, code in _sources().items() if word.search(code)]
        # Short names are common words elsewhere.
        return [file for file in files if file.startswith(_SEAMS)] or files

    @property
    def report(self) -> str:
        """The line about it, if it is gone."""
        library = DISTRIBUTIONS.get(self.library, "Python")
        found = _version_of(self.library) or sys.version.split()[0]
        return (
            f"moved: {library} {found} has no {self.path}. Used in: {', '.join(self.used_in)}. "
            f"Used for: {self.used_for} Without it: {self.without}"
        )


def private_names() -> Iterator[PrivateName]:
    """The names of the table."""
    page = (ROOT / "docs" / "design.md").read_text()
    table = page[page.index("## Private names") :].partition("\n## One agent run")[0]
    used_for = without = ""
    for library, names, here, then in re.findall(r"^\| (\w+): (.*?) \| (.*?) \| (.*?) \|$", table, re.MULTILINE):
        used_for = used_for if here == "As above." else here
        without = without if then == "As above." else then
        owner = ""
        for path in re.findall(r"`([\w.]+)`", names):
            # `VMWrapper.sys_run`, `do_progress`: the second has the owner of the first, unless it is a class itself.
            if "." in path:
                owner = path.rpartition(".")[0]
            elif owner and path[0].islower() | path.startswith("_"):
                path = f"{owner}.{path}"
            yield PrivateName(library, path, used_for, without)


def moved() -> list[str]:
    """A line for each name that is gone."""
    return [name.report for name in private_names() if not name.is_optional and not name.is_there]


def _modules(library: str) -> Iterator[ModuleType]:
    for module in MODULES[library]:
        try:
            yield importlib.import_module(module)
        except ImportError:
            # A module that is gone has no names.
            continue


def _has(found: Any, path: list[str]) -> bool:
    if not path:
        return True
    if hasattr(found, path[0]):
        return _has(getattr(found, path[0]), path[1:])
    # Attributes that a constructor sets are not on the class.
    return len(path) == 1 and inspect.isclass(found) and any(path[0] in _attributes(cls) for cls in found.__mro__)


def _attributes(cls: type) -> set[str]:
    names = {*getattr(cls, "__annotations__", {}), *getattr(cls, "__slots__", ())}
    try:
        source = inspect.getsource(cls)
    except (OSError, TypeError):
        return names
    return names | set(re.findall(r"\bself\.(\w+)\b[^=\n]*=[^=]", source))


@functools.cache
def _sources() -> dict[str, str]:
    """The source of each file of the package, without its docstring, which may name what others use."""
    files = sorted((ROOT / "restate_steps").rglob("*.py"))
    return {
        str(file.relative_to(ROOT)): re.sub(r'\A""".*?"""', "", file.read_text(), flags=re.DOTALL) for file in files
    }


def _version_of(library: str) -> str | None:
    try:
        return version(DISTRIBUTIONS[library])
    except (KeyError, PackageNotFoundError):
        return None


if __name__ == "__main__":
    lines = moved()
    print(*lines or ["every private name is there"], sep="\n")
    sys.exit(bool(lines))
