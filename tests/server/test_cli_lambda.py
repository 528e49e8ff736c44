"""``restate-steps register`` with a Lambda function: a real server calls it through a local copy of two AWS APIs."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.parse import unquote

import httpx
import pytest
import restate

import restate_steps
from restate_steps.cli import main
from restate_steps.server import RestateServer

FUNCTION = "arn:aws:lambda:eu-central-1:123456789012:function:shop"
ROLE = "arn:aws:iam::123456789012:role/caller"
# The end of the error about a function that cannot be registered.
ENDS = {
    "bidi": "(META0015). Create the application without protocol=, or with protocol='request_response'.",
    "broken": "(META0003). The function's own log has more.",
    "another": "(META0003). Check that the function's handler is a Restate application.",
}
CREDENTIALS = f"""
<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult>
<AssumedRoleUser><AssumedRoleId>A:B</AssumedRoleId><Arn>{ROLE}</Arn></AssumedRoleUser>
<Credentials><AccessKeyId>OFTHEROLE</AccessKeyId><SecretAccessKey>secret</SecretAccessKey>
<SessionToken>token</SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration></Credentials>
</AssumeRoleResult></AssumeRoleResponse>
"""

Function = Callable[[Any, Any], Any]

shop = restate.Service("LambdaShop")


@restate_steps.durable_step
async def price_of(item: str) -> int:
    return len(item)


@shop.handler()
async def buy(ctx: restate.Context, item: str) -> str:
    return f"{item} for {await price_of(item)}"


class Aws:
    """The Lambda API and the token service, each with the one call that Restate makes.

    Args:
        functions: What creates each function, by the function's ARN.

    Attributes:
        url: The URL of both.
        signers: The access keys with which functions were called.
    """

    def __init__(self, functions: dict[str, Callable[[], Function]]) -> None:
        self.signers: set[str] = set()
        self._create = functions
        self._functions: dict[str, Function] = {}
        aws = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                answer = aws._answer(self.path, body, self.headers["authorization"]).encode()
                self.send_response(200)
                if b"errorMessage" in answer:
                    self.send_header("x-amz-function-error", "Unhandled")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _serve(self) -> None:
        # The SDK gives the thread an event loop for each function, and the thread runs all on the last one.
        loops: list[asyncio.AbstractEventLoop] = []
        for arn, create in self._create.items():
            self._functions[arn] = create()
            loops.append(asyncio.get_event_loop())
        self._server.serve_forever(poll_interval=0.01)
        for loop in loops:
            loop.close()

    def _answer(self, path: str, body: bytes, authorization: str) -> str:
        if path == "/":
            assert f"RoleArn={ROLE}" in unquote(body.decode())
            return CREDENTIALS
        self.signers.add(authorization.partition("Credential=")[2].partition("/")[0])
        arn = unquote(path).removeprefix("/2015-03-31/functions/").removesuffix("/invocations")
        return self._call(arn, json.loads(body))

    def _call(self, arn: str, event: Any) -> str:
        try:
            return json.dumps(self._functions[arn](event, None))
        except Exception as error:
            return json.dumps({"errorMessage": str(error), "errorType": type(error).__name__})


def broken(event: Any, context: Any) -> None:
    raise ImportError("no module named 'shop'")


def another(event: Any, context: Any) -> str:
    return "hello"


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[Aws]:
    """The APIs, in a process that looks like a Lambda function to the SDK."""
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "shop")
    apis = Aws(
        {
            f"{FUNCTION}:1": lambda: restate_steps.app([shop]),
            f"{FUNCTION}:2": lambda: restate_steps.app([shop]),
            f"{FUNCTION}:bidi": lambda: restate_steps.app([shop], protocol="bidi"),
            f"{FUNCTION}:broken": lambda: broken,
            f"{FUNCTION}:another": lambda: another,
        }
    )
    yield apis
    apis.close()


def test_functions(aws: Aws, capsys: pytest.CaptureFixture[str]) -> None:
    """A function is registered and called, with a role if one is given; one that cannot work gets the advice for it."""
    settings = {
        "AWS_ENDPOINT_URL": aws.url,
        "AWS_ACCESS_KEY_ID": "OFTHESERVER",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "eu-central-1",
    }
    with RestateServer(env=settings) as server:

        def register(*words: str) -> tuple[int, str]:
            code = main(["register", "--admin", server.admin_url, *words])
            said = capsys.readouterr()
            return code, said.out + said.err

        assert (0, "would register LambdaShop (revision 1)\n") == register(f"{FUNCTION}:1", "--dry-run")
        assert [] == server.admin.query("SELECT id FROM sys_deployment")
        code, said = register(f"{FUNCTION}:1")
        assert 0 == code
        assert said.startswith("registered LambdaShop (revision 1) as dp_")
        answer = httpx.post(f"{server.ingress_url}/LambdaShop/buy", json="tea", timeout=60, trust_env=False)
        assert "tea for 3" == answer.json()
        assert {"OFTHESERVER"} == aws.signers

        aws.signers.clear()
        code, said = register(f"{FUNCTION}:2", "--assume-role", ROLE)
        assert (0, "registered LambdaShop (revision 2)") == (code, said.partition(" as ")[0])
        assert {"OFTHEROLE"} == aws.signers

        for name, end in ENDS.items():
            code, said = register(f"{FUNCTION}:{name}")
            assert 1 == code
            assert said.endswith(f"{end}\n")
