"""Kill a durable agent and a durable checkout halfway, restart them, and show which steps ran: ``make demo``.

The demo starts a restate-server, and serves the examples from a separate process. Once both handlers are halfway, it
kills that process with SIGKILL. Afterwards the server's journal shows which steps were recorded, and a ledger shows
which bodies ran. The demo fails if an answer is wrong, or if the body of a recorded step ran again.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

ROOT = Path(__file__).resolve().parent.parent
# `python examples/demo.py` searches examples/ only, but the examples import each other as a package.
sys.path.insert(0, str(ROOT))

import httpx  # noqa: E402

from examples import ledger  # noqa: E402
from examples.payments import charges  # noqa: E402
from examples.report import Report, report_steps, show, times  # noqa: E402
from restate_steps.errors import ServerError  # noqa: E402
from restate_steps.server import AppServer, JournalEntry, RestateServer, ensure_server, server_version  # noqa: E402

_TIMEOUT = 60.0
_POLL_INTERVAL = 0.02
_ATTEMPTS = 5
_SERVE = "--serve"


class DemoError(Exception):
    """The demo could not run."""


@dataclass(frozen=True)
class Call:
    """A call of a handler.

    Attributes:
        target: The service and the handler.
        argument: The handler's argument.
        check: Returns the problem with the answer, or None.
    """

    target: str
    argument: Any
    check: Callable[[Any], str | None]


def _wrong_greeting(answer: Any) -> str | None:
    # A real model may choose other words.
    return None if "Ada" in str(answer) else f"the answer should greet Ada, but is {answer!r}"


def _wrong_receipt(answer: Any) -> str | None:
    expected = {"order_id": "order-1", "total": "42.50", "delivered_on": "2026-03-04T12:00:00Z"}
    right = isinstance(answer, dict) and expected.items() <= cast("dict[str, Any]", answer).items()
    return None if right else f"the receipt should contain {expected}, but is {answer!r}"


CALLS = (
    Call("Greeter/greet", "Ada", _wrong_greeting),
    Call(
        "Shop/checkout",
        {"id": "order-1", "card": "4242", "prices": ["40.00", "2.50"], "placed_at": "2026-03-01T12:00:00Z"},
        _wrong_receipt,
    ),
)


class Application:
    """The examples, served by a separate process.

    Args:
        folder: The folder for the ledger, the payments, and the output of the process.
    """

    def __init__(self, folder: Path) -> None:
        self._log = folder / "application.log"
        self.ledger = folder / "ledger"
        self.payments = folder / "payments"
        self._process: subprocess.Popen[str] | None = None
        self.port = 0

    @property
    def pid(self) -> int:
        """The id of the process."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start the process, on the same port as before, and wait until it is serving.

        Raises:
            DemoError: The process did not start.
        """
        environment = {
            "RESTATE_STEPS_PACE": "0.3",
            **os.environ,
            "RESTATE_STEPS_LEDGER": str(self.ledger),
            "RESTATE_STEPS_PAYMENTS": str(self.payments),
        }
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, __file__, _SERVE, str(self.port)],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                # Ctrl-C must reach only the demo, which then stops this process itself.
                start_new_session=True,
            )
        assert self._process.stdout is not None
        said = self._process.stdout.readline().strip()
        if not said:
            raise DemoError(f"the examples could not be served:\n{self._log.read_text()}")
        self.port = int(said)

    def kill(self) -> None:
        """Kill the process with SIGKILL and wait until it is gone; do nothing if it is not running."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
            self._process = None

    def started(self, invocation: str) -> list[ledger.Started]:
        """Return the bodies of an invocation's steps that have started."""
        return [started for started in ledger.read(self.ledger) if started.invocation == invocation]

    def charged(self) -> list[str]:
        """Return the idempotency keys of the payments that were made."""
        return list(charges(self.payments))


def serve(port: int) -> int:
    """Serve the examples, print the port, and stop once stdin is closed, because the parent process is gone then."""
    from examples.app import app

    with AppServer(app, port=port or None) as served:
        print(served.url.rpartition(":")[2], flush=True)
        sys.stdin.read()
    return 0


@contextmanager
def serving(folder: Path) -> Generator[Application]:
    """Serve the examples until the block ends."""
    application = Application(folder)
    try:
        application.start()
        yield application
    finally:
        application.kill()


def _steps_recorded(journal: list[JournalEntry]) -> int:
    return sum(entry.type == "Command: Run" and entry.completed for entry in journal)


def _progress(server: RestateServer, application: Application, invocation: str) -> str:
    """Return how far an invocation is: ``early``, ``middle`` (steps recorded, and a body running) or ``late``."""
    journal = server.admin.journal(invocation)
    if any(entry.type == "Command: Output" for entry in journal):
        return "late"
    recorded = _steps_recorded(journal)
    started = {(body.step, body.key) for body in application.started(invocation)}
    return "middle" if recorded >= 2 and len(started) > recorded else "early"


def _call_handlers(server: RestateServer, application: Application, client: httpx.Client) -> list[str]:
    """Call the handlers, wait until all of them are halfway, and return the ids of the invocations."""
    for attempt in range(_ATTEMPTS):
        invocations: list[str] = []
        for call in CALLS:
            key = {"idempotency-key": f"demo-{attempt}"}
            sent = client.post(f"{server.ingress_url}/{call.target}/send", json=call.argument, headers=key)
            invocations.append(sent.raise_for_status().json()["invocationId"])
        deadline = time.monotonic() + _TIMEOUT
        while True:
            progress = {_progress(server, application, invocation) for invocation in invocations}
            if progress == {"middle"}:
                return invocations
            if "late" in progress:
                break
            if time.monotonic() > deadline:
                raise DemoError(f"the handlers did not get halfway within {_TIMEOUT:g} s.")
            time.sleep(_POLL_INTERVAL)
    raise DemoError("one handler always finished before the other was halfway. Set RESTATE_STEPS_PACE to 1 or more.")


def demonstrate() -> int:
    """Run the demo and return the exit code."""
    print(f"starting restate-server {server_version(ensure_server())}", flush=True)
    with (
        tempfile.TemporaryDirectory(prefix="restate-steps-demo-") as folder,
        httpx.Client(trust_env=False, timeout=_TIMEOUT) as client,
        RestateServer() as server,
        serving(Path(folder)) as application,
    ):
        server.admin.register(f"http://127.0.0.1:{application.port}")
        print(f"calling {' and '.join(call.target for call in CALLS)}, served by process {application.pid}", flush=True)
        invocations = _call_handlers(server, application, client)
        print(f"killing process {application.pid} with SIGKILL, while both calls are halfway", flush=True)
        application.kill()
        journals_then = [server.admin.journal(invocation) for invocation in invocations]
        started_then = [application.started(invocation) for invocation in invocations]

        application.start()
        print(f"restarted as process {application.pid}; attaching to both calls", flush=True)
        reports: list[Report] = []
        for number, (call, invocation) in enumerate(zip(CALLS, invocations, strict=True)):
            answer = _attach(client, server, invocation)
            steps = report_steps(
                server.admin.journal(invocation),
                journals_then[number],
                application.started(invocation),
                started_then[number],
            )
            reports.append(Report(call.target, steps, answer, call.check(answer)))
        charged = sum(key.startswith(invocations[-1]) for key in application.charged())
        return conclude(reports, charged)


def _attach(client: httpx.Client, server: RestateServer, invocation: str) -> Any:
    answered = client.get(f"{server.ingress_url}/restate/invocation/{invocation}/attach")
    return answered.json() if answered.is_success else f"error {answered.status_code}: {answered.text}"


def conclude(reports: list[Report], charged: int) -> int:
    """Print the reports and the conclusion.

    Args:
        reports: The reports; the last one is the checkout's.
        charged: The number of times the payment service charged the card.

    Returns:
        The exit code: 0 if everything is correct.
    """
    for report in reports:
        show(report)
    requests = sum(step.runs for step in reports[-1].steps if step.name.startswith("charge"))
    print(
        "\nA step that is running when its process dies has no recorded result, so its body runs again (at least once)."
        f"\nThat is why a step has an idempotency key: the payment service got the request {times(requests)}, and "
        f"charged the card {times(charged)}."
    )
    problems = [problem for report in reports for problem in report.problems]
    if charged != 1:
        problems.append(f"the card was charged {times(charged)}")
    if problems:
        print("\n" + "\n".join(f"WRONG: {problem}" for problem in problems))
        print("\nThe demo failed, for the reasons above.")
        return 1
    print("\nBoth calls were answered as if nothing had happened, and no recorded step ran again.")
    return 0


def main(arguments: list[str]) -> int:
    """Run the demo, or serve the examples for it."""
    if arguments[:1] == [_SERVE]:
        return serve(int(arguments[1]))
    try:
        return demonstrate()
    except (DemoError, ServerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
