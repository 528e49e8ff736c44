"""The simulator as a :class:`tests.conformance.drive.World`, recorded as the real server is."""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Generator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from restate_steps.testing import SimulationError, Simulator, simulate
from restate_steps.testing._simulation.application import ASGIApp
from restate_steps.testing._simulation.invocation import Failure, Invocation, InvocationStatus
from restate_steps.testing._simulation.manifest import Target, UnknownHandlerError
from tests.conformance.drive import Answer, Scenario
from tests.conformance.programs.play import Stored
from tests.conformance.recording import Recording, Tape, normalise, sides
from tests.conformance.services import app, board

__all__ = ["SimulatedServer"]

QUIET = timedelta(seconds=20)
"""Longer than what a scenario waits for, shorter than the hour that it does not wait for."""

_STATUS = {InvocationStatus.QUEUED: "pending"}


class SimulatedServer:
    """Does what a scenario does with a simulator, and records it."""

    def __init__(self, variant: str) -> None:
        protocol, _, mode = variant.partition("-")
        self._variant = variant
        self._options: dict[str, Any] = {
            "version": int(protocol.removeprefix("v")),
            "mode": "request_response" if mode == "http1" else "bidirectional",
            "always_replay": mode == "replay",
        }
        self.tape = Tape()
        self._simulator: Simulator

    async def record(self, scenario: Scenario) -> Recording:
        """Do what a scenario does, and return the normalised recording."""
        board.clear()
        with self.simulating(app()):
            await scenario.drive(self)
            await self.settle()
            recording = normalise(self.tape.raw({}))
        return sides(recording) if self._variant.partition("-")[2] in scenario.loose else recording

    @contextmanager
    def simulating(self, application: ASGIApp) -> Generator[None, None, None]:
        """Play the server for an application until the block ends."""
        self.tape = Tape()
        with simulate(self.tape.around(application), **self._options) as self._simulator:
            self._world = self._simulator.driver.model
            self._world.retry_mismatches = True
            yield

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
        asked = {"key": key, "idempotency_key": idempotency_key}
        of = f"{service}/{handler}"
        before = len(self._world.invocations)
        try:
            invocation, _ = self._submit(service, handler, arg, key, idempotency_key, 0)
        except UnknownHandlerError as error:
            return self._asked("call", Answer(404, _error(404, str(error), "ingress")), of, arg, **asked)
        if invocation.info.workflow and len(self._world.invocations) == before:
            taken = Answer(409, _error(409, "the workflow method was already invoked", "invocation"))
            return self._asked("call", taken, of, arg, **asked)
        self._wait(invocation)
        return self._asked("call", _result(invocation), of, arg, **asked)

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
        before = len(self._world.invocations)
        invocation, at = self._submit(service, handler, arg, key, idempotency_key, delay or 0)
        known = len(self._world.invocations) == before
        answer: dict[str, Any] = {"invocationId": invocation.id}
        if at:
            answer["executionTime"] = "<time>"
        answer["status"] = "PreviouslyAccepted" if known else "Accepted"
        await self._simulator.settle()
        asked = {"key": key, "idempotency_key": idempotency_key, "delay": delay}
        body = json.dumps(answer).encode()
        self._asked("send", Answer(202, body), f"{service}/{handler}", arg, **asked)
        return invocation.id

    async def attach(self, invocation_id: str) -> Answer:
        invocation = self._world.invocations.get(invocation_id)
        if invocation is None:
            code = 404 if invocation_id.startswith("inv_1") else 400
            return self._asked("attach", Answer(code, _error(code, "not found", _source(code))), invocation_id)
        self._wait(invocation)
        return self._asked("attach", _result(invocation), invocation_id)

    async def output(self, invocation_id: str) -> Answer:
        invocation = self._world.invocations.get(invocation_id)
        if invocation is None:
            answer = Answer(404, _error(404, "invocation not found", "ingress"))
        elif not invocation.ended:
            answer = Answer(470, _error(470, "the invocation exists but has not completed yet", "ingress"))
        else:
            answer = _result(invocation)
        return self._asked("output", answer, invocation_id)

    async def resolve_awakeable(self, awakeable_id: str, value: bytes) -> Answer:
        return self._complete("resolve_awakeable", awakeable_id, value, value={"content": value})

    async def reject_awakeable(self, awakeable_id: str, message: str) -> Answer:
        failure = Failure(500, message).fields()
        return self._complete("reject_awakeable", awakeable_id, message.encode(), failure=failure)

    async def cancel(self, invocation_id: str) -> Answer:
        invocation = self._world.invocations[invocation_id]
        if invocation.ended:
            message = f"The invocation '{invocation_id}' was already completed."
            body = json.dumps({"message": message, "restate_code": None}).encode()
            return self._asked("cancel", Answer(409, body), invocation_id)
        at_once = invocation.status in (InvocationStatus.QUEUED, InvocationStatus.SCHEDULED)
        self._world.cancel(invocation_id)
        await self._simulator.settle()
        return self._asked("cancel", Answer(200 if at_once else 202, b""), invocation_id)

    async def kill(self, invocation_id: str) -> Answer:
        self._simulator.driver.kill(invocation_id)
        await self._simulator.settle()
        return self._asked("kill", Answer(200, b""), invocation_id)

    async def resume(self, invocation_id: str) -> Answer:
        self._world.resume(invocation_id)
        await self._simulator.settle()
        return self._asked("resume", Answer(200, b""), invocation_id)

    async def disconnect(self) -> None:
        self.tape.asked("cut")
        await self._simulator.disconnect()

    async def status(self, invocation_id: str) -> str:
        status = self._world.invocations[invocation_id].status
        found = _STATUS.get(status, status.value)
        self.tape.asked("status", found, invocation=invocation_id)
        return found

    async def until(self, seen: Callable[[], Any]) -> Any:
        found = seen()
        if not found:
            self._simulator.driver.run(lambda: bool(seen()))
            found = seen()
        if not found:
            raise SimulationError("nothing more can happen, and what the scenario waits for has not")
        return found

    async def settle(self) -> None:
        self._simulator.driver.run_to(self._world.now + QUIET // timedelta(milliseconds=1))

    # --- what it stores ---

    async def until_or_ended(self, seen: Callable[[], Any], invocation_id: str, gone: Container[str]) -> Any:
        self._simulator.driver.run(lambda: bool(seen()) or self._have_ended())
        return seen()

    async def stored(self, invocation_id: str, gone: Container[str]) -> dict[str, Stored]:
        if not self._simulator.driver.run(self._have_ended):
            raise SimulationError("an invocation does not end")
        return {each: self._stored(self._world.invocations[each]) for each in self._started_by(invocation_id)}

    async def state(self, of_keys: str) -> dict[str, Any]:
        return {
            f"{service}/{key}": {name.decode(): place.state[name].decode() for name in sorted(place.state)}
            for (service, key, _), place in sorted(self._world.objects.items(), key=lambda item: str(item[0]))
            if key.startswith(of_keys) and place.state
        }

    def _have_ended(self) -> bool:
        return all(each.ended for each in self._world.invocations.values())

    def _started_by(self, invocation_id: str) -> list[str]:
        known = [invocation_id]
        for one in known:
            known += [child for child in self._world.invocations[one].children if child not in known]
        return known

    @staticmethod
    def _stored(invocation: Invocation) -> Stored:
        if invocation.removal is not None:
            return Stored("gone", None, ())
        failure = invocation.failure
        shown = None if failure is None else f"[{failure.code}] {failure.message}"
        return Stored(_STATUS.get(invocation.status, invocation.status.value), shown, tuple(invocation.journal))

    # --- how ---

    def _submit(
        self, service: str, handler: str, arg: bytes, key: str | None, idempotency_key: str | None, delay: int
    ) -> tuple[Invocation, int]:
        at = self._world.now + delay if delay else 0
        target = Target(service, handler, key)
        return self._world.submit(target, arg, idempotency_key=idempotency_key, at=at), at

    def _wait(self, invocation: Invocation) -> None:
        if not self._simulator.driver.run(lambda: invocation.ended):
            raise SimulationError(f"{invocation.target} does not end")

    def _complete(self, what: str, awakeable_id: str, arg: bytes, **outcome: Any) -> Answer:
        try:
            self._world.complete_awakeable(awakeable_id, **outcome)
        except (ValueError, LookupError) as error:
            return self._asked(what, Answer(400, _error(400, str(error), "ingress")), awakeable_id, arg)
        self._simulator.run(self._simulator.settle())
        return self._asked(what, Answer(202, b""), awakeable_id, arg)

    def _asked(self, what: str, answer: Answer, of: str, arg: bytes = b"", **more: Any) -> Answer:
        shown = {"status": answer.status, "body": _shown(answer.body)}
        self.tape.asked(what, shown, of=of, arg=_shown(arg) if arg else None, **more)
        return answer


def _result(invocation: Invocation) -> Answer:
    failure = invocation.failure
    if failure is None:
        return Answer(200, invocation.output or b"")
    status = failure.code if 400 <= failure.code < 600 else 500
    more = {"metadata": dict(failure.metadata), "stacktrace": failure.stacktrace}
    return Answer(status, _error(failure.code, failure.message, "invocation", **more))


def _error(code: int, message: str, source: str, **more: Any) -> bytes:
    shown = {name: value for name, value in more.items() if value}
    return json.dumps({"code": code, "message": message, **shown, "source": source}).encode()


def _source(code: int) -> str:
    """Who complains of an invocation that is not there: the ingress, if it cannot even be one."""
    return "invocation" if code == 404 else "ingress"


def _shown(body: bytes) -> str:
    return body.decode(errors="backslashreplace")
