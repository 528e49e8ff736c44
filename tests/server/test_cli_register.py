"""``restate-steps register``: options, and the server's error codes in this program's words."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
import restate

import restate_steps
from restate_steps.cli import main
from restate_steps.errors import ServerError
from restate_steps.server import AdminClient, AppServer, RestateServer
from restate_steps.server._answers import explained
from tests.support.harness import eventually

TOKEN = "secret-token"
MANIFEST = "application/vnd.restate.endpointmanifest.v3+json"


def app_of(*names: str, type_of: Callable[[str], Any] = restate.Service) -> Any:
    services: list[Any] = []
    for name in names:
        service = type_of(name)

        @service.handler()
        async def answer(ctx: Any) -> str:
            return "answer"

        services.append(service)
    return restate_steps.app(services)


@contextmanager
def http_server(respond: Callable[[BaseHTTPRequestHandler, bytes], tuple[int, str, bytes]]) -> Iterator[str]:
    """Serve HTTP/1.1 on a free port, and return the URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", "0")))
            status, content_type, text = respond(self, body)
            self.send_response(status)
            self.send_header("content-type", content_type)
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_POST = do_PATCH = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def fixed(status: int, content_type: str, body: bytes) -> AbstractContextManager[str]:
    """Serve the same answer to all requests, over HTTP/1.1."""
    return http_server(lambda request, _: (status, content_type, body))


class Proxy:
    """A proxy that requires a bearer token, in front of a real server's API; it remembers the bodies."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.bodies: list[Any] = []

    def __call__(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, str, bytes]:
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return 401, "text/plain", b"who are you"
        self.bodies.append(json.loads(body or b"null"))
        headers = {name: request.headers[name] for name in ("accept", "content-type") if name in request.headers}
        answer = httpx.request(
            request.command, self.target + request.path, content=body, headers=headers, trust_env=False, timeout=60
        )
        return answer.status_code, answer.headers.get("content-type", "text/plain"), answer.content


def register(server: RestateServer, *words: str) -> int:
    return main(["register", "--admin", server.admin_url, *words])


class TestOptions:
    """The options of the command, on a real server."""

    def test_headers_and_bearer(self, normal_server: RestateServer, capsys: pytest.CaptureFixture[str]) -> None:
        """The server stores the headers for its requests to the application."""
        with AppServer(app_of("CliHeaders")) as served:
            words = ["--force", "--json", "--bearer", TOKEN, "--header", "x-team: shop", "--header", "x-empty:"]
            assert 0 == register(normal_server, served.url, *words)

        found = json.loads(capsys.readouterr().out)
        assert {"authorization": f"Bearer {TOKEN}", "x-team": "shop", "x-empty": ""} == found["additional_headers"]
        assert ["CliHeaders"] == [each["name"] for each in found["services"]]

    def test_dry_run(self, normal_server: RestateServer, capsys: pytest.CaptureFixture[str]) -> None:
        """Nothing is registered."""
        with AppServer(app_of("CliDryRun")) as served:
            assert 0 == register(normal_server, served.url, "--force", "--dry-run")
            assert "would register CliDryRun (revision 1)\n" == capsys.readouterr().out
            assert [] == normal_server.admin.query("SELECT name FROM sys_service WHERE name = 'CliDryRun'")

            assert 0 == register(normal_server, served.url, "--force", "--dry-run", "--json")
            assert "CliDryRun" == json.loads(capsys.readouterr().out)["services"][0]["name"]

    def test_without_force_a_known_url_is_not_read_again(
        self, normal_server: RestateServer, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The server ignores the new code then, and the command says so instead of claiming a registration."""
        with AppServer(app_of("CliKnownBefore")) as served:
            assert 0 == register(normal_server, served.url, "--force")
        port = int(served.url.rpartition(":")[2])
        with AppServer(app_of("CliKnownAfter"), port=port) as served:
            capsys.readouterr()
            assert 0 == register(normal_server, served.url)
            said = capsys.readouterr()
            assert re.match(r"already registered as dp_\w+: CliKnownBefore \(revision \d+\)\n", said.out)
            assert "add --force" in said.err

            assert 0 == register(normal_server, served.url, "--force")
            assert re.match(r"registered CliKnownAfter \(revision \d+\) as dp_", capsys.readouterr().out)

    def test_lambda(self, normal_server: RestateServer, capsys: pytest.CaptureFixture[str]) -> None:
        """An ARN is registered as such, with the role; the server checks it."""
        arn, role = "arn:aws:lambda:eu-central-1:1:nonsense", "arn:aws:iam::123456789012:role/caller"
        proxy = Proxy(normal_server.admin_url)
        with http_server(proxy) as url:
            words = ["register", arn, "--assume-role", role, "--admin", url, "--admin-token", TOKEN]
            assert 1 == main(words)

        assert {"force": False, "dry_run": False, "arn": arn, "assume_role_arn": role} == proxy.bodies[-1]
        assert "the server answered 400: The request field 'arn' is invalid." in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("words", "reason"),
        [
            (["http://127.0.0.1:1", "--assume-role", "arn:x"], "--assume-role applies to the ARN"),
            (["arn:x", "--http1"], "--http1 applies to URLs only"),
        ],
    )
    def test_options_that_do_not_fit(self, words: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
        """An option that the server would ignore is a usage error."""
        assert 2 == main(["register", *words])
        assert f"error: {reason}" in capsys.readouterr().err


class TestToken:
    """An admin API that requires a bearer token."""

    def test_the_variable(
        self, normal_server: RestateServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """RESTATE_AUTH_TOKEN gives the token to each command."""
        monkeypatch.setenv("RESTATE_AUTH_TOKEN", TOKEN)
        with http_server(Proxy(normal_server.admin_url)) as url:
            assert 0 == main(["invocations", "list", "--admin", url, "--service", "CliNothing"])
            assert 0 == main(["approvals", "list", "--admin", url])
        assert "error" not in capsys.readouterr().err

    def test_without_a_token(self, normal_server: RestateServer, capsys: pytest.CaptureFixture[str]) -> None:
        """The error says how to give one."""
        with http_server(Proxy(normal_server.admin_url)) as url:
            assert 1 == main(["invocations", "list", "--admin", url])
        said = capsys.readouterr().err
        assert "the server answered 401: who are you. Give the token of the admin API with token=, --admin-to" in said

    def test_of_the_client(self, normal_server: RestateServer) -> None:
        """The client sends the token with each request."""
        with http_server(Proxy(normal_server.admin_url)) as url:
            assert AdminClient(url, token=TOKEN).version()["version"]
            with pytest.raises(ServerError, match="answered 401"):
                AdminClient(url, token="another").version()

    def test_of_the_ingress(self, normal_server: RestateServer, capsys: pytest.CaptureFixture[str]) -> None:
        """An answer to an awakeable takes the token for the ingress; an error says how to give one."""
        ids: list[str] = []
        desk = restate.Service("CliTokenDesk")

        @desk.handler()
        async def review(ctx: restate.Context) -> str:
            awakeable, answer = ctx.awakeable(type_hint=str)
            ids.append(awakeable)
            return await answer

        with AppServer(restate_steps.app([desk])) as served, http_server(Proxy(normal_server.ingress_url)) as url:
            normal_server.admin.register(served.url)
            review_url = f"{normal_server.ingress_url}/CliTokenDesk/review"
            sent = httpx.post(f"{review_url}/send", timeout=60, trust_env=False).json()["invocationId"]
            resolve = ["approvals", "resolve", eventually(lambda: ids)[0], '"fine"', "--ingress", url]

            assert 1 == main(resolve)
            said = capsys.readouterr().err
            assert "the server answered 401: who are you. Give the token of the ingress with --ingress-" in said

            assert 0 == main([*resolve, "--ingress-token", TOKEN])
            attach = f"{normal_server.ingress_url}/restate/invocation/{sent}/attach"
            assert "fine" == httpx.get(attach, timeout=60, trust_env=False).json()


@pytest.mark.parametrize("body", [b"<html>welcome</html>", b"[]"], ids=["html", "list"])
@pytest.mark.parametrize(
    "words",
    [["invocations", "list"], ["approvals", "list"], ["register", "http://127.0.0.1:1", "--force"]],
    ids=" ".join,
)
def test_something_else_at_the_url(words: list[str], body: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    """A web server that answers everything is not taken for a server's admin API."""
    with fixed(200, "text/html", body) as url:
        assert 1 == main([*words, "--admin", url])
        said = capsys.readouterr().err
        assert f"the answer from {url} is not that of a Restate server. Check that this is the URL of its admin" in said
        assert 1 == len(said.splitlines())


class TestErrorCodes:
    """The server's error codes, provoked on a real server."""

    @staticmethod
    def _fails(server: RestateServer, capsys: pytest.CaptureFixture[str], *words: str) -> str:
        capsys.readouterr()
        assert 1 == register(server, *words)
        said = capsys.readouterr().err
        assert 1 == len(said.splitlines()), said
        assert "[META" not in said
        assert "use-http1.1" not in said
        return said

    def test_an_application_that_is_not_there(
        self, normal_server: RestateServer, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """META0003."""
        said = self._fails(normal_server, capsys, "http://127.0.0.1:1")
        assert "Connection refused (os error 111) (META0003). Check that the application is running" in said

    def test_an_application_that_requires_a_token(
        self, normal_server: RestateServer, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """META0003, without the headers of the answer."""
        with fixed(401, "text/plain", b"no token") as url:
            said = self._fails(normal_server, capsys, url, "--http1", "--force")
        assert "got status code '401 Unauthorized'. Body: no token (META0003)." in said
        assert "with --bearer or --header" in said

    def test_another_protocol(self, normal_server: RestateServer, capsys: pytest.CaptureFixture[str]) -> None:
        """META0014 names the flag of this program, which helps."""
        with fixed(200, MANIFEST, b"{}") as url:
            assert "(META0014). Register it with http1=True, or with --http1," in self._fails(
                normal_server, capsys, url, "--force"
            )
            assert "META0014" not in self._fails(normal_server, capsys, url, "--http1")

    def test_an_application_of_this_package_over_http1(
        self, normal_server: RestateServer, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Its own answer names the flag already."""
        with AppServer(app_of("CliHttp1"), http1=True) as served:
            said = self._fails(normal_server, capsys, served.url)
        assert "Register it with http1=True, or with --http1 (META0003)\n" in said

    def test_not_restate(self, normal_server: RestateServer, capsys: pytest.CaptureFixture[str]) -> None:
        """META0013."""
        with fixed(200, "text/html", b"<html>") as url:
            said = self._fails(normal_server, capsys, url, "--http1", "--force")
        assert "(META0013). Check that this is the address of a Restate application." in said

    def test_another_version_of_the_protocol(
        self, normal_server: RestateServer, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """META0012."""
        manifest = {"protocolMode": "REQUEST_RESPONSE", "minProtocolVersion": 50, "maxProtocolVersion": 60}
        with fixed(200, MANIFEST, json.dumps({**manifest, "services": []}).encode()) as url:
            said = self._fails(normal_server, capsys, url, "--http1", "--force")
        assert "(META0012). To fix it, use another version of restate-sdk or of the server" in said

    def test_another_type_of_service(self, normal_server: RestateServer, capsys: pytest.CaptureFixture[str]) -> None:
        """META0006; the advised flag helps."""
        with AppServer(app_of("CliTyped")) as served:
            assert 0 == register(normal_server, served.url, "--force")
        with AppServer(app_of("CliTyped", type_of=restate.VirtualObject)) as served:
            said = self._fails(normal_server, capsys, served.url)
            assert "(META0006). Give the service another name, or replace its revision with force=True, or" in said
            assert 0 == register(normal_server, served.url, "--force")

    def test_a_reserved_name(self, normal_server: RestateServer, capsys: pytest.CaptureFixture[str]) -> None:
        """META0005."""
        with AppServer(app_of("restate")) as served:
            said = self._fails(normal_server, capsys, served.url, "--force")
        assert "(META0005). Give the service another name." in said

    def test_unknown_codes_pass_through(self) -> None:
        """The reason and the code stay, without advice."""
        body = json.dumps({"message": "[META9999] [META9999] it rains", "restate_code": "META9999"})
        assert "the server answered 500: it rains (META9999)" == explained(500, body)

    def test_a_failure_of_aws(self) -> None:
        """The advice is about the function, and the dump of the error is left out."""
        reason = "error when calling 'arn:aws:lambda:x': dispatch failure (DispatchFailure(DispatchFailure { x }))"
        said = explained(500, json.dumps({"message": f"[META0003] {reason}", "restate_code": "META0003"}))
        assert said.startswith(
            "the server answered 500: error when calling 'arn:aws:lambda:x': dispatch failure (META0003). Check the ARN"
        )
        assert "--assume-role" in said
