"""The private names of restate-sdk that this package uses.

``docs/design.md`` lists them: what each is used for, and what happens if a later SDK no longer has it. A test fails for
each name of that list which is gone, and ``make matrix SDK=...`` prints it. The only other module that uses private
names of the SDK is ``restate_steps.testing._observe``, for the testing kit.
"""

from restate_steps._versions import warn_about_sdk

# Before the imports that fail if a private name is gone.
warn_about_sdk()

from restate_steps._sdk._bodies import IN_THREAD, has_body, mark_bodies, run_unmarked, running_body  # noqa: E402
from restate_steps._sdk._context import (  # noqa: E402
    ServerInvocationContext,
    ambient_context,
    check_supported,
    forget_input,
    invocation_id,
    keep_limit,
    keep_state,
    limit_of_handler,
    loop_of,
    note_explicit_recovery,
    state_of,
    uses_explicit_recovery,
)
from restate_steps._sdk._futures import map_failure, result_of, set_execution, share_future, share_waits  # noqa: E402
from restate_steps._sdk._guard import fail_attempt, failure_of, guard_commands  # noqa: E402
from restate_steps._sdk._port import SdkPort  # noqa: E402
from restate_steps._sdk._shutdown import add_sigterm_hook, end_input  # noqa: E402
from restate_steps._sdk._start import invocation_target, is_replaying, note_starts, retry_count  # noqa: E402

__all__ = [
    "IN_THREAD",
    "SdkPort",
    "ServerInvocationContext",
    "add_sigterm_hook",
    "ambient_context",
    "check_supported",
    "end_input",
    "fail_attempt",
    "failure_of",
    "forget_input",
    "guard_commands",
    "has_body",
    "invocation_id",
    "invocation_target",
    "is_replaying",
    "keep_limit",
    "keep_state",
    "limit_of_handler",
    "loop_of",
    "map_failure",
    "mark_bodies",
    "note_explicit_recovery",
    "note_starts",
    "result_of",
    "retry_count",
    "run_unmarked",
    "running_body",
    "set_execution",
    "share_future",
    "share_waits",
    "state_of",
    "uses_explicit_recovery",
]
