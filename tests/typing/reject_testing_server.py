"""What the type checker must refuse of a test's own server."""

from __future__ import annotations

import restate

from restate_steps.testing import restate_server

app = restate.app([])

restate_server([restate.Service("Greeter")])  # error: arg-type
restate_server(app, restate_image="docker.io/restatedev/restate:latest")  # error: arg-type
restate_server(app, always_replay="yes")  # error: arg-type
restate_server()  # error: call-arg

with restate_server(app) as env:  # error: attr-defined, attr-defined
    pass
