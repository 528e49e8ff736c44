"""The public names are those of ``public_api.txt``, with the same signatures.

Run ``make api`` to write the file again.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import griffe
import pytest

from tests.support import ROOT

SNAPSHOT: Final = Path(__file__).with_name("public_api.txt")
MODULES: Final = ("restate_steps", "restate_steps.agents", "restate_steps.server", "restate_steps.testing")


def api(package: griffe.Module, modules: tuple[str, ...] = MODULES) -> list[str]:
    """Return a line for each public name of the modules, and for each public member of a class."""
    return [line for module in modules for line in _module(_find(package, module))]


def load(folder: Path, package: str) -> griffe.Module:
    """Read the source of a package, without importing it."""
    found = griffe.load(package, search_paths=[folder], resolve_aliases=True)
    assert isinstance(found, griffe.Module)
    return found


def _find(package: griffe.Module, path: str) -> griffe.Module:
    found = package if path == package.path else package[path.removeprefix(f"{package.path}.")]
    assert isinstance(found, griffe.Module)
    return found


def _module(module: griffe.Module) -> Iterator[str]:
    assert module.exports
    for name in sorted(map(str, module.exports)):
        yield from _object(f"{module.path}.{name}", _target(module.members[name]))


def _target(found: griffe.Object | griffe.Alias) -> griffe.Object:
    return found.final_target if isinstance(found, griffe.Alias) else found


def _object(path: str, found: griffe.Object) -> Iterator[str]:
    if isinstance(found, griffe.Class):
        yield from _class(path, found)
    elif isinstance(found, griffe.Function):
        for function in found.overloads or [found]:
            kind = "async def" if "async" in function.labels else "def"
            yield f"{kind} {function.signature(name=path)}"
    elif isinstance(found, griffe.Attribute):
        kind = "property " if "property" in found.labels else ""
        yield f"{kind}{path}" + (f": {found.annotation}" if found.annotation else "")


def _class(path: str, found: griffe.Class) -> Iterator[str]:
    decorators = "".join(f"@{each.value} " for each in found.decorators)
    yield f"{decorators}class {path}({', '.join(map(str, found.bases))})"
    for name, member in sorted(found.all_members.items()):
        if _is_public(name, member):
            yield from _object(f"{path}.{name}", _target(member))


def _is_public(name: str, member: griffe.Object | griffe.Alias) -> bool:
    if name in ("__init__", "__call__"):
        return True
    # Other special methods say how a class is made, not how it is used.
    return not name.startswith("_") and not member.is_imported


def test_public_api() -> None:
    """A change of a public name or signature is made on purpose, and told to the users."""
    difference = difflib.unified_diff(
        SNAPSHOT.read_text().splitlines(), api(load(ROOT, "restate_steps")), "before", "now", lineterm="", n=0
    )

    if changes := "\n".join(difference):
        pytest.fail(
            f"The public API has changed:\n\n{changes}\n\nIf that is intended, name the change in CHANGELOG.md, and "
            "write the list again: make api",
            pytrace=False,
        )


def parameters() -> list[tuple[str, str, str]]:
    """Return the signature, the name and the type of each parameter of a public function."""
    signatures = [line for line in SNAPSHOT.read_text().splitlines() if re.match(r"(async )?def ", line)]
    return [
        (line.partition("(")[0], name, annotation.strip())
        for line in signatures
        for name, annotation in re.findall(r"(\*{0,2}\w+): ((?:[^,=()\[\]]|\[[^\]]*\])+)", line)
    ]


def test_durations_are_seconds_or_timedeltas_everywhere() -> None:
    """A user need not remember which function takes which."""
    durations = [each for each in parameters() if "timedelta" in each[2] or re.search("timeout|delay", each[1])]

    assert 15 < len(durations)
    assert [] == [each for each in durations if not {"timedelta", "float"} <= set(re.findall(r"\w+", each[2]))]


def test_no_signature_hides_its_options() -> None:
    """`help()` and editors show each option with its type and default."""
    catch_all = [each for each in parameters() if each[1].startswith("**")]

    assert {("**kwargs", "P.kwargs")} == {each[1:] for each in catch_all}


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A small package."""
    (tmp_path / "shop.py").write_text(
        "from dataclasses import dataclass\n"
        "__all__ = ['Order', 'pay']\n"
        "async def pay(order: 'Order', *, twice: bool = False) -> str: ...\n"
        "def hidden() -> None: ...\n"
        "class _Base:\n    def cancel(self) -> None: ...\n    def _undo(self) -> None: ...\n"
        "@dataclass(frozen=True)\nclass Order(_Base):\n    id: str\n    count: int = 1\n"
        "    @property\n    def total(self) -> int: ...\n"
    )
    return tmp_path


def test_lines(shop: Path) -> None:
    """Each public name has a line, and each member that users see, wherever it is defined."""
    assert [
        "@dataclass(frozen=True) class shop.Order(_Base)",
        "def shop.Order.__init__(id: str, count: int = 1) -> None",
        "def shop.Order.cancel() -> None",
        "shop.Order.count: int",
        "shop.Order.id: str",
        "property shop.Order.total: int",
        "async def shop.pay(order: Order, *, twice: bool = False) -> str",
    ] == api(load(shop, "shop"), ("shop",))


if __name__ == "__main__":
    SNAPSHOT.write_text("".join(f"{line}\n" for line in api(load(ROOT, "restate_steps"))))
