"""``restate-steps dev``: a server and an application that restarts when a file changes.

1. Data flows one way: threads put events into one queue, and one loop (:mod:`.develop`) takes them out and prints.
2. The application runs in its own process, which is restarted on every change: modules are never reloaded in place.
3. This process binds the application's port before it registers anything, and passes the socket on, so that the
   server never talks to another program, and calls wait while the application restarts.
4. However this process ends, the server and the application end too.
"""
