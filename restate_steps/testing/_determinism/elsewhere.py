"""Find out why a handler diverges in another interpreter.

E1. If the divergence depends only on the hash seed, the cause is the order of a set.
E2. For any other divergence, the cause is memory only if an interpreter with the global variables of this process
    repeats the recorded run. Otherwise this process has something that a new one lacks, but not necessarily because of
    the handler: most often the test has replaced something. This is not a finding, and the report mentions it.
E3. A value in memory comes from a clock or a random source if changing only the reading of that source makes the run
    diverge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from restate_steps._user_code import is_user_code
from restate_steps.testing._determinism.find_app import AppName
from restate_steps.testing._determinism.image import take_image
from restate_steps.testing._determinism.interpreters import Answer, Question, ask_kept, ask_new
from restate_steps.testing._determinism.rerun import Divergence, Recording
from restate_steps.testing._determinism.watch import CauseKind, Reading, Tape

__all__ = ["Elsewhere", "Verdict", "call_of", "named", "read_once"]

_FIRST_SEED: Final = 1
_MOST_CANDIDATES: Final = 8
_MOST_NAMES: Final = 5
_VARIANTS: Final = 2
_PATCHED: Final = (
    "this does not show that the handler depends on memory. Most often the test has replaced something, such as a "
    "client, or the application was made with other arguments"
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The cause of a divergence.

    Attributes:
        kind: The kind of the finding.
        cause: A description of the cause.
        divergence: Where the runs diverge.
        reading: The reading to blame; None if the cause is not a reading.
        variant: The variant of the value that it read.
    """

    kind: CauseKind
    cause: str
    divergence: Divergence
    reading: Reading | None = None
    variant: int = 0


def call_of(reading: Reading) -> str:
    """Return the call or the lookup of a reading, in words."""
    return reading.what if reading.what.endswith("]") else f"{reading.what}()"


def read_once(recording: Recording, repeated: Tape) -> list[Reading]:
    """Return the readings that a run with the same journal makes less often, because their values are in memory."""
    return [reading for reading, values in recording.tape.items() if len(repeated.get(reading, ())) < len(values)]


def named(names: Sequence[str]) -> str:
    """Return a list of names as text, shortened if it is long."""
    return ", ".join(names[:_MOST_NAMES]) + (", …" if len(names) > _MOST_NAMES else "")


@dataclass(slots=True)
class Elsewhere:
    """A recorded run, and the interpreters in which it runs again.

    Attributes:
        recording: The recorded run.
        app: The name of its application.
        interpreters: The number of interpreters, each with a different hash seed.
        repeated: The values that this process read when it ran the handler again, with nothing changed.
        earliest: The index of the operation at which this process itself diverges.
        is_out_of_time: Returns whether to stop.
        not_checked: What could not be checked, and why.
        runs: The number of times that the handler ran again.
    """

    recording: Recording
    app: AppName
    interpreters: int
    repeated: Tape
    earliest: int
    is_out_of_time: Callable[[str], bool]
    not_checked: list[str] = field(default_factory=list[str])
    runs: int = 0

    @property
    def is_parted(self) -> bool:
        """True if this process itself diverges when it runs the handler again."""
        return self.earliest <= len(self.recording.operations)

    def verdicts(self) -> Iterator[Verdict]:
        """Yield the causes."""
        seeds = range(_FIRST_SEED, _FIRST_SEED + self.interpreters)
        question = Question(self.app, self.recording, self.earliest)
        answers = ask_kept(question, seeds)
        self.runs += len(answers)
        if self._has_problem(answers):
            return
        divergences = [self._early(answer) for answer in answers]
        found = [each for each in divergences if each is not None]
        if not found:
            yield from self._read_once(question)
            return
        divergence = min(found, key=lambda each: each.index)
        seed = seeds[divergences.index(divergence)]
        # If two interpreters with the same seed differ, the cause is not the seed (E1).
        [again] = self._ask([question], seed)
        if self._early(again) == divergence and any(each != divergence for each in divergences):
            yield Verdict("hash order", "the iteration order of a set", divergence)
        else:
            yield from self._remembered(question, seed)

    # --- memory -------------------------------------------------------------------------------------------------

    def _remembered(self, question: Question, seed: int) -> Iterator[Verdict]:
        first, second = self._ask([replace(question, image=take_image())] * 2, seed)
        if self._has_problem([first, second]):
            return
        divergence = self._early(first)
        if divergence is None:
            # The reused interpreter diverged because of its memory of an earlier question.
            return
        drawn = [reading for reading in first.read if reading not in self.recording.tape]
        if first.remembered is None:
            if _way(first) != _way(second) and not drawn:
                cause = "something that differs in each process: the order of objects by address"
                yield Verdict("memory", cause, divergence)
                return
            self._not_memory(divergence, "the global variables of this process do not explain it")
            return
        names = [each.path for each in first.remembered]
        other = {each.path: each.own for each in second.remembered or ()}
        is_new_each_time = any(other.get(each.path, each.own) != each.own for each in first.remembered)
        patched = [each.path for each in first.remembered if not each.is_set_by_code]
        if patched and not is_new_each_time:
            self._not_memory(divergence, f"it depends on {named(patched)}, which no code of the application sets")
            return
        sources = list(self._sources(replace(question, tape=first.read), drawn, seed))
        if sources:
            yield from sources
        elif is_new_each_time:
            cause = f"something that differs in each process, set when a module is imported: {named(names)}"
            yield Verdict("memory", cause, divergence)
        else:
            cause = f"something that this process has in memory, but a new one lacks: {named(names)}"
            yield Verdict("memory", cause, divergence)

    def _not_memory(self, divergence: Divergence, why: str) -> None:
        self.not_checked.append(
            f"memory: a new interpreter diverges ({divergence.rerun!r} instead of {divergence.recorded!r}), but {why}, "
            f"and {_PATCHED}"
        )

    # --- sources ------------------------------------------------------------------------------------------------

    def _read_once(self, question: Question) -> Iterator[Verdict]:
        """Find the sources of values that this process read once and remembers; of all, if memory hides the effect."""
        once = read_once(self.recording, self.repeated)
        candidates = list(self.recording.tape) if self.is_parted else once
        if not candidates:
            return
        for verdict in self._sources(question, candidates, _FIRST_SEED):
            reading = verdict.reading
            yield verdict if reading is None or reading in once else replace(verdict, cause=call_of(reading))

    def _sources(self, question: Question, candidates: Iterable[Reading], seed: int) -> Iterator[Verdict]:
        """Change some readings in new interpreters: first all of them, and then each (E3)."""
        possible = [each for each in candidates if is_user_code(each.place.rpartition(":")[0])]
        for reading in possible[_MOST_CANDIDATES:]:
            self.not_checked.append(f"{reading.kind}: {reading}, because there are too many readings before it")
        possible = possible[:_MOST_CANDIDATES]
        if not possible or self.is_out_of_time(f"{possible[0].kind}: {possible[0]}"):
            return
        for variant in range(_VARIANTS):
            plain, other = self._ask([question, replace(question, changed=frozenset(possible), variant=variant)], seed)
            if _way(plain) != _way(other):
                break
        else:
            return
        others = [(reading, variant) for reading in possible for variant in range(_VARIANTS)]
        again, *answers = self._ask(
            [question, *(replace(question, changed=reading, variant=variant) for reading, variant in others)], seed
        )
        if _way(again) != _way(plain):
            # The readings are the same, so something else makes a difference too.
            return
        blamed: set[Reading] = set()
        for (reading, variant), answer in zip(others, answers, strict=True):
            if answer.problem or reading in blamed or _way(answer) == _way(plain):
                continue
            blamed.add(reading)
            divergence = answer.divergence or plain.divergence
            assert divergence is not None
            cause = f"{call_of(reading)}, whose value stays in memory"
            yield Verdict(reading.kind, cause, divergence, reading, variant)

    # --- interpreters -------------------------------------------------------------------------------------------

    def _ask(self, questions: Sequence[Question], seed: int) -> list[Answer]:
        self.runs += len(questions)
        return ask_new(questions, seed)

    def _early(self, answer: Answer) -> Divergence | None:
        divergence = answer.divergence
        return divergence if divergence is not None and divergence.index < self.earliest else None

    def _has_problem(self, answers: Iterable[Answer]) -> bool:
        """Return whether another interpreter has a problem, and note the problem."""
        for answer in answers:
            problem = answer.problem
            if not problem and answer.divergence is not None and answer.divergence.failed:
                problem = f"in another interpreter {answer.divergence.rerun}"
            if problem:
                self.not_checked.append(f"hash order: {problem}")
                return True
        return False


def _way(answer: Answer) -> object:
    return None if answer.divergence is None else answer.divergence.way
