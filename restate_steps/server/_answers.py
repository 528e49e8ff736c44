"""Explain an error of the server's admin API: its reason, and what to do about it here.

The server's error codes are described at https://docs.restate.dev/references/errors. Its advice names fields and flags
of other programs, so the codes that a user of this package meets have advice of their own.
"""

from __future__ import annotations

import json
import re
from http import HTTPStatus
from typing import Any, Final, NamedTuple, cast

from restate_steps.errors import ServerError

__all__ = ["explained", "reason", "unsendable"]

_VERSIONS: Final = "use another version of restate-sdk or of the server; `restate-steps doctor` names those tested."

_ADVICE: Final = {
    "META0003": (
        "Check that the application is running, and that the server can reach it at this address. If the application "
        "requires a token, give it with headers={...}, or with --bearer or --header."
    ),
    "META0005": "Give the service another name.",
    "META0006": "Give the service another name, or replace its revision with force=True, or with --force.",
    "META0012": f"To fix it, {_VERSIONS}",
    "META0013": f"Check that this is the address of a Restate application. If it is, {_VERSIONS}",
    "META0014": "Register it with http1=True, or with --http1, or serve it over HTTP/2.",
    "META0015": "Create the application without protocol=, or with protocol='request_response'.",
}
# Words of the server about a Lambda function, and the advice; the last one is for all others.
_LAMBDA_ADVICE: Final = {
    "function returned an error during execution": "The function's own log has more.",
    "response could not be deserialized": "Check that the function's handler is a Restate application.",
    "": (
        "Check the ARN, and that the server may call the function: with credentials of its own, or with those of a "
        "role, assume_role= or --assume-role."
    ),
}
_ADVICE_FOR_STATUS: Final[dict[int, str]] = {
    HTTPStatus.UNAUTHORIZED: "Give the token of the admin API with token=, --admin-token or RESTATE_AUTH_TOKEN.",
    HTTPStatus.FORBIDDEN: "Check that the token may use the admin API: token=, --admin-token or RESTATE_AUTH_TOKEN.",
}

_CODES: Final = re.compile(r"^(\[[A-Z]+\d+\] )+")
# Parts of a reason that do not help here: the answer's headers, a dump of an AWS error, and a flag of another program.
_NOISE: Final = re.compile(
    r"Response headers: \{.*?\}\. |, consider discovery with --use-http1\.1| \([A-Z]\w+\([A-Z].*$", re.DOTALL
)
_PROTOCOL: Final = "505 HTTP Version Not Supported"


class _Answer(NamedTuple):
    reason: str
    code: str | None


def explained(status: int, body: str) -> str:
    """Return the reason that the server gave, with advice if its error code is known.

    Args:
        status: The status code of the answer.
        body: The text of the answer.

    Example:
        >>> explained(400, '{"message": "[META0005] reserved", "restate_code": "META0005"}')
        'the server answered 400: reserved (META0005). Give the service another name.'
        >>> explained(418, '{"message": "[XY0001] no coffee", "restate_code": "XY0001"}')
        'the server answered 418: no coffee (XY0001)'
    """
    answer = _read(body)
    said = f"the server answered {status}: {answer.reason}"
    if answer.code is not None:
        said = f"{said.rstrip('.')} ({answer.code})"
    advice = _ADVICE_FOR_STATUS.get(status)
    # The text says it already if the application of this package has rejected the protocol.
    if answer.code in _ADVICE and _PROTOCOL not in answer.reason:
        about_lambda = "'arn:" in answer.reason
        advice = _lambda_advice(answer.reason) if about_lambda else _ADVICE[answer.code]
    return f"{said.rstrip('.')}. {advice}" if advice else said


def reason(body: str) -> str:
    """Return the reason that the server gave.

    Args:
        body: The text of the answer.
    """
    return _read(body).reason


def unsendable(doing: str, error: ValueError) -> ServerError:
    """Return the error for a request with a value that neither JSON nor a header can have.

    Args:
        doing: The purpose of the request.
        error: The client's error.
    """
    # The error names the character only: the text may be a token.
    return ServerError(f"cannot {doing}: the request has a value that cannot be sent ({error}).")


def _lambda_advice(reason: str) -> str:
    return next(advice for words, advice in _LAMBDA_ADVICE.items() if words in reason)


def _read(body: str) -> _Answer:
    try:
        answer = cast("dict[str, Any]", json.loads(body))
        reason, code = str(answer["message"]), answer.get("restate_code")
    except (ValueError, KeyError, TypeError):
        return _Answer(body.strip() or "(no reason given)", None)
    found = _CODES.match(reason)
    if found and code is None:
        code = found[1].strip(" []")
    return _Answer(_NOISE.sub("", _CODES.sub("", reason)), code)
