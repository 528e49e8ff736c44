"""Run the program, and report its errors."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TextIO, cast

import click

from restate_steps.cli._app import dev, register, serve
from restate_steps.cli._approvals import approvals
from restate_steps.cli._completion import completion
from restate_steps.cli._group import Group
from restate_steps.cli._init import init
from restate_steps.cli._invocations import invocations
from restate_steps.cli._journal import journal
from restate_steps.cli._machine import doctor, server

__all__ = ["program", "run"]

_NAME = "restate-steps"
_USAGE_ERROR = 2
_INTERRUPTED = 130


def run(arguments: Sequence[str] | None) -> int:
    """Run a command, and return its exit code. See :func:`restate_steps.cli.main`."""
    # A file name or a value may have characters that a terminal or a pipe cannot show.
    for stream in (sys.stdout, sys.stderr):
        if (reconfigure := getattr(stream, "reconfigure", None)) is not None:
            reconfigure(errors="backslashreplace")
    try:
        code: int | None = program.main(arguments, prog_name=_NAME, standalone_mode=False)
        # A process may have none, for example a daemon.
        if (stdout := cast("TextIO | None", sys.stdout)) is not None:
            stdout.flush()
    except click.ClickException as error:
        return _usage_error(error)
    except (KeyboardInterrupt, click.Abort):
        return _INTERRUPTED
    except BrokenPipeError:
        return _pipe_closed()
    except OSError as error:
        return _fail(_described(error))
    except Exception as error:
        return _code_of(error)
    return code or 0


@click.group(name=_NAME, cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="restate-steps", message="restate-steps %(version)s")
@click.pass_context
def program(context: click.Context) -> None:
    """Develop, serve and operate durable handlers for Restate."""
    # None stands for colours on a terminal. See https://no-color.org.
    context.color = False if os.environ.get("NO_COLOR") else None


for _command in (init, dev, serve, register, server, invocations, approvals, journal, doctor, completion):
    program.add_command(_command)


def _usage_error(error: click.ClickException) -> int:
    """Report a mistake in the command line in the form of this program's other errors."""
    message = " ".join(error.format_message().split())
    # click puts a suggestion in parentheses if it has several.
    message = message.replace("?)", "?").replace("(Did you mean", "Did you mean").rstrip(".")
    context = error.ctx if isinstance(error, click.UsageError) else None
    where = f" For help, run: {context.command_path} --help" if context is not None else ""
    end = "" if message.endswith("?") else "."
    _fail(f"{message[0].lower()}{message[1:]}{end}{where}")
    return error.exit_code


def _code_of(error: Exception) -> int:
    from restate_steps.errors import StepsError
    from restate_steps.server._load import TargetError

    if not isinstance(error, StepsError):
        raise error
    _fail(str(error))
    return _USAGE_ERROR if isinstance(error, TargetError) else 1


def _fail(message: str) -> int:
    click.echo(f"error: {message}", err=True)
    return 1


def _described(error: OSError) -> str:
    reason = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {reason}" if error.filename is not None else reason


def _pipe_closed() -> int:
    """End quietly after the reader of a pipe has left, as ``head`` does."""
    # The interpreter flushes stdout at exit, which would fail again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
