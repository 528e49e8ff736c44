"""Handlers: how calls name them, and how the application's manifest describes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["HandlerInfo", "Manifest", "RetryRules", "Target", "UnknownHandlerError"]


class UnknownHandlerError(Exception):
    """A call names a handler that the application does not have."""


@dataclass(frozen=True, slots=True)
class Target:
    """A handler, and the key it is called with if its service has keys.

    Attributes:
        scope: The scope of the call, which has its own keys, promises and idempotency keys.
    """

    service: str
    handler: str
    key: str | None = None
    scope: str | None = None

    def __str__(self) -> str:
        path = "/".join(part for part in (self.service, self.key, self.handler) if part is not None)
        return path if self.scope is None else f"{path} in scope {self.scope}"


@dataclass(frozen=True, slots=True)
class RetryRules:
    """When and how often failed attempts of an invocation are retried; times are in milliseconds."""

    initial: int = 500
    factor: float = 2.0
    longest: int = 60_000
    attempts: int | None = 70
    on_exhausted: str = "PAUSE"

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> RetryRules:
        """Read the rules from a service or handler of a manifest."""
        default = cls()
        return cls(
            initial=options.get("retryPolicyInitialInterval", default.initial),
            factor=options.get("retryPolicyExponentiationFactor", default.factor),
            longest=options.get("retryPolicyMaxInterval", default.longest),
            attempts=options.get("retryPolicyMaxAttempts", default.attempts),
            on_exhausted=options.get("retryPolicyOnMaxAttempts", default.on_exhausted),
        )

    def delay(self, failures: int) -> int:
        """Return how long to wait after a number of failed attempts in a row."""
        return min(self.longest, int(self.initial * self.factor ** min(failures - 1, 60)))


@dataclass(frozen=True, slots=True)
class HandlerInfo:
    """One handler in the manifest."""

    target: tuple[str, str]
    kind: str
    keyed: bool
    lazy_state: bool
    retry: RetryRules
    takes_input: bool = True
    needs_input: bool = False
    is_private: bool = False

    @classmethod
    def of(cls, service: Mapping[str, Any], handler: Mapping[str, Any]) -> HandlerInfo:
        """Read a handler from the manifest; it overrides the options of its service."""
        options = {**service, **handler}
        keyed = service["ty"] != "SERVICE"
        declared: Mapping[str, Any] | None = handler.get("input")
        return cls(
            target=(service["name"], handler["name"]),
            kind=handler.get("ty") or ("EXCLUSIVE" if keyed else "SHARED"),
            keyed=keyed,
            lazy_state=bool(options.get("enableLazyState", False)),
            retry=RetryRules.of(options),
            takes_input=declared != {},
            needs_input=declared is not None and bool(declared.get("required", False)),
            is_private=bool(options.get("ingressPrivate", False)),
        )

    def refusal(self, body: bytes, idempotency_key: str | None) -> str | None:
        """Return why the ingress rejects a client's call with the status 400; None if it accepts the call."""
        if self.is_private:
            return "the service is not public, so that only handlers can call it"
        if body and not self.takes_input:
            return "the handler takes no argument, so the body has to be empty"
        if self.needs_input and not body:
            return "the handler needs an argument, and the body is empty"
        if self.workflow and idempotency_key is not None:
            return "a workflow takes no idempotency key: its own key makes it idempotent"
        return None

    @property
    def exclusive(self) -> bool:
        """True if no other exclusive handler of the key runs at the same time."""
        return self.keyed and self.kind == "EXCLUSIVE"

    @property
    def workflow(self) -> bool:
        """True for the main handler of a workflow, which runs once for each key."""
        return self.kind == "WORKFLOW"


class Manifest:
    """The handlers of an application.

    Args:
        manifest: The decoded JSON of ``GET /discover``.
    """

    def __init__(self, manifest: Mapping[str, Any]) -> None:
        found = (HandlerInfo.of(service, each) for service in manifest["services"] for each in service["handlers"])
        self.handlers: dict[tuple[str, str], HandlerInfo] = {info.target: info for info in found}

    def __getitem__(self, target: Target) -> HandlerInfo:
        info = self.handlers.get((target.service, target.handler))
        if info is None:
            known = ", ".join("/".join(names) for names in sorted(self.handlers)) or "nothing"
            raise UnknownHandlerError(
                f"there is no handler {target.service}/{target.handler} in this application; it has {known}. "
                "Simulate all services together that call each other: simulate(restate_steps.app([one, other]))."
            )
        if target.key is not None and not info.keyed:
            raise UnknownHandlerError(
                f"a key was given, but {target.service} is a Service. Only Virtual Objects and workflows have keys."
            )
        return info
