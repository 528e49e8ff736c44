"""Find, fetch and run a real restate-server, and serve applications to it.

Needs the ``server`` extra: ``pip install 'restate-steps[server]'``.
"""

from restate_steps.server._admin import AdminClient
from restate_steps.server._app import AppServer, serve_app
from restate_steps.server._binary import ServerBinary, ensure_server, find_server, locate_server
from restate_steps.server._dev import DevOptions, develop
from restate_steps.server._doctor import Finding, examine
from restate_steps.server._journal import JournalEntry, JournalFailure
from restate_steps.server._load import load_app
from restate_steps.server._ports import free_ports, port_or_free
from restate_steps.server._process import RestateServer
from restate_steps.server._run import run_app, run_server
from restate_steps.server._serving import ASGIApp
from restate_steps.server._version import SERVER_VERSION, server_version

__all__ = [
    "SERVER_VERSION",
    "ASGIApp",
    "AdminClient",
    "AppServer",
    "DevOptions",
    "Finding",
    "JournalEntry",
    "JournalFailure",
    "RestateServer",
    "ServerBinary",
    "develop",
    "ensure_server",
    "examine",
    "find_server",
    "free_ports",
    "load_app",
    "locate_server",
    "port_or_free",
    "run_app",
    "run_server",
    "serve_app",
    "server_version",
]
