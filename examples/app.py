"""All services of the examples, as one application."""

from __future__ import annotations

import restate_steps
from examples.checkout import shop
from examples.greeting_agent import greeter

app = restate_steps.app([greeter, shop])
