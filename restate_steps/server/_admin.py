"""A small typed client for the server's admin API."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

from restate_steps._durations import to_seconds
from restate_steps._versions import warn_about_server
from restate_steps.errors import ServerError
from restate_steps.server import _sql
from restate_steps.server._answers import explained, unsendable
from restate_steps.server._extra import missing_extra
from restate_steps.server._journal import JournalEntry, read_journal

if TYPE_CHECKING:
    import httpx

__all__ = ["AdminClient", "add_reasons_of_pauses"]

_TIMEOUT = 30.0


class AdminClient:
    """A client for the admin API of a running server.

    Args:
        admin_url: The URL of the API, for example ``http://127.0.0.1:9070``.
        timeout: The maximum time to wait for an answer, in seconds or as a timedelta.
        token: A bearer token for the API, as Restate Cloud and most proxies require.

    Example:
        >>> admin = AdminClient("http://127.0.0.1:9070")
        >>> admin.admin_url
        'http://127.0.0.1:9070'
    """

    def __init__(self, admin_url: str, *, timeout: timedelta | float = _TIMEOUT, token: str | None = None) -> None:
        self._admin_url = admin_url.rstrip("/")
        self._timeout = to_seconds("timeout", timeout)
        self._token = token

    @property
    def admin_url(self) -> str:
        """The URL of the admin API."""
        return self._admin_url

    def version(self) -> dict[str, Any]:
        """Return the server's description of itself.

        Returns:
            The ``version``, the optional ``features`` that are enabled, and more.

        Raises:
            ServerError: If the server cannot be reached.
        """
        return self._object("GET", "/version", doing="get the version")

    def register(
        self,
        uri: str,
        *,
        force: bool = True,
        http1: bool = False,
        headers: Mapping[str, str] | None = None,
        assume_role: str | None = None,
    ) -> str:
        """Register the application at a URL, so that its handlers can be called.

        It warns, with an :class:`UntestedVersionWarning`, if this package was not tested with the server's version.

        Args:
            uri: The URL of the application, or the ARN of a version of an AWS Lambda function.
            force: Whether to replace an existing deployment with the same URL.
            http1: Whether the application is served over HTTP/1.1, in request/response mode.
            headers: Headers that Restate adds to each request to the application, for example ``authorization``.
            assume_role: The ARN of the role with which Restate calls the Lambda function.

        Returns:
            The deployment's id.

        Raises:
            ServerError: If the server cannot be reached, or cannot discover the application.
        """
        deployment = self._deploy(uri, f"register {uri}", force, http1, headers, assume_role)
        # The application is registered, so this must not fail.
        with contextlib.suppress(ServerError):
            warn_about_server(str(self.version()["version"]))
        return str(deployment["id"])

    def discover(
        self,
        uri: str,
        *,
        force: bool = True,
        http1: bool = False,
        headers: Mapping[str, str] | None = None,
        assume_role: str | None = None,
    ) -> dict[str, Any]:
        """Return what :meth:`register` would register, and change nothing.

        Args:
            uri: The URL of the application, or the ARN of a version of an AWS Lambda function.
            force: Whether to replace an existing deployment with the same URL.
            http1: Whether the application is served over HTTP/1.1, in request/response mode.
            headers: Headers that Restate adds to each request to the application, for example ``authorization``.
            assume_role: The ARN of the role with which Restate calls the Lambda function.

        Returns:
            The server's description of the deployment: its ``services``, each with its ``name`` and ``revision``, and
            more.

        Raises:
            ServerError: If the server cannot be reached, cannot discover the application, or would not register it.
        """
        return self._deploy(uri, f"discover {uri}", force, http1, headers, assume_role, dry_run=True)

    def deployment(self, deployment_id: str) -> dict[str, Any]:
        """Look up a deployment.

        Args:
            deployment_id: The id that :meth:`register` returned.

        Returns:
            The server's description: its ``services``, each with its ``name`` and ``revision``, and more.

        Raises:
            ServerError: If the server cannot be reached, or does not know the deployment.
        """
        doing = f"look up the deployment {deployment_id!r}"
        return self._object("GET", f"/deployments/{deployment_id}", doing=doing)

    def services(self, deployment_id: str) -> list[str]:
        """List the services that a deployment currently serves.

        Args:
            deployment_id: The id that :meth:`register` returned.

        Returns:
            The services' names, sorted. Empty if later deployments have replaced all of them.

        Raises:
            ServerError: If the server cannot be reached.
        """
        rows = self._rows(_sql.services_of(deployment_id), doing="list the services")
        return [str(row["name"]) for row in rows]

    def remove_deployment(self, deployment_id: str) -> None:
        """Remove a deployment and its services, even if its invocations have not ended.

        Args:
            deployment_id: The id that :meth:`register` returned.

        Raises:
            ServerError: If the server cannot be reached, or does not know the deployment.
        """
        doing = f"remove the deployment {deployment_id!r}"
        self._request("DELETE", f"/deployments/{deployment_id}", params={"force": "true"}, doing=doing)

    def query(self, sql: str) -> list[dict[str, Any]]:
        """Run a SQL query on the server's tables, such as ``sys_invocation``, ``sys_journal`` and ``state``.

        Args:
            sql: The query.

        Returns:
            The rows. A row omits the columns that have no value.

        Raises:
            ServerError: If the server cannot be reached, or rejects the query.
        """
        return self._rows(sql, doing="run a query")

    def invocation(self, invocation_id: str) -> dict[str, Any]:
        """Look up an invocation.

        Args:
            invocation_id: The invocation's id, which starts with ``inv_``.

        Returns:
            Its row in ``sys_invocation``: ``status``, ``target``, ``retry_count``, ``last_failure`` and more.

        Raises:
            ServerError: If the server cannot be reached or does not know the invocation, or the id is malformed.
        """
        rows = self._rows(_sql.invocation_of(invocation_id), doing=f"look up the invocation {invocation_id!r}")
        if not rows:
            raise ServerError(
                f"the server at {self.admin_url} does not know the invocation {invocation_id!r}. Either the id is "
                "wrong, or the invocation has completed and the server no longer retains it."
            )
        add_reasons_of_pauses(self, rows)
        return rows[0]

    def journal(self, invocation_id: str) -> list[JournalEntry]:
        """Read an invocation's journal.

        Args:
            invocation_id: The invocation's id, which starts with ``inv_``.

        Returns:
            The entries, in order. Empty if the server does not know the invocation.

        Raises:
            ServerError: If the server cannot be reached, or the id is malformed.
        """
        doing = f"read the journal of the invocation {invocation_id!r}"
        return read_journal(self._rows(_sql.entries_of(invocation_id), doing=doing))

    def state(self, service: str, key: str) -> dict[str, bytes]:
        """Read the state of a key of a Virtual Object or workflow.

        Args:
            service: The service's name.
            key: The key.

        Returns:
            The values by name, as the handler stored them. Empty without any state.

        Raises:
            ServerError: If the server cannot be reached.
        """
        rows = self._rows(_sql.state_of(service, key), doing=f"read the state of {key!r} of {service!r}")
        return {row["key"]: bytes.fromhex(row["value"]) for row in rows}

    def clear_state(self, service: str, key: str) -> None:
        """Remove all state of a key of a Virtual Object or workflow. The server does so a moment later.

        Args:
            service: The service's name.
            key: The key.

        Raises:
            ServerError: If the server cannot be reached, or does not know the service.
        """
        body: dict[str, Any] = {"object_key": key, "new_state": {}}
        self._request(
            "POST", f"/services/{service}/state", json=body, doing=f"remove the state of {key!r} of {service!r}"
        )

    def cancel(self, invocation_id: str) -> None:
        """Cancel an invocation. Its handler sees the cancellation, and can undo what it did.

        Args:
            invocation_id: The invocation's id, which starts with ``inv_``.

        Raises:
            ServerError: If the server cannot be reached, or rejects the request.
        """
        self._change(invocation_id, "cancel")

    def kill(self, invocation_id: str) -> None:
        """Kill an invocation immediately, without notifying its handler.

        Args:
            invocation_id: The invocation's id, which starts with ``inv_``.

        Raises:
            ServerError: If the server cannot be reached, or rejects the request.
        """
        self._change(invocation_id, "kill")

    def pause(self, invocation_id: str) -> None:
        """Pause an invocation that has started, until it is resumed.

        A step that is running ends first, and its result is recorded.

        Args:
            invocation_id: The invocation's id, which starts with ``inv_``.

        Raises:
            ServerError: If the server cannot be reached, or rejects the request.
        """
        self._change(invocation_id, "pause")

    def purge(self, invocation_id: str) -> None:
        """Remove a completed invocation with its result and its journal.

        Args:
            invocation_id: The invocation's id, which starts with ``inv_``.

        Raises:
            ServerError: If the server cannot be reached, or rejects the request.
        """
        self._change(invocation_id, "purge")

    def resume(self, invocation_id: str, *, deployment: str | None = None) -> None:
        """Resume a paused invocation, or immediately retry one that is waiting for its next attempt.

        Args:
            invocation_id: The invocation's id, which starts with ``inv_``.
            deployment: The deployment on which a paused or suspended invocation continues: ``latest``, ``keep``, or
                a deployment's id. By default, it stays on the deployment it started on.

        Raises:
            ServerError: If the server cannot be reached, or rejects the request.
        """
        self._change(invocation_id, "resume", **({"deployment": deployment} if deployment else {}))

    def _deploy(
        self,
        uri: str,
        doing: str,
        force: bool,
        http1: bool,
        headers: Mapping[str, str] | None,
        assume_role: str | None,
        *,
        dry_run: bool = False,
    ) -> dict[str, Any]:
        body: dict[str, Any] = {"force": force, "dry_run": dry_run}
        if uri.startswith("arn:"):
            body |= {"arn": uri} | ({"assume_role_arn": assume_role} if assume_role else {})
        else:
            body |= {"uri": uri, "use_http_11": http1}
        if headers:
            body["additional_headers"] = dict(headers)
        return self._object("POST", "/deployments", json=body, doing=doing)

    def _rows(self, sql: str, *, doing: str) -> list[dict[str, Any]]:
        headers = {"accept": "application/json"}
        answer = self._object("POST", "/query", json={"query": sql}, headers=headers, doing=doing)
        return cast("list[dict[str, Any]]", answer["rows"])

    def _change(self, invocation_id: str, verb: str, **parameters: str) -> None:
        path = f"/invocations/{invocation_id}/{verb}"
        self._request("PATCH", path, params=parameters, doing=f"{verb} the invocation {invocation_id!r}")

    def _object(self, method: str, path: str, *, doing: str, **options: Any) -> dict[str, Any]:
        """Return the JSON object that the server answers with."""
        answer = self._request(method, path, doing=doing, **options)
        try:
            found = answer.json()
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise ServerError(
                f"cannot {doing}: the answer from {self.admin_url} is not that of a Restate server. Check that this is "
                "the URL of its admin API."
            )
        return cast("dict[str, Any]", found)

    def _request(
        self, method: str, path: str, *, doing: str, headers: Mapping[str, str] | None = None, **options: Any
    ) -> httpx.Response:
        try:
            import httpx
        except ImportError as error:
            raise missing_extra("httpx", "talk to the server") from error

        url = self.admin_url + path
        headers = {**(headers or {}), **({"authorization": f"Bearer {self._token}"} if self._token else {})}
        # Loading certificates takes longer than all the rest, and plain HTTP needs none.
        verify = not url.lower().startswith("http:")
        try:
            # Ignore proxies from the environment: they must not handle requests to loopback.
            answer = httpx.request(
                method, url, timeout=self._timeout, trust_env=False, verify=verify, headers=headers, **options
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ServerError(
                f"cannot {doing}: no answer from the server at {self.admin_url} ({error!r}). Check that the server is "
                "running, and that this is the URL of its admin API."
            ) from error
        except ValueError as error:
            raise unsendable(doing, error) from error
        if not answer.is_success:
            raise ServerError(f"cannot {doing}: {explained(answer.status_code, answer.text)}")
        return answer


def add_reasons_of_pauses(admin: AdminClient, rows: Sequence[dict[str, Any]]) -> None:
    """Add their last failure to the rows of paused invocations: the server has it only among the events.

    Args:
        admin: A client for the server.
        rows: Rows of ``sys_invocation``, which are changed.

    Raises:
        ServerError: If the server cannot be reached.
    """
    paused = {row["id"]: row for row in rows if row.get("status") == "paused" and not row.get("last_failure")}
    if not paused:
        return
    for event in admin.query(_sql.pauses_of(list(paused))):
        if failure := json.loads(event["event_json"]).get("last_failure"):
            row, trace = paused[event["id"]], failure.get("error_stacktrace") or ""
            row["last_failure"] = f"[{failure['error_code']}] {failure['error_message']}\n{trace}".rstrip()
            row["last_failure_related_command_name"] = failure.get("related_command_name")
