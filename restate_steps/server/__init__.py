"""Find, fetch and run a real restate-server, and serve applications to it.

Requires the ``server`` extra: ``pip install 'restate-steps[server]'``.
"""

from restate_steps._public import publish
from restate_steps.server._admin import AdminClient
from restate_steps.server._app import AppServer, serve_app
from restate_steps.server._binary import ServerBinary, ensure_server, find_server, locate_server
from restate_steps.server._journal import JournalEntry, JournalFailure
from restate_steps.server._process import RestateServer
from restate_steps.server._serving import ASGIApp
from restate_steps.server._version import SERVER_VERSION, server_version

__all__ = [
    "SERVER_VERSION",
    "ASGIApp",
    "AdminClient",
    "AppServer",
    "JournalEntry",
    "JournalFailure",
    "RestateServer",
    "ServerBinary",
    "ensure_server",
    "find_server",
    "locate_server",
    "serve_app",
    "server_version",
]

publish("restate_steps.server", globals(), __all__)
