"""Record every scenario from the real server: ``python -m tests.conformance.record [SCENARIO ...]``.

So are random programs, which have the name ``programs``; what comes of one must be the same in every variant.

A new version of the server is a new run; what it changes is then the difference between the recordings.

The application is served by a listener of this module, on the event loop of the scenario, so that every message is
recorded, and a scenario can cut the connections. ``tests.support.harness`` and
``restate_steps.testing.restate_server`` serve from another thread.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import time
from collections.abc import AsyncIterator, Callable, Container, Iterable
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from typing import Any
from urllib.parse import quote

import httpx
from hypercorn.asyncio import serve

from restate_steps._protocol.types import MessageType
from restate_steps._protocol.wire import decode
from restate_steps.errors import ServerError
from restate_steps.server import RestateServer, _sql, ensure_server, server_version
from restate_steps.server._serving import UNLIMITED, Listener, http1_only, listen
from restate_steps.server._serving import _config as hypercorn_config
from restate_steps.testing._recording.export import frames_of_rows
from restate_steps.testing._simulation.application import ASGIApp
from tests.conformance.drive import SCENARIOS, VARIANTS, Answer, Scenario
from tests.conformance.programs import handlers, recorded
from tests.conformance.programs.play import Stored
from tests.conformance.recording import FOLDER, Recording, Tape, normalise, save, sides
from tests.conformance.services import app, board

__all__ = ["Recorder", "recorder"]

PROGRAMS = "programs"
PROGRAM_VARIANTS = tuple(variant for variant in VARIANTS if variant != "v7-vqueues")
QUIET = 0.25
WITHIN = 20.0


class Recorder:
    """The real server as a :class:`tests.conformance.drive.World`, which records what is asked of it."""

    def __init__(
        self, server: RestateServer, client: httpx.AsyncClient, listener: Listener, variant: str, application: ASGIApp
    ) -> None:
        self._server = server
        self._client = client
        self._variant = variant
        self._app = application
        self._listener = listener
        self.tape = Tape()

    async def record(self, scenario: Scenario) -> Recording:
        """Do what a scenario does, and return the normalised recording."""
        board.clear()
        self.tape = Tape()
        async with asyncio.timeout(WITHIN):
            await scenario.drive(self)
            await self.settle()
        note = {
            "scenario": scenario.name,
            "variant": self._variant,
            "server": server_version(ensure_server()),
            "restate-sdk": version("restate-sdk"),
            "protocol": sorted({attempt.version for attempt in self.tape.attempts}),
        }
        recording = normalise(self.tape.raw(note))
        return sides(recording) if self._variant.partition("-")[2] in scenario.loose else recording

    async def serve(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve the application, and record it."""
        await self.tape.around(self._app)(scope, receive, send)

    # --- the world ---

    async def call(
        self,
        service: str,
        handler: str,
        arg: bytes = b"",
        *,
        key: str | None = None,
        idempotency_key: str | None = None,
    ) -> Answer:
        answer = await self._ingress("POST", _path(service, handler, key), arg, idempotency_key)
        self._asked("call", answer, f"{service}/{handler}", arg, key=key, idempotency_key=idempotency_key)
        return answer

    async def send(
        self,
        service: str,
        handler: str,
        arg: bytes = b"",
        *,
        key: str | None = None,
        idempotency_key: str | None = None,
        delay: int | None = None,
    ) -> str:
        path = _path(service, handler, key) + "/send" + (f"?delay={delay}ms" if delay else "")
        answer = await self._ingress("POST", path, arg, idempotency_key)
        self._asked("send", answer, f"{service}/{handler}", arg, key=key, idempotency_key=idempotency_key, delay=delay)
        return str(httpx.Response(200, content=answer.body).json()["invocationId"])

    async def attach(self, invocation_id: str) -> Answer:
        answer = await self._ingress("GET", f"/restate/invocation/{invocation_id}/attach")
        self._asked("attach", answer, invocation_id)
        return answer

    async def output(self, invocation_id: str) -> Answer:
        answer = await self._ingress("GET", f"/restate/invocation/{invocation_id}/output")
        self._asked("output", answer, invocation_id)
        return answer

    async def resolve_awakeable(self, awakeable_id: str, value: bytes) -> Answer:
        answer = await self._ingress("POST", f"/restate/awakeables/{awakeable_id}/resolve", value)
        self._asked("resolve_awakeable", answer, awakeable_id, value)
        return answer

    async def reject_awakeable(self, awakeable_id: str, message: str) -> Answer:
        path = f"/restate/awakeables/{awakeable_id}/reject"
        answer = await self._ingress("POST", path, message.encode(), content_type="text/plain")
        self._asked("reject_awakeable", answer, awakeable_id, message.encode())
        return answer

    async def cancel(self, invocation_id: str) -> Answer:
        return await self._admin(invocation_id, "cancel")

    async def kill(self, invocation_id: str) -> Answer:
        return await self._admin(invocation_id, "kill")

    async def resume(self, invocation_id: str) -> Answer:
        return await self._admin(invocation_id, "resume")

    async def disconnect(self) -> None:
        self.tape.asked("cut")
        self._listener.hang_up()
        # Only those that are open: the server shall connect again.
        self._listener._hung_up = False

    async def status(self, invocation_id: str) -> str:
        found = await self._status(invocation_id)
        self.tape.asked("status", found, invocation=invocation_id)
        return found

    async def until(self, seen: Callable[[], Any]) -> Any:
        while not (found := seen()):  # noqa: ASYNC110 - the condition is any function
            await asyncio.sleep(0.005)
        return found

    async def settle(self) -> None:
        """Wait until nothing was recorded for a while, and no invocation is about to be tried again."""
        since, length = time.monotonic(), self.tape.length
        while time.monotonic() - since < QUIET or await self._coming():
            await asyncio.sleep(0.01)
            if self.tape.length != length:
                since, length = time.monotonic(), self.tape.length

    async def clean_up(self) -> None:
        """Kill what a scenario that failed has left behind."""
        for row in await self._rows(_sql.invocations("id", "status != 'completed'")):
            # It may have ended since.
            with suppress(ServerError):
                await asyncio.to_thread(self._server.admin.kill, row["id"])

    # --- what it stores ---

    async def until_or_ended(self, seen: Callable[[], Any], invocation_id: str, gone: Container[str]) -> Any:
        while not (found := seen()) and await self._stored(invocation_id, gone) is None:  # noqa: ASYNC110 - the server sends no notice
            await asyncio.sleep(0.02)
        # What was published before the end is seen now.
        return found or seen()

    async def stored(self, invocation_id: str, gone: Container[str]) -> dict[str, Stored]:
        while (found := await self._stored(invocation_id, gone)) is None:  # noqa: ASYNC110 - the server sends no notice
            await asyncio.sleep(0.02)
        return found

    async def state(self, of_keys: str) -> dict[str, Any]:
        query = _sql.select(
            "service_name, service_key, key, value_utf8",
            "state",
            f"starts_with(service_key, {_sql.quoted(of_keys)})",
            order_by="service_name, service_key, key",
        )
        found: dict[str, Any] = {}
        for row in await self._rows(query):
            of = found.setdefault(f"{row['service_name']}/{row['service_key']}", {})
            of[row["key"]] = row.get("value_utf8", "")
        return found

    async def _stored(self, invocation_id: str, gone: Container[str]) -> dict[str, Stored] | None:
        """Return what is stored of an invocation and all that it has started; None if one of them has not ended."""
        found: dict[str, Stored] = {}
        level = [invocation_id]
        while level:
            rows = await self._rows(_sql.select("id, status, completion_failure", "sys_invocation", id=level))
            missing = {*level} - {row["id"] for row in rows}
            if any(one not in gone for one in missing) or any(row["status"] != "completed" for row in rows):
                return None
            found |= {one: Stored("gone", None, ()) for one in missing}
            entries: dict[str, list[dict[str, Any]]] = {one: [] for one in level}
            for row in await self._rows(_sql.messages_of(level)):
                entries[row["id"]].append(row)
            journals = {one: frames_of_rows(entries[one], one) for one in level}
            found |= {
                row["id"]: Stored("completed", row.get("completion_failure"), journals[row["id"]]) for row in rows
            }
            started = {
                decode(frame)["invocation_id"]: None
                for one in level
                for frame in journals[one]
                if frame.type == MessageType.CALL_INVOCATION_ID_COMPLETION
            }
            level = [one for one in started if one not in found]
        return found

    # --- how ---

    async def _coming(self) -> list[Any]:
        return await self._rows(_sql.invocations(status=["backing-off", "ready"]))

    async def _status(self, invocation_id: str) -> str:
        rows = await self._rows(_sql.select("status", "sys_invocation", id=invocation_id))
        return str(rows[0]["status"]) if rows else "unknown"

    async def _rows(self, sql: str) -> list[dict[str, Any]]:
        return await asyncio.to_thread(self._server.admin.query, sql)

    async def _ingress(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        idempotency_key: str | None = None,
        content_type: str = "application/json",
    ) -> Answer:
        headers = {"content-type": content_type} if body else {}
        if idempotency_key is not None:
            headers["idempotency-key"] = idempotency_key
        answer = await self._client.request(method, self._server.ingress_url + path, content=body, headers=headers)
        return Answer(answer.status_code, answer.content)

    async def _admin(self, invocation_id: str, verb: str) -> Answer:
        response = await self._client.patch(f"{self._server.admin_url}/invocations/{invocation_id}/{verb}")
        answer = Answer(response.status_code, response.content)
        self._asked(verb, answer, invocation_id)
        return answer

    def _asked(self, what: str, answer: Answer, of: str, arg: bytes = b"", **more: Any) -> None:
        shown = {"status": answer.status, "body": _shown(answer.body)}
        self.tape.asked(what, shown, of=of, arg=_shown(arg) if arg else None, **more)


def _path(service: str, handler: str, key: str | None) -> str:
    return f"/{service}/{handler}" if key is None else f"/{service}/{quote(key, safe='')}/{handler}"


def _shown(body: bytes) -> str:
    return body.decode(errors="backslashreplace")


@asynccontextmanager
async def recorder(variant: str, application: ASGIApp | None = None) -> AsyncIterator[Recorder]:
    """Start a server for a variant, serve the scenarios' or another application to it, and yield what records it."""
    protocol, _, mode = variant.partition("-")
    # Nobody here looks at how long the server waits before a retry.
    env = {"RESTATE_DEFAULT_RETRY_POLICY__INITIAL_INTERVAL": "20ms"}
    if protocol == "v7":
        env["RESTATE_EXPERIMENTAL_ENABLE_PROTOCOL_V7"] = "true"
    if mode == "vqueues":
        env["RESTATE_EXPERIMENTAL_ENABLE_VQUEUES"] = "true"
    server = RestateServer(always_replay=mode == "replay", env=env)
    await asyncio.to_thread(server.start)
    try:
        async with recording(server, variant, app() if application is None else application) as found:
            yield found
    finally:
        await asyncio.to_thread(server.stop)


@asynccontextmanager
async def recording(server: RestateServer, variant: str, application: ASGIApp) -> AsyncIterator[Recorder]:
    """Serve an application to a server that runs, and yield what records it."""
    is_http1 = variant.endswith("http1")
    stopping, ready = asyncio.Event(), asyncio.Event()
    serving: asyncio.Future[None] | None = None
    listener = listen("127.0.0.1", 0)

    async def until_stopped() -> None:
        ready.set()
        await stopping.wait()

    try:
        async with httpx.AsyncClient(trust_env=False, timeout=WITHIN) as client:
            found = Recorder(server, client, listener, variant, application)
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            serve_app: Any = http1_only(found.serve) if is_http1 else found.serve
            serving = asyncio.ensure_future(
                serve(serve_app, hypercorn_config(listener, UNLIMITED), shutdown_trigger=until_stopped, mode="asgi")
            )
            await ready.wait()
            await asyncio.to_thread(server.admin.register, url, http1=is_http1)
            yield found
    finally:
        # With the server's connections gone, Hypercorn has nothing left to wait for.
        listener.hang_up()
        stopping.set()
        if serving is not None:
            await asyncio.wait([serving])


async def record(variant: str, scenarios: Iterable[Scenario]) -> list[str]:
    """Record scenarios in one variant, and return the names of those that did not end."""
    failed: list[str] = []
    async with recorder(variant) as found:
        for scenario in scenarios:
            try:
                save(await found.record(scenario), scenario.name, variant)
            except Exception as error:
                failed.append(scenario.name)
                print(f"{variant} {scenario.name}: {error!r}\n{found.tape.client}", file=sys.stderr, flush=True)
                await found.clean_up()
    return failed


async def record_programs() -> list[str]:
    """Record random programs, unless something is not the same in every variant, and return that."""
    programs = recorded.chosen()
    first: list[dict[str, Any]] = []
    failed: list[str] = []
    for variant in PROGRAM_VARIANTS:
        async with recorder(variant, handlers.app()) as found:
            played = await recorded.play_all(found, programs, "")
        first = first or played
        for program, expected, other in zip(programs, first, played, strict=True):
            if different := recorded.differences(program, expected, other, of=variant):
                failed.append(different)
    if failed:
        return failed
    for number in recorded.numbers():
        (recorded.FOLDER / f"{number}.json").unlink()
    note = {
        "variants": list(PROGRAM_VARIANTS),
        "server": server_version(ensure_server()),
        "restate-sdk": version("restate-sdk"),
    }
    for program, played_once in zip(programs, first, strict=True):
        recorded.save(program, played_once, note)
    return []


def main() -> None:
    """Record what the command line names, or everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenarios", nargs="*", help="their names; all if left out")
    parser.add_argument("--variant", action="append", choices=VARIANTS, help="all if left out")
    chosen = parser.parse_args()
    # The handlers fail on purpose.
    logging.getLogger("restate").setLevel(logging.CRITICAL)
    names = chosen.scenarios or [*SCENARIOS, PROGRAMS]
    wanted = [SCENARIOS[name] for name in names if name != PROGRAMS]
    for variant in (chosen.variant or VARIANTS) if wanted else ():
        these = [one for one in wanted if variant in one.variants()]
        failed = asyncio.run(record(variant, these))
        print(f"{variant}: {len(these) - len(failed)} of {len(these)} scenarios in {FOLDER / variant}", flush=True)
    if PROGRAMS in names:
        if different := asyncio.run(record_programs()):
            sys.exit("\n\n".join([*different, "No program was recorded: these are not the same in every variant."]))
        print(f"{recorded.HOW_MANY} programs in {recorded.FOLDER}", flush=True)


if __name__ == "__main__":
    main()
