"""One application with the greeting agent and the checkout."""

from __future__ import annotations

import restate_steps
from examples.checkout import shop
from examples.greeting_agent import greeter

app = restate_steps.app([greeter, shop])
