"""The event loop that handler code sees.

All handlers on one server event loop share one. So a module-level lock or semaphore works across invocations, which
asyncio refuses to use on two loops. Each callback belongs to one :class:`~restate_steps._loop._execution.Execution`,
and goes to that execution's queue. Invariants:

* **L1** Handler code runs only while its execution is driven, one turn at a time.
* **L2** A callback that is scheduled while its execution is not driven comes from outside; the execution accepts or
  refuses it (E5).
* **L3** Sockets, pipes, subprocesses and signals are refused: the journal does not record when their events arrive.
"""

from __future__ import annotations

import asyncio
import sys
import weakref
from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Callable, Coroutine, Sequence, ValuesView
from contextvars import Context, ContextVar, copy_context
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar, cast

from restate_steps._loop._frames import user_line
from restate_steps._loop._ready import Handle
from restate_steps._loop._task import HandlerTask
from restate_steps.errors import ConcurrencyError

if TYPE_CHECKING:
    from restate_steps._loop._execution import Execution

__all__ = ["EXECUTION", "HandlerLoop", "loop_for"]

T = TypeVar("T")

EXECUTION: Final[ContextVar[Execution | None]] = ContextVar("restate_steps_execution", default=None)
"""The execution that the running code belongs to; its tasks and callbacks inherit it."""

_as_completed_codes: Final = frozenset(
    code
    for function in (
        asyncio.as_completed,
        getattr(getattr(asyncio.tasks, "_AsCompletedIterator", None), "__init__", None),
    )
    if (code := getattr(function, "__code__", None)) is not None
)


# Hide the base class from type checkers: some methods are refused, and others take any arguments.
_Base: Any = AbstractEventLoop


class HandlerLoop(_Base):  # type: ignore[misc] # pyright: ignore[reportUntypedBaseClass]
    """An event loop whose ready queue, timers and wake-ups come from the journal.

    Attributes:
        driving: The execution whose code is running, or None.
        executions: The executions that have not ended.
    """

    def __init__(self) -> None:
        self.driving: Execution | None = None
        self.executions: set[Execution] = set()

    def __repr__(self) -> str:
        return "<HandlerLoop>"

    def _execution(self, context: Context | None = None) -> Execution:
        execution = self.driving or (context.get(EXECUTION) if context is not None else EXECUTION.get())
        if execution is None:
            raise ConcurrencyError(
                "the event loop of a Restate handler was used by code that does not belong to the handler. Everything "
                "on that loop must be a part of a handler. Call asyncio.get_running_loop() where the code runs."
            )
        return execution

    # --- callbacks ----------------------------------------------------------------------------------------------

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Context | None = None) -> Handle:
        """Schedule a callback."""
        if context is None:
            context = copy_context()
        handle = Handle(callback, args, self, context)
        driving = self.driving
        owner = context.get(EXECUTION)
        if driving is not None and (owner is driving or owner is None):
            driving.ready.schedule(handle)
        else:
            (owner or self._execution()).wake_from_outside(handle)
        return handle

    def call_soon_threadsafe(
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Handle:
        """Schedule a callback from a thread; only threads that the handler waits for may do so."""
        if context is None:
            context = copy_context()
        execution = context.get(EXECUTION) or _owner_of(callback, args)
        if execution is not None and execution.driven_by_this_thread():
            return self.call_soon(callback, *args, context=context)
        if execution is None:
            execution = self._execution(context)
        handle = Handle(callback, args, self, context)
        execution.server_loop.call_soon_threadsafe(execution.wake_from_outside, handle)
        return handle

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> TimerHandle:
        """Schedule a callback after a delay, with a durable timer."""
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> TimerHandle:
        """Schedule a callback at a time of :meth:`time`."""
        timer = TimerHandle(when, callback, args, self, context)
        self._execution(cast(Any, timer)._context).timers.add(timer)
        return timer

    def _timer_handle_cancelled(self, handle: TimerHandle) -> None:
        context: Context | None = cast(Any, handle)._context
        execution = context.get(EXECUTION) if context is not None else None
        if execution is not None:
            execution.timers.discard(handle)

    def time(self) -> float:
        """Return the time of the latest timer that has fired, in seconds since the handler's start."""
        execution = self.driving or EXECUTION.get()
        return execution.timers.read() if execution is not None else 0.0

    # --- tasks and futures --------------------------------------------------------------------------------------

    def create_future(self) -> asyncio.Future[Any]:
        """Create a future."""
        if self.driving is not None and self.driving.is_cancelled:
            self.driving.notice_end_of_undoing()
        return asyncio.Future(loop=self)

    def create_task(
        self,
        coro: Coroutine[Any, Any, T],
        *,
        name: str | None = None,
        context: Context | None = None,
        **options: Any,
    ) -> asyncio.Task[T]:
        """Create a task."""
        execution = self._execution(context)
        if execution.task_factory is not None:
            options.setdefault("eager_start", True)
        given = _position_in_as_completed(coro)
        return execution.create_task(coro, name=name, context=context, given=given, **options)

    def set_task_factory(self, factory: Any) -> None:
        """Set the task factory of the running handler: None, or ``asyncio.eager_task_factory``."""
        if factory is not None and factory is not getattr(asyncio, "eager_task_factory", None):
            raise self._execution().refuse(
                f"loop.set_task_factory was called with {factory!r}, at {user_line()}. The journal depends on the order"
                " of a handler's tasks, so the handler loop creates them itself. Use asyncio.eager_task_factory or "
                "None."
            )
        self._execution().task_factory = factory

    def get_task_factory(self) -> Any:
        """Return the task factory of the running handler."""
        return self._execution().task_factory

    # --- threads and other local work ---------------------------------------------------------------------------

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        """Run a function in a thread, as a local operation."""
        return self._execution().local.begin_thread(executor, func, *args)

    def set_default_executor(self, executor: Any) -> None:
        """Refuse: threads belong to the server's loop."""
        del executor
        self._refuse("set_default_executor")

    async def getaddrinfo(self, *args: Any, **options: Any) -> Any:
        """Look up an address, as a local operation."""
        return await self._execution().local.run(self._execution().server_loop.getaddrinfo(*args, **options))

    async def getnameinfo(self, *args: Any, **options: Any) -> Any:
        """Look up a name, as a local operation."""
        return await self._execution().local.run(self._execution().server_loop.getnameinfo(*args, **options))

    async def shutdown_asyncgens(self) -> None:
        """Do nothing: async generators are closed when the handler ends."""

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Do nothing: threads belong to the server's loop."""

    # --- state --------------------------------------------------------------------------------------------------

    def is_running(self) -> bool:
        """Return whether handler code is running."""
        return self.driving is not None

    def is_closed(self) -> bool:
        """Return whether the caller's handler has ended."""
        execution = self.driving or EXECUTION.get()
        return execution is not None and execution.is_over

    def get_debug(self) -> bool:
        """Return False: asyncio's debug mode measures real time."""
        return False

    def set_debug(self, enabled: bool) -> None:
        """Do nothing: see :meth:`get_debug`."""

    def get_exception_handler(self) -> Any:
        """Return the exception handler of the running handler."""
        return self._execution().exception_handler

    def set_exception_handler(self, handler: Any) -> None:
        """Set the exception handler of the running handler."""
        self._execution().exception_handler = handler

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        """Log an unhandled error."""
        self._execution().log_error(context)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Report an unhandled error to the exception handler, or log it."""
        task = context.get("task", context.get("future"))
        execution = task.execution if isinstance(task, HandlerTask) else self.driving or EXECUTION.get()
        if execution is None or execution.is_over or execution.closed is not None:
            return
        if execution.exception_handler is not None:
            execution.exception_handler(self, context)
        else:
            execution.log_error(context)

    # --- refused methods ----------------------------------------------------------------------------------------

    def _refuse(self, operation: str, advice: str = "") -> NoReturn:
        raise self._execution().refuse(
            f"{operation} was called outside of a step, at {user_line()}. Handlers run on an event loop "
            "without sockets, pipes, subprocesses and signals, because the journal does not record when their events "
            f"arrive. {advice or _IO_ADVICE}"
        )

    def run_forever(self) -> NoReturn:
        """Refuse: the loop is running."""
        raise RuntimeError("This event loop is already running")

    def run_until_complete(self, future: Any) -> NoReturn:
        """Refuse: the loop is running."""
        raise RuntimeError("This event loop is already running")

    def stop(self) -> NoReturn:
        """Refuse: the handler ends by returning."""
        self._refuse("loop.stop()", "Return from the handler instead.")

    def close(self) -> NoReturn:
        """Refuse: the handler ends by returning."""
        self._refuse("loop.close()", "Return from the handler instead.")


_IO_ADVICE: Final = (
    "Put the work into a step, whose result is recorded, or run it on the server's event loop with "
    "`await restate_steps.local(...)`, which repeats it on every replay."
)

_REFUSED: Final = (
    "create_connection",
    "create_unix_connection",
    "create_server",
    "create_unix_server",
    "create_datagram_endpoint",
    "connect_accepted_socket",
    "connect_read_pipe",
    "connect_write_pipe",
    "subprocess_exec",
    "subprocess_shell",
    "sendfile",
    "start_tls",
    "sock_recv",
    "sock_recv_into",
    "sock_recvfrom",
    "sock_recvfrom_into",
    "sock_sendall",
    "sock_sendto",
    "sock_connect",
    "sock_accept",
    "sock_sendfile",
)


def _refusing(name: str) -> Any:
    async def refuse(self: HandlerLoop, *args: Any, **options: Any) -> NoReturn:
        if self.driving is not None:
            await self.driving.yield_if_closed()
        self._refuse(name)  # pyright: ignore[reportPrivateUsage]

    refuse.__name__ = name
    return refuse


def _refusing_at_once(name: str) -> Any:
    def refuse(self: HandlerLoop, *args: Any, **options: Any) -> NoReturn:
        self._refuse(name)  # pyright: ignore[reportPrivateUsage]

    refuse.__name__ = name
    return refuse


for _name in _REFUSED:
    setattr(HandlerLoop, _name, _refusing(_name))
for _name in (
    "add_reader",
    "remove_reader",
    "add_writer",
    "remove_writer",
    "add_signal_handler",
    "remove_signal_handler",
):
    setattr(HandlerLoop, _name, _refusing_at_once(_name))


def _owner_of(callback: Any, args: tuple[Any, ...]) -> Execution | None:
    """Return the execution that a callback from a thread is meant for, if its task shows it."""
    for thing in (getattr(callback, "__self__", None), *args):
        if isinstance(thing, HandlerTask):
            return thing.execution
    return None


def _position_in_as_completed(coro: Any) -> tuple[int, int] | None:
    """Return a coroutine's position among the arguments of ``asyncio.as_completed``, and their number.

    ``as_completed`` creates their tasks in the order of a set, which depends on memory addresses. Return None for a
    coroutine from elsewhere.
    """
    frame: Any = sys._getframe(2)  # pyright: ignore[reportPrivateUsage]
    if frame.f_code.co_name not in ("ensure_future", "_ensure_future"):
        return None
    for _ in range(4):
        frame = frame.f_back
        if frame is None:
            return None
        if frame.f_code in _as_completed_codes:
            break
    else:
        return None
    given: Any = frame.f_locals.get("fs", frame.f_locals.get("aws"))
    if not isinstance(given, Sequence | ValuesView):
        raise EXECUTION.get().refuse(  # type: ignore[union-attr]
            f"asyncio.as_completed was given coroutines that are not in a list, at {user_line()}. It starts them "
            "in the order of a set, which differs on replay. Give it a list, or use restate_steps.as_completed."
        )
    started = _wrapped_awaitable(coro)
    awaitables = list({id(each): each for each in cast("Sequence[Any]", given) if not asyncio.isfuture(each)}.values())
    return next(((index, len(awaitables)) for index, each in enumerate(awaitables) if each is started), None)


def _wrapped_awaitable(coro: Any) -> Any:
    """Return the awaitable that asyncio has wrapped in a coroutine for a task, or else the coroutine itself."""
    frame: Any = getattr(coro, "cr_frame", None) or getattr(coro, "gi_frame", None)
    if frame is None or frame.f_code.co_name != "_wrap_awaitable":
        return coro
    return frame.f_locals.get("awaitable", coro)


_loops: weakref.WeakKeyDictionary[AbstractEventLoop, HandlerLoop] = weakref.WeakKeyDictionary()


def loop_for(server_loop: AbstractEventLoop) -> HandlerLoop:
    """Return the handler loop of a server's event loop."""
    loop = _loops.get(server_loop)
    if loop is None:
        loop = _loops[server_loop] = HandlerLoop()
    return loop
