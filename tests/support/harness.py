"""Call handlers on a real restate-server from a test.

A :class:`Harness` owns one server, started when it is first needed. :meth:`Harness.serve` serves an application to it
from a thread and yields an :class:`Env`, which calls handlers as a client would. When the block ends, invocations of
its services that have not ended are killed, so that they cannot disturb the tests that share the server.

The public ``restate_steps.testing.restate_server`` is built on the same ``RestateServer`` and ``AppServer``. These
tests do not use it because most are plain functions, call handlers by name and with raw bytes, and stop and restart the
application.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol, Self, TypeVar
from urllib.parse import quote

import httpx

from restate_steps.errors import ServerError
from restate_steps.server import AppServer, ASGIApp, RestateServer, _sql

__all__ = ["Env", "Harness", "InvocationFailed", "Serve", "eventually"]

T = TypeVar("T")

_ENDED = "completed"
_CLEANUP_WITHIN = 20.0


class InvocationFailed(Exception):
    """The server answered a call with an error.

    Attributes:
        status: The HTTP status, which is the code of a handler's ``TerminalError``.
        message: The error's message.
        body: The whole answer, decoded if it is JSON.
    """

    def __init__(self, status: int, message: str, body: Any) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message
        self.body = body


def eventually(look: Callable[[], T], *, timeout: float = 30.0, every: float = 0.02) -> T:
    """Look again and again until what is seen is true in a boolean sense, and return it."""
    deadline = time.monotonic() + timeout
    while not (seen := look()):
        if time.monotonic() > deadline:
            raise AssertionError(f"it did not happen within {timeout:g} s; last seen: {seen!r}")
        time.sleep(every)
    return seen


class Env:
    """One application, registered with a server.

    Attributes:
        server: The server.
        app_server: What serves the application; its thread can be stopped and started again in the middle of a test.
        deployment_id: The id it was registered as.
        services: The names of its services.
    """

    def __init__(self, server: RestateServer, app_server: AppServer, client: httpx.Client) -> None:
        self.server = server
        self.app_server = app_server
        self._client = client
        self.deployment_id = server.admin.register(app_server.url, http1=app_server.http1)
        self.services = tuple(server.admin.services(self.deployment_id))

    def call(
        self,
        service: str,
        handler: str,
        arg: Any = None,
        *,
        key: str | None = None,
        idempotency_key: str | None = None,
        timeout: float = 60,
    ) -> Any:
        """Call a handler with an argument that is encoded as JSON, wait for it, and decode its answer.

        ``None`` is sent as an empty body, which is what a handler without an argument expects.

        Raises:
            InvocationFailed: If the handler ended with an error.
            TimeoutError: If there is no answer in time.
        """
        answer = self._post(_path(service, handler, key), arg, idempotency_key, timeout)
        return _decoded(answer)

    def call_raw(
        self,
        service: str,
        handler: str,
        body: bytes = b"",
        *,
        key: str | None = None,
        content_type: str | None = "application/json",
        idempotency_key: str | None = None,
        timeout: float = 60,
    ) -> bytes:
        """Call a handler with bytes, wait for it, and return the bytes of its answer."""
        headers = {"content-type": content_type} if body and content_type else {}
        answer = self._request("POST", _path(service, handler, key), body, headers, idempotency_key, timeout)
        return answer.content

    def send(
        self,
        service: str,
        handler: str,
        arg: Any = None,
        *,
        key: str | None = None,
        idempotency_key: str | None = None,
        timeout: float = 60,
    ) -> str:
        """Start a handler without waiting for it, and return the id of the invocation."""
        answer = self._post(_path(service, handler, key) + "/send", arg, idempotency_key, timeout)
        return str(answer.json()["invocationId"])

    def attach(self, invocation_id: str, timeout: float = 60) -> Any:
        """Wait for an invocation that was started before, and decode its answer.

        Raises:
            InvocationFailed: If the handler ended with an error.
            TimeoutError: If it has not ended in time.
        """
        return _decoded(self._request("GET", f"/restate/invocation/{invocation_id}/attach", b"", {}, None, timeout))

    def resolve_awakeable(self, awakeable_id: str, value: Any = None) -> None:
        """Resolve an awakeable from outside, with a value that is encoded as JSON."""
        self._post(f"/restate/awakeables/{awakeable_id}/resolve", value, None, 30)

    def kill_open_invocations(self) -> None:
        """Kill every invocation of this application's services that has not ended, and wait until they have."""
        deadline = time.monotonic() + _CLEANUP_WITHIN
        while open_ids := self._open_invocations():
            if time.monotonic() > deadline:
                raise AssertionError(f"these invocations could not be killed: {open_ids}")
            for invocation_id in open_ids:
                try:
                    self.server.admin.kill(invocation_id)
                except ServerError:
                    # It may have ended since; what is still open is seen in the next round.
                    continue

    def _open_invocations(self) -> list[str]:
        if not self.services:
            return []
        query = _sql.invocations("id", f"status != '{_ENDED}'", service=self.services)
        return [row["id"] for row in self.server.admin.query(query)]

    def _post(self, path: str, arg: Any, idempotency_key: str | None, timeout: float) -> httpx.Response:
        if arg is None:
            return self._request("POST", path, b"", {}, idempotency_key, timeout)
        body = json.dumps(arg).encode()
        return self._request("POST", path, body, {"content-type": "application/json"}, idempotency_key, timeout)

    def _request(
        self, method: str, path: str, body: bytes, headers: dict[str, str], idempotency_key: str | None, timeout: float
    ) -> httpx.Response:
        if idempotency_key is not None:
            headers = {**headers, "idempotency-key": idempotency_key}
        url = self.server.ingress_url + path
        try:
            answer = self._client.request(method, url, content=body, headers=headers, timeout=timeout)
        except httpx.TimeoutException as error:
            raise TimeoutError(f"{method} {path}: no answer within {timeout:g} s") from error
        if not answer.is_success:
            body_seen = _decoded(answer)
            message = body_seen.get("message", "") if isinstance(body_seen, dict) else str(body_seen)
            raise InvocationFailed(answer.status_code, message, body_seen)
        return answer


class Serve(Protocol):
    """Serves services to a real server until the test ends."""

    def __call__(self, *services: Any, http1: bool = False) -> Env: ...


class Harness:
    """One server that many tests share.

    Args:
        always_replay: Whether the server shall suspend at every wait, so that each handler goes on by replay.
        env: More environment variables for the server.
    """

    def __init__(self, *, always_replay: bool = False, env: dict[str, str] | None = None) -> None:
        self.always_replay = always_replay
        self._env = env
        self._server: RestateServer | None = None

    @property
    def server(self) -> RestateServer:
        """The server, started when it is first asked for."""
        if self._server is None:
            self._server = RestateServer(always_replay=self.always_replay, env=self._env).start()
        return self._server

    @contextmanager
    def serve(self, app: ASGIApp, *, http1: bool = False) -> Generator[Env, None, None]:
        """Serve an application on a port of its own and register it, until the block ends."""
        with ExitStack() as stack:
            client = stack.enter_context(httpx.Client(trust_env=False))
            app_server = stack.enter_context(AppServer(app, http1=http1))
            env = Env(self.server, app_server, client)
            stack.callback(env.kill_open_invocations)
            yield env

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Stop the server, if it was started."""
        if self._server is not None:
            self._server.stop()
            self._server = None


def _path(service: str, handler: str, key: str | None) -> str:
    parts: Iterable[str] = (service, handler) if key is None else (service, quote(key, safe=""), handler)
    return "/" + "/".join(parts)


def _decoded(answer: httpx.Response) -> Any:
    if not answer.content:
        return None
    try:
        return answer.json()
    except ValueError:
        return answer.text
