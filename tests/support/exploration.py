"""What is explored, in one list: the tests take a sample of it, and ``make explore`` goes on for as long as it is told.

A module that is named in :data:`MODULES` adds to the list with :func:`explored`. What is added is explored from then
on by both: by the tests in the two variants of :data:`SAMPLED`, and by ``make explore`` in all of :data:`VARIANTS`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from restate import TerminalError

from restate_steps.testing import Report, Schedule, Simulator, explore

__all__ = ["SAMPLED", "VARIANTS", "Subject", "Variant", "explored", "subjects"]

MODULES = (
    "tests.concurrency.scenarios",
    "tests.concurrency.small_scenarios",
    "tests.loop.plain_handlers",
    "tests.testing.explored_agents",
    "tests.testing.explored_examples",
    "tests.testing.explored_tour",
)

_subjects: dict[str, Subject] = {}


class Variant(NamedTuple):
    """How the simulator talks to the handler."""

    version: int
    mode: Literal["bidirectional", "request_response"]

    def __str__(self) -> str:
        return f"v{self.version}-{self.mode}"


VARIANTS = (
    Variant(6, "bidirectional"),
    Variant(7, "bidirectional"),
    Variant(6, "request_response"),
    Variant(7, "request_response"),
)
"""What ``make explore`` explores."""

SAMPLED = (Variant(6, "bidirectional"), Variant(7, "request_response"))
"""What the tests explore: each version of the protocol once, and each mode."""


def _nothing(seed: int) -> None:
    del seed


@dataclass(frozen=True)
class Subject:
    """A handler, or a scenario of a client, that has to survive everything.

    Attributes:
        name: Its name, by which one asks for it.
        app: The application.
        handler: The handler, as ``Service/handler``; it is called with ``arg`` and ``key``.
        arg: Its argument; ``...`` for none.
        key: Its key.
        scenario: What a client does, instead of calling a handler.
        answers: What it may answer; None if anything goes that ``check`` does not mind.
        cancellable: Whether it is cancelled too.
        ends_cancelled: Whether it may end as cancelled then; if not, it answers all the same.
        failures: The status codes of other failures that are right answers.
        setup: Called before every run, with the seed of the exploration.
        check: Called after every run.
        crashes: How many crashes a run may have.
        runs: How many runs the tests spend on each variant.
    """

    name: str
    app: Any
    handler: str = ""
    arg: Any = ...
    key: str | None = None
    scenario: Callable[[Simulator], Any] | None = None
    answers: Sequence[Any] | None = None
    cancellable: bool = True
    ends_cancelled: bool = True
    failures: Sequence[int] = ()
    setup: Callable[[int], None] = _nothing
    check: Callable[[Simulator], object] | None = None
    crashes: int = 1
    runs: int = 115

    async def run(self, simulator: Simulator) -> Any:
        """Do what a client does, and look at the answer."""
        try:
            answer = await self._ask(simulator)
        except TerminalError as error:
            right = (*self.failures, 409) if self.cancellable and self.ends_cancelled else self.failures
            if error.status_code not in right:
                raise AssertionError(f"it ends with {error.status_code}: {error.message}") from error
            raise
        assert self.answers is None or answer in self.answers, f"{answer!r} is not among the right answers"
        return answer

    async def _ask(self, simulator: Simulator) -> Any:
        if self.scenario is not None:
            return await self.scenario(simulator)
        given = () if self.arg is ... else (self.arg,)
        return (await simulator.call(self.handler, *given, key=self.key)).value

    def explore(
        self,
        variant: Variant,
        *,
        seed: int = 0,
        max_runs: int | None = None,
        max_seconds: float = 60.0,
        schedule: str | Schedule | None = None,
    ) -> Report:
        """Explore it, within limits."""
        return explore(
            self.app,
            scenario=self.run,
            before_each=lambda: self.setup(seed),
            check=self.check,
            cancel=self.cancellable,
            crashes=self.crashes,
            max_runs=self.runs if max_runs is None else max_runs,
            max_seconds=max_seconds,
            seed=seed,
            schedule=schedule,
            version=variant.version,
            mode=variant.mode,
            progress=False,
        )


def explored(subject: Subject) -> Subject:
    """Add to what is explored."""
    if subject.name in _subjects:
        raise ValueError(f"{subject.name!r} is explored already: give it another name")
    _subjects[subject.name] = subject
    return subject


def subjects() -> list[Subject]:
    """Return all that is explored, in the order in which it was added."""
    for module in MODULES:
        importlib.import_module(module)
    return list(_subjects.values())
