"""The private names of restate-sdk that this package uses, and why.

The only other module that uses private names of the SDK is ``restate_steps.testing._observe``, for the testing kit.

The names, and what happens if a later SDK no longer has one:

* ``ServerInvocationContext.create_poll_or_cancel_coroutine`` is the method through which every await of the SDK goes.
  :class:`_LoopContext` overrides it, so that raw SDK awaits are ordered like steps. Missing: running a handler on the
  handler loop is refused (:func:`check_supported`); single steps under ``restate.app`` work.
* ``ServerInvocationContext.take_and_send_output``, ``must_take_notification``, ``create_future``,
  ``create_sleep_future``, ``create_call_future`` and ``ServerSendHandle``, ``ServerDurablePromise`` are overridden or
  wrapped there as well. Nothing can be sent from the handler loop, and several tasks may await a durable future, each
  of which may be cancelled. Missing: a future whose first awaiter was cancelled cannot be awaited again.
* ``PyVM.do_progress`` with a ``PyUnresolvedFuture`` that is built once per wait. The public wrapper converts the
  whole set on every call, which makes a fan-out quadratic and slows down a single step.
* ``VMWrapper`` is the single place where commands enter the journal; :func:`guard_commands` puts a check there.
  The same goes for ``ServerInvocationContext.random_instance``, whose state is part of what a replay must repeat.
  Missing: misuse is no longer refused, correct code is unaffected.
* ``VMWrapper.take_output`` and ``notify_error``: the VM cannot request a pause in the error message that it writes, so
  :func:`fail_attempt` adds the request. Missing: an error that only a code change can fix is retried before Restate
  pauses.
* ``restate.server`` has the service that it calls in a local variable ``service``, the one place where its mark for
  explicit recovery can be read. Missing: a service with that mark is no longer refused.
* ``LazyFuture.async_def`` creates the coroutine that fetches the value, which :func:`result_of` awaits without a task.
  Missing: the future itself is awaited, which takes longer.
* ``ReceiveChannel._queue`` shows whether more messages have arrived, so that the VM is polled once for all of them, and
  a message put there wakes the driver. Missing: the driver polls the VM after every message, and a refusal takes effect
  with the next one.
* ``ReceiveChannel.notify_shutdown`` ends the SDK's wait for the server after a cancelled request. Missing: such a
  request raises an AttributeError, and ends.
* ``ReceiveChannel`` reads the request in a task whose coroutine has it in a variable ``self``. :func:`end_input` puts
  the end of the request into its ``_queue``. Missing: a handler that waits is cut off when the grace period is over.
* ``restate.server._shutdown_hooks`` has the functions that the SDK calls at SIGTERM, for each event loop.
  :func:`add_sigterm_hook` adds to it, so that the SDK does not replace the ASGI server's handler. Missing: uvicorn
  and granian no longer end at SIGTERM, as with ``restate.app``.

``tests/test_sdk_seam.py`` fails when one of these names changes.
"""

from restate_steps._sdk._bodies import IN_THREAD, has_body, mark_bodies, run_unmarked, running_body
from restate_steps._sdk._context import (
    ServerInvocationContext,
    ambient_context,
    check_supported,
    forget_input,
    invocation_id,
    keep_state,
    loop_of,
    note_explicit_recovery,
    state_of,
    uses_explicit_recovery,
)
from restate_steps._sdk._futures import map_failure, result_of, set_execution, share_future, share_waits
from restate_steps._sdk._guard import fail_attempt, failure_of, guard_commands
from restate_steps._sdk._port import SdkPort
from restate_steps._sdk._shutdown import add_sigterm_hook, end_input

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
    "keep_state",
    "loop_of",
    "map_failure",
    "mark_bodies",
    "note_explicit_recovery",
    "result_of",
    "run_unmarked",
    "running_body",
    "set_execution",
    "share_future",
    "share_waits",
    "state_of",
    "uses_explicit_recovery",
]
