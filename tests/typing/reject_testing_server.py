"""What the type checker must refuse of a test's own server."""

from __future__ import annotations

import restate

from restate_steps.testing._server import server

app = restate.app([])

server([restate.Service("Greeter")])  # error: arg-type
server(app, restate_image="docker.io/restatedev/restate:latest")  # error: arg-type
server(app, always_replay="yes")  # error: arg-type
server()  # error: call-arg

with server(app) as env:  # error: attr-defined, attr-defined
    pass
