"""``restate-steps completion``: the script that lets a shell complete commands and options."""

from __future__ import annotations

import click

__all__ = ["completion"]

_INSTALL = """Print the script that completes commands and options in SHELL: bash, zsh or fish.

To install it, add the line for your shell to its configuration:

\b
  ~/.bashrc  eval "$(restate-steps completion bash)"
  ~/.zshrc   eval "$(restate-steps completion zsh)"

\b
For fish, write it to a file once:
  restate-steps completion fish > ~/.config/fish/completions/restate-steps.fish
"""


@click.command(help=_INSTALL, short_help="Print the script for completion in a shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    from click.shell_completion import get_completion_class

    program = context.find_root()
    found = get_completion_class(shell)
    assert found is not None, shell
    click.echo(found(program.command, {}, "restate-steps", "_RESTATE_STEPS_COMPLETE").source())
