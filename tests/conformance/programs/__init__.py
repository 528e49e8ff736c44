"""Random programs, on which the simulator and a server must agree where no scenario was written by hand.

A *program* is a value (see :mod:`.program`): a tree of at most four levels of invocations, and what a client does.
:mod:`.generate` draws one from a seed, :mod:`.handlers` has the services that interpret one, and :mod:`.play` plays
one on a server or in the simulator. These invariants make its outcome independent of time and of who wins a race:

P1. Every invocation ends, unless the client or its caller never acts; and both always do.
P2. Each invocation has its own order of commands: what it does next depends only on what it has read, and it reads
    the first of several results only where the others never come.
P3. State is read and changed in one order. Invocations that run side by side have no keys in common. Only one
    invocation's messages share a key with what it calls later: a server starts them in the order in which they came.
P4. An invocation that holds a key does not wait for another one of the same key.
P5. The client and a caller act on an invocation when it has said that it waits. It says so after its last command
    before the wait, and before a kill all its commands are stored. After a cancellation it does nothing that is visible
    to others. A sender that needs a message to have arrived waits for a later one, because they arrive in order.
P6. What is compared of a journal is the order of the commands, each with its result, and the signals, in the order of
    each name. Where an invocation waits for each command before the next, and no signal reaches it, the place of
    every entry is compared. The result of a call that a cancellation has cut short is not compared: it may come after
    the end. Where it is read, the answer shows it.
"""
