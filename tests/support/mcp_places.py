"""An MCP server on stdio with one tool, for tests: ``mcp_places.py TOOL LEDGER``.

Each call of the tool appends a line to the ledger.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mcp.server import MCPServer

word, ledger = sys.argv[1:]
server = MCPServer("places")


def describe(place: str) -> str:
    """Describe a place."""
    with Path(ledger).open("a") as file:
        file.write(f"{word}\n")
    return f"{word} {place}"


server.tool(name=word)(describe)
server.run("stdio")
