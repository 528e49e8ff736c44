"""Run tests against a real restate-server, and reuse the server from one test to the next.

1. An open block has a server to itself. Blocks that are open at the same time never see each other's services, state
   or crashes, even if their services have the same names.
2. A server is reused only after a check that it is empty: no invocation, no state, no deployment. A server that cannot
   be emptied, or was killed, is stopped instead, and the next block starts another.
3. A coroutine never blocks the event loop; properties and plain methods do, and say so. Threads are joined even on
   cancellation, so that no server and no application leaks.
4. Nothing outlives the process: idle servers are stopped when the interpreter exits, and the guards of
   :mod:`restate_steps.server` end everything when the process is killed.
"""
