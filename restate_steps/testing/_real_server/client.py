"""A client of a real server, with the methods of the simulator.

The same scenario can run on both: see :func:`restate_steps.testing.on_both`. Time is real, and what only the simulator
knows, such as effects, is missing.
"""

from __future__ import annotations

import asyncio
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar
from urllib.parse import quote

import restate
from restate import JournalValueCodec, TerminalError
from restate.handler import Handler

from restate_steps._durations import to_seconds, to_timedelta
from restate_steps._ids import FIRST_AWAKEABLE, awakeable_id, raw_id
from restate_steps.server import RestateServer
from restate_steps.server._journal import decoded
from restate_steps.testing._errors import InvocationEndedError, StuckError
from restate_steps.testing._real_server.threads import in_thread
from restate_steps.testing._simulation.calls import NOTHING, HandlerRef, encoded, json_of, output_of, resolve

if TYPE_CHECKING:
    import httpx

__all__ = ["ServerClient", "ServerInvocation", "ServerResult", "signals_app"]

T = TypeVar("T")

_EVERY: Final = 0.01
_SIGNALS: Final = "ScenarioSignals"

_signals = restate.Service(_SIGNALS)


@_signals.handler()
async def send(ctx: restate.Context, what: list[Any]) -> None:
    """Send a signal on behalf of a client: only handlers can send signals."""
    invocation_id, name, value = what
    ctx.resolve_signal(invocation_id, name, value)


def signals_app() -> Any:
    """Return the application that sends signals for clients."""
    return restate.app([_signals])


@dataclass(frozen=True, slots=True)
class ServerResult(Generic[T]):
    """The result of a successful call.

    Attributes:
        value: The handler's return value, decoded with the handler's own serde.
        invocation_id: The id of the invocation.
    """

    value: T
    invocation_id: str


class ServerInvocation(Generic[T]):
    """A handle to an invocation that was started without waiting for it; made by :meth:`ServerClient.send`."""

    def __init__(self, client: ServerClient, invocation_id: str, handler: Handler[Any, Any] | None) -> None:
        self._client, self.id, self._handler = client, invocation_id, handler

    @property
    def status(self) -> str:
        """The status in ``sys_invocation``. Each read queries the server, and blocks until it answers."""
        return str(self._client.server.admin.invocation(self.id)["status"])

    async def has_ended(self) -> bool:
        """Return whether the invocation has ended.

        :meta private:
        """
        row = await in_thread(self._client.server.admin.invocation, self.id)
        return bool(row["status"] == "completed")

    async def result(self) -> ServerResult[T]:
        """Wait until the invocation ends, and return its result.

        Raises:
            restate.TerminalError: The invocation failed.
        """
        answer = await self._client.http.get(f"/restate/invocation/{self.id}/attach")
        return ServerResult(await self._client.value_of(answer, self._handler), self.id)

    async def cancel(self) -> None:
        """Cancel the invocation: its current wait raises a ``TerminalError`` with the status 409."""
        await in_thread(self._client.server.admin.cancel, self.id)

    async def kill(self) -> None:
        """Kill the invocation and those that it waits for; the handler is not notified."""
        await in_thread(self._client.server.admin.kill, self.id)

    async def resume(self) -> None:
        """Resume the invocation if it is paused."""
        await in_thread(self._client.server.admin.resume, self.id)

    async def signal(self, name: str, value: Any = None) -> None:
        """Send the invocation a named signal, with a value that is encoded as JSON."""
        await self._client.serve_signals()
        await self._client.call(f"{_SIGNALS}/send", [self.id, name, value])

    def __repr__(self) -> str:
        return f"<{self.id}>"


class ServerClient(ABC):
    """A client of a real server with the methods of the simulator.

    Attributes:
        http: The HTTP client of the ingress.
    """

    http: httpx.AsyncClient
    codec: JournalValueCodec | None

    @property
    @abstractmethod
    def server(self) -> RestateServer:
        """The server itself, whose methods block."""

    @abstractmethod
    async def serve_signals(self) -> None:
        """Serve :func:`signals_app` to the server, once."""

    async def call(
        self,
        handler: HandlerRef,
        arg: Any = NOTHING,
        *,
        key: str | None = None,
        idempotency_key: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> ServerResult[Any]:
        """Call a handler and wait for its answer; see :meth:`Simulator.call`.

        Raises:
            restate.TerminalError: The handler failed with it, or the ingress refused the call.
        """
        known, answer = await self._post(handler, arg, key, idempotency_key, headers, "")
        return ServerResult(await self.value_of(answer, known), answer.headers.get("x-restate-id", ""))

    async def send(
        self,
        handler: HandlerRef,
        arg: Any = NOTHING,
        *,
        key: str | None = None,
        idempotency_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        delay: timedelta | float = timedelta(0),
    ) -> ServerInvocation[Any]:
        """Start a handler; see :meth:`Simulator.send`."""
        late = to_timedelta("delay", delay, zero=True)
        query = f"?delay={late // timedelta(milliseconds=1)}ms" if late else ""
        known, answer = await self._post(handler, arg, key, idempotency_key, headers, f"/send{query}")
        if answer.is_error:
            raise _failure(answer)
        return ServerInvocation(self, answer.json()["invocationId"], known)

    async def resolve_awakeable(self, awakeable_id: str, value: Any = None) -> None:
        """Resolve an awakeable, with a value that is encoded as JSON."""
        answer = await self.http.post(
            f"/restate/awakeables/{awakeable_id}/resolve",
            content=json_of(value),
            headers={"content-type": "application/json"},
        )
        answer.raise_for_status()

    async def reject_awakeable(self, awakeable_id: str, reason: str) -> None:
        """Reject an awakeable: its waiter gets a ``TerminalError``."""
        answer = await self.http.post(
            f"/restate/awakeables/{awakeable_id}/reject",
            content=reason.encode(),
            headers={"content-type": "text/plain"},
        )
        answer.raise_for_status()

    async def awakeable(self, invocation: ServerInvocation[Any], n: int = 0) -> str:
        """Return the id of the ``n``-th awakeable; the server keeps an answer until the handler makes the awakeable."""
        return awakeable_id(raw_id(invocation.id), FIRST_AWAKEABLE + n)

    async def until(
        self,
        condition: Callable[[], object],
        *,
        invocation: ServerInvocation[Any] | None = None,
        timeout: timedelta | float = 30.0,
    ) -> None:
        """Wait until a condition holds.

        Args:
            condition: Checked repeatedly.
            invocation: Stop waiting as soon as this invocation has ended.
            timeout: How long to wait, in seconds or as a timedelta.

        Raises:
            restate.TerminalError: The invocation failed with it before the condition held.
            InvocationEndedError: The invocation returned before the condition held.
            StuckError: The condition does not hold in time.
        """
        seconds = to_seconds("timeout", timeout, zero=True)
        end = time.monotonic() + seconds
        while not condition():
            if invocation is not None and await invocation.has_ended() and not condition():
                result = await invocation.result()
                raise InvocationEndedError(f"{invocation!r} has ended before the condition held", result.value)
            if time.monotonic() > end:
                raise StuckError(f"the condition did not hold within {seconds:g} s.")
            await asyncio.sleep(_EVERY)

    async def advance(self, by: timedelta | float) -> None:
        """Let time pass, in seconds or as a timedelta."""
        await asyncio.sleep(to_seconds("by", by, zero=True))

    async def settle(self) -> None:
        """Let other clients of this event loop continue; a server does not report when it is idle."""
        await asyncio.sleep(0)

    def start(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start another client, which runs concurrently with the caller."""
        return asyncio.get_running_loop().create_task(coroutine)

    def state(self, service: str, key: str) -> dict[str, Any]:
        """Return the state of a key of a Virtual Object or workflow. Blocks until the server answers."""
        return {name: decoded(value) for name, value in self.server.admin.state(service, key).items()}

    async def _post(
        self,
        handler: HandlerRef,
        arg: Any,
        key: str | None,
        idempotency_key: str | None,
        headers: Mapping[str, str] | None,
        what: str,
    ) -> tuple[Handler[Any, Any] | None, httpx.Response]:
        target, known = resolve(handler, key)
        body = encoded(target, known, arg)
        sent = {**(headers or {})}
        if body:
            sent["content-type"] = "application/json" if known is None else known.handler_io.accept
            if self.codec is not None:
                body = self.codec.encode(body)
        if idempotency_key is not None:
            sent["idempotency-key"] = idempotency_key
        parts = [target.service, *([] if target.key is None else [target.key]), target.handler]
        path = "/" + "/".join(quote(part, safe="") for part in parts)
        return known, await self.http.post(path + what, content=body, headers=sent)

    async def value_of(self, answer: httpx.Response, handler: Handler[Any, Any] | None) -> Any:
        """Return the value of an answer, or raise its failure."""
        if answer.is_error:
            raise _failure(answer)
        return await output_of(answer.content, handler, self.codec)


def _failure(answer: httpx.Response) -> TerminalError:
    try:
        body: Any = answer.json()
    except json.JSONDecodeError:
        body = {}
    return TerminalError(body.get("message", answer.text), body.get("code", answer.status_code))
