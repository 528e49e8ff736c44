"""``restate-steps init``: write a small project."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Final

import click

__all__ = ["init"]

_TEMPLATES: Final = Path(__file__).with_name("templates")
_SUFFIX: Final = ".template"
# See https://packaging.python.org/en/latest/specifications/name-normalization.
_NAME: Final = re.compile(r"[a-z0-9]|[a-z0-9][a-z0-9._-]*[a-z0-9]", re.IGNORECASE)


@click.command(short_help="Write a small project with tests.")
@click.argument("name", metavar="[NAME]", default=".")
@click.option("--agent", is_flag=True, help="Write an agent instead of a service.")
def init(name: str, agent: bool) -> None:
    """Write a small project with tests into the folder NAME, or into the current one. No file is overwritten."""
    folder = Path(name)
    project = folder.resolve().name
    if not _NAME.fullmatch(project):
        raise click.BadParameter(
            f"{project!r} cannot be the name of a project. Use letters, digits, '-' and '_'.", param_hint="NAME"
        )
    templates = sorted((_TEMPLATES / ("agent" if agent else "service")).glob(f"*{_SUFFIX}"))
    texts = {folder / each.name.removesuffix(_SUFFIX): each.read_text("utf-8") for each in templates}
    # A link to nothing is a file that exists, too.
    if existing := [path.name for path in texts if os.path.lexists(path)]:
        raise click.UsageError(f"{folder} already has {', '.join(existing)}. Choose another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        # "x" because another process may have created the file since.
        with path.open("x", encoding="utf-8") as file:
            file.write(text.replace("{name}", project) if path.suffix != ".py" else text)
        click.echo(f"wrote {path}")
    go_there = "" if folder.resolve() == Path.cwd() else f"cd {shlex.quote(name)} && "
    click.echo(f"run it:  {go_there}restate-steps dev app.py")
    click.echo(f"test it: {go_there}pytest")
