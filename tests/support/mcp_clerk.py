"""An MCP server on stdio, for tests: ``mcp_clerk.py LEDGER``. It notes in the ledger what happens to it."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

(ledger,) = sys.argv[1:]
server = MCPServer("clerk", instructions="Ask for one thing at a time.")


def note(word: str) -> None:
    with Path(ledger).open("a") as file:
        file.write(f"{word}\n")


@server.tool()
def file(name: str) -> str:
    """File a paper."""
    note(f"file({name})")
    return f"filed {name}"


@server.tool()
def shred(name: str) -> str:
    """Shred a paper, unless it is needed."""
    note(f"shred({name})")
    if name == "contract":
        raise ToolError("the contract is needed")
    return f"shredded {name}"


@server.tool()
def weigh(name: str) -> str:
    """Weigh a paper, which takes a while."""
    note(f"weigh({name})")
    time.sleep(0.3)
    return f"{name} is light"


note("up")
server.run("stdio")
note("down")
