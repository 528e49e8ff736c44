"""The loop of ``dev``: start everything, then take events from the queue and print."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from enum import Enum, auto
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from restate_steps._dev import screen
from restate_steps._dev.data import prepare, remember_port, remembered_port
from restate_steps._dev.events import (
    AppEvent,
    AppExited,
    EndedElsewhere,
    Event,
    FilesChanged,
    FromApp,
    Loaded,
    LoadFailed,
    Looked,
)
from restate_steps._dev.follow import Follower, Seen
from restate_steps._dev.worker_process import WorkerProcess
from restate_steps.errors import ServerError
from restate_steps.server import RestateServer
from restate_steps.server._attempts import AttemptEnd
from restate_steps.server._disk import low_space
from restate_steps.server._extra import missing_extra
from restate_steps.server._failures import Origin, failure_of
from restate_steps.server._invocations import Filters, find_invocations
from restate_steps.server._load import TargetError
from restate_steps.server._ports import LOOPBACK, port_or_free
from restate_steps.server._run import ended_by_signals
from restate_steps.server._serving import Listener, listen

__all__ = ["DevOptions", "develop"]

_LOOK_EVERY_MS: Final = 300
_TICK: Final = 0.5
_LOAD_WITHIN: Final = 60.0
_ASK_EVERY: Final = 2.0
# After the start, the server needs a moment to retry the invocations of an earlier run.
_REPORT_OLD_AFTER: Final = 2.0
_STABLE_AFTER: Final = 5.0
_SLOW_AFTER: Final = 10.0


@dataclass(frozen=True, slots=True)
class DevOptions:
    """The options of a development server.

    Attributes:
        target: The application: a file, a module, or ``module:app``.
        base_dir: The folder for the server's data, which is preserved between runs.
        watch: The files and folders to watch for changes.
        usual_ports: The ports of the ingress, the admin API and the application that are used if they are free.
        ingress_port: The port of the ingress, which accepts calls; None for the usual one.
        admin_port: The port of the admin API and the UI; None for the usual one.
        app_port: The port of the application; None for the usual one.
        http1: Whether to serve the application over HTTP/1.1.
        always_replay: Whether the server suspends a handler whenever it waits, so that it continues by replay.
        log_filter: The server's log filter.
        env_files: Files with environment variables for the application; the last value of a name counts.
        fresh: Whether to remove the data of earlier runs first.
        fail_fast: Whether an invocation ends when an attempt fails.
        verbose: Whether to show everything that the application and the SDK log, and whole tracebacks.
    """

    target: str
    base_dir: Path
    watch: Sequence[Path]
    usual_ports: tuple[int, int, int]
    ingress_port: int | None = None
    admin_port: int | None = None
    app_port: int | None = None
    http1: bool = False
    always_replay: bool = False
    log_filter: str = "warn"
    env_files: Sequence[Path] = ()
    fresh: bool = False
    fail_fast: bool = False
    verbose: bool = False


def develop(options: DevOptions, say: Callable[[str], None]) -> None:
    """Run a server and an application until a signal arrives, and restart the application when a file changes.

    Args:
        options: The options.
        say: A callback that shows a line of text to the developer.

    Raises:
        TargetError: The name of the application is wrong.
        ServerError: ``watchfiles`` is not installed, a port is taken, or the server does not start or exits by itself.
    """
    if find_spec("watchfiles") is None:
        raise missing_extra("watchfiles", "watch files for changes", extra="cli")
    with suppress(KeyboardInterrupt), ended_by_signals(), ExitStack() as stack:
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        listener = stack.enter_context(_listener(options, say))
        app = WorkerProcess(
            options.target,
            listener,
            http1=options.http1,
            verbose=options.verbose,
            env_files=options.env_files,
            put=events.put,
        )
        stack.callback(app.stop)
        app.start()
        started = time.monotonic()
        first = _first_event(events)
        match first:
            case FromApp(event=LoadFailed(message=message, is_usage_error=True)):
                raise TargetError(message)
            case _:
                pass
        prepare(options.base_dir, fresh=options.fresh)
        server = stack.enter_context(_server(options))
        # Only now does no other `dev` use the folder.
        remember_port(options.base_dir, listener.getsockname()[1])
        _explain_ports(server, options, say)
        lookups = stack.enter_context(_threads())
        session = _Session(options, say, server, app, listener, lookups, events, started)
        session.introduce()
        stack.enter_context(_watched(options, events))
        session.take(first)
        session.run()


@contextmanager
def _listener(options: DevOptions, say: Callable[[str], None]) -> Generator[Listener, None, None]:
    usual = remembered_port(options.base_dir) or options.usual_ports[2]
    port = options.app_port if options.app_port is not None else port_or_free(usual)
    listener = listen(LOOPBACK, port)
    port = listener.getsockname()[1]
    if options.app_port is None and port != usual:
        say(f"port {usual} is in use; the application is on port {port} instead")
    with listener:
        yield listener


def _server(options: DevOptions) -> RestateServer:
    ingress, admin, _ = options.usual_ports
    return RestateServer(
        base_dir=options.base_dir,
        always_replay=options.always_replay,
        log_filter=options.log_filter,
        ingress_port=options.ingress_port,
        admin_port=options.admin_port,
        preferred_ports=(ingress, admin),
    )


def _explain_ports(server: RestateServer, options: DevOptions, say: Callable[[str], None]) -> None:
    for what, url, given, usual in (
        ("the ingress", server.ingress_url, options.ingress_port, options.usual_ports[0]),
        ("the admin API", server.admin_url, options.admin_port, options.usual_ports[1]),
    ):
        port = int(url.rpartition(":")[2])
        if given is None and port != usual:
            say(f"port {usual} is in use; {what} is on port {port} instead")


@contextmanager
def _threads() -> Generator[ThreadPoolExecutor, None, None]:
    executor = ThreadPoolExecutor(4, thread_name_prefix="restate-steps-dev")
    try:
        yield executor
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


def _first_event(events: queue.SimpleQueue[Event]) -> Event:
    try:
        return events.get(timeout=_LOAD_WITHIN)
    except queue.Empty:
        raise ServerError(
            f"the application was not imported within {_LOAD_WITHIN:g} s. Look for code in its modules that waits, for "
            "example for a connection that is opened when a module is imported."
        ) from None


@contextmanager
def _watched(options: DevOptions, events: queue.SimpleQueue[Event]) -> Generator[None, None, None]:
    """Put an event for each change of a file, from a thread."""
    from watchfiles import PythonFilter, watch

    stopping = threading.Event()
    paths = [path.absolute() for path in [*options.watch, *options.env_files]]
    # Of a folder, only Python files count; a file that is named counts whatever it is.
    named = [str(path) for path in paths if not path.is_dir()]
    ignored = PythonFilter(ignore_paths=[options.base_dir.absolute()], extra_extensions=named)

    def look() -> None:
        for changes in watch(*paths, watch_filter=ignored, stop_event=stopping, rust_timeout=_LOOK_EVERY_MS):
            events.put(FilesChanged(sorted({_relative(Path(path)) for _, path in changes})))

    thread = threading.Thread(target=look, name="restate-steps-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()


class _State(Enum):
    """The state of the application's process."""

    STARTING = auto()
    SLOW = auto()
    SERVING = auto()
    FAILED = auto()


class _Session:
    """The state of a running ``dev``: the application, the invocations in flight, and what was said already."""

    def __init__(
        self,
        options: DevOptions,
        say: Callable[[str], None],
        server: RestateServer,
        app: WorkerProcess,
        listener: Listener,
        lookups: ThreadPoolExecutor,
        events: queue.SimpleQueue[Event],
        started: float,
    ) -> None:
        self._options = options
        self._say = say
        self._server = server
        self._app = app
        self._url = f"http://{LOOPBACK}:{listener.getsockname()[1]}"
        self._lookups = lookups
        self._events = events
        self._started = started
        usual = options.usual_ports[1]
        self._admin_argument = "" if server.admin_url.endswith(f":{usual}") else f" --admin {server.admin_url}"
        self._follower = Follower(
            server.admin,
            options.target,
            self._admin_argument,
            env_files=options.env_files,
            fail_fast=options.fail_fast,
        )
        self._open: dict[str, Seen] = {}
        self._shown: set[Origin] = set()
        self._state = _State.STARTING
        self._exited_at = -_STABLE_AFTER
        # The status of each invocation of an earlier run, by id.
        self._old: dict[str, str] = {}
        self._report_old_at: float | None = None
        self._ask_at = 0.0
        self._asking = False
        self._low_on_space = False

    def introduce(self) -> None:
        """Show where everything is."""
        server = self._server
        table = [
            ("ingress", server.ingress_url),
            ("admin", server.admin_url),
            ("UI", server.ui_url),
            ("app", f"{self._url} ({self._options.target})"),
            ("data", _relative(self._options.base_dir)),
            ("log", _relative(server.log_path)),
        ]
        for line in screen.urls(table):
            self._say(line)
        rows = find_invocations(server.admin, Filters(statuses=["open"]))
        self._old = {row["id"]: row["status"] for row in rows}

    def run(self) -> None:
        """Take events until the server exits.

        Raises:
            ServerError: The server exited.
        """
        while True:
            with suppress(queue.Empty):
                self.take(self._events.get(timeout=_TICK))
            if not self._server.running:
                raise ServerError(
                    f"restate-server exited unexpectedly. See its log: {_relative(self._server.log_path)}"
                )
            self._tick()

    def take(self, event: Event) -> None:
        """React to an event."""
        match event:
            case FromApp(generation=generation, event=AttemptEnd() as attempt):
                self._attempt(attempt, generation)
            case FromApp(generation=generation, event=found):
                # An earlier process has nothing more to say about the current code.
                if generation == self._app.generation:
                    self._app_changed(found)
            case FilesChanged(paths=paths):
                self._say(f"changed: {', '.join(paths)}")
                self._restart()
            case EndedElsewhere(ends=ends):
                self._ended_elsewhere(ends)
            case Looked(lines=lines):
                for line in lines:
                    self._say(line)

    # --- the application ----------------------------------------------------------------------------------------

    def _app_changed(self, event: AppEvent | AppExited) -> None:
        match event:
            case Loaded():
                self._loaded()
            case LoadFailed(message=message):
                self._state = _State.FAILED
                self._say(screen.error(message))
                self._say("The application will restart after the next change.")
            case AppExited(code=code):
                self._exited(code)
            case _:
                pass

    def _restart(self) -> None:
        self._started = time.monotonic()
        self._state = _State.STARTING
        self._shown.clear()
        try:
            self._app.start()
        except ServerError as error:
            self._app_changed(LoadFailed(str(error), is_usage_error=False))

    def _loaded(self) -> None:
        admin = self._server.admin
        try:
            services = admin.services(admin.register(self._url, force=True, http1=self._options.http1))
        except ServerError as error:
            self._say(screen.error(str(error)))
            return
        now = time.monotonic()
        self._state = _State.SERVING
        self._say(f"serving {', '.join(services) or 'no services'} (ready in {now - self._started:.1f} s)")
        if self._old and self._report_old_at is None:
            self._report_old_at = now + _REPORT_OLD_AFTER
            # Nothing else resumes them, and the code may be another one now.
            paused = [invocation for invocation, status in self._old.items() if status == "paused"]
            self._lookups.submit(self._follower.retry, paused)
        failing = [invocation for invocation, seen in self._open.items() if seen.failing]
        if failing:
            self._say(f"retrying {screen.plural(len(failing), 'invocation')} that failed with the old code")
            self._lookups.submit(self._follower.retry, failing)

    def _exited(self, code: int) -> None:
        before, self._state = self._state, _State.FAILED
        if before is _State.FAILED:
            # It has said why.
            return
        how = f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
        now = time.monotonic()
        soon, self._exited_at = now - self._exited_at < _STABLE_AFTER, now
        if before is not _State.SERVING:
            self._say(screen.error(f"the application {how} while it was imported."))
            self._say("The application will restart after the next change.")
        elif soon:
            self._say(screen.error(f"the application {how} again. It will restart after the next change."))
        else:
            self._say(screen.error(f"the application {how}; restarting it."))
            self._restart()

    # --- invocations --------------------------------------------------------------------------------------------

    def _attempt(self, attempt: AttemptEnd, generation: int) -> None:
        if attempt.outcome == "rejected":
            self._say(screen.ended(attempt, attempt.seconds))
            return
        now = time.monotonic()
        seen = self._open.setdefault(
            attempt.invocation,
            Seen(attempt.target, now - attempt.seconds, generation, began_here=attempt.known_entries <= 1),
        )
        seen.failing = attempt.outcome == "retried"
        if attempt.outcome in ("succeeded", "failed"):
            del self._open[attempt.invocation]
            self._say(screen.ended(attempt, now - seen.since))
        elif seen.failing:
            failure = failure_of(attempt)
            changed = not seen.began_here or seen.generation != generation
            show_code = failure.origin not in self._shown
            self._shown.add(failure.origin)
            show_ways_out, seen.explained = not seen.explained, True
            previous = seen.lookup

            def find() -> Sequence[str]:
                lines = self._follower.failed(
                    attempt, failure, changed=changed, show_code=show_code, show_ways_out=show_ways_out
                )
                # The lines of an invocation stay in order.
                if previous is not None:
                    wait([previous])
                return lines

            seen.lookup = self._look(find)

    def _look(self, find: Callable[[], Sequence[str]]) -> Future[None]:
        """Find lines to print in a thread, because it takes a question to the server."""

        def look() -> None:
            try:
                lines = find()
            except ServerError as error:
                lines = [screen.error(str(error))]
            self._events.put(Looked(lines))

        return self._lookups.submit(look)

    # --- time ---------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        now = time.monotonic()
        if self._state is _State.STARTING and now - self._started > _SLOW_AFTER:
            self._state = _State.SLOW
            self._say("The application is still being imported. Look for code in its modules that waits.")
        if self._report_old_at is not None and now >= self._report_old_at:
            self._report_old_at, old, self._old = None, len(self._old), {}
            if old:
                self._report_old(old)
        if now < self._ask_at:
            return
        self._ask_at = now + _ASK_EVERY
        self._watch_disk()
        if self._open and not self._asking:
            self._asking = True
            self._lookups.submit(self._ask_about, list(self._open))

    def _report_old(self, old: int) -> None:
        failing = sum(seen.failing and not seen.began_here for seen in self._open.values())
        fail = f"{failing} fail{'s' if failing == 1 else ''}"
        going = f"{old - failing} continue{'s' if old - failing == 1 else ''}"
        how = going if not failing else fail if failing >= old else f"{going}, {fail}"
        self._say(
            f"{screen.plural(old, 'invocation')} of an earlier run: {how}. "
            f"To list them: restate-steps invocations list{self._admin_argument}. "
            "To start empty: restate-steps dev --fresh."
        )

    def _ask_about(self, invocations: Collection[str]) -> None:
        try:
            self._events.put(EndedElsewhere(self._follower.ended_elsewhere(invocations)))
        except ServerError:
            self._events.put(EndedElsewhere({}))

    def _ended_elsewhere(self, ends: Mapping[str, str]) -> None:
        self._asking = False
        for invocation, how in ends.items():
            # An attempt that ended meanwhile has a line of its own.
            if (seen := self._open.pop(invocation, None)) is not None:
                self._say(f"{seen.target}  {screen.dim(screen.short(invocation))}  {how}")

    def _watch_disk(self) -> None:
        warning = low_space(self._options.base_dir)
        if warning is not None and not self._low_on_space:
            self._say(screen.error(f"{warning} Free some space, or use another --base-dir."))
        self._low_on_space = warning is not None


def _relative(path: Path) -> str:
    absolute, here = path.absolute(), Path.cwd()
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(absolute)
