"""Run handlers again in other interpreters, each with its own hash seed.

N1. An interpreter has the environment, the working directory and the import path of this process at the time of the
    question.
N2. The order of a set of strings depends on a seed that an interpreter draws when it starts. Starting one takes most of
    a second, so some are reused until this process ends; their memory is that of earlier questions.
N3. A new interpreter answers one question. What it reads while it imports the application is watched too. It is a fork
    of an interpreter that has imported no user code, so starting it takes a few milliseconds.
"""

from __future__ import annotations

import atexit
import contextlib
import math
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from typing import Any, Final, cast

from restate_steps.testing._determinism.find_app import AppName, app_named
from restate_steps.testing._determinism.image import Image, differing, give, is_set_by_code
from restate_steps.testing._determinism.rerun import Divergence, Recording, Rerun, rerun
from restate_steps.testing._determinism.sources import watched_sources
from restate_steps.testing._determinism.watch import Changed, Playback, Reader, Reading, Tape, watching
from restate_steps.testing._simulation.application import ASGIApp

__all__ = ["IS_OTHER_INTERPRETER", "Answer", "Question", "Remembered", "ask_kept", "ask_new"]

IS_OTHER_INTERPRETER: Final = "RESTATE_STEPS_OTHER_INTERPRETER"
"""The environment variable that is set in such an interpreter."""

_PATIENCE: Final = 60.0
_MOST_NAMES: Final = 50
_FORKS: Final = ("forked", "forked too")
_HASH_SEED: Final = "PYTHONHASHSEED"


@dataclass(frozen=True, slots=True)
class Question:
    """A run for another interpreter to make.

    Attributes:
        app: The name of the application.
        recording: The recorded run.
        earliest: The index of the operation from which on differences do not matter.
        tape: Values to play back in addition to those of the recorded run.
        changed: The readings to change.
        variant: The variant of the changed values.
        image: The global variables of this process; the answer says which of them lead to the recorded run.
    """

    app: AppName
    recording: Recording
    earliest: int
    tape: Tape = field(default_factory=dict[Reading, list[Any]])
    changed: Changed = None
    variant: int = 0
    image: Image | None = None


@dataclass(frozen=True, slots=True)
class Remembered:
    """A global variable of this process without which another interpreter diverges.

    Attributes:
        path: The module-qualified name of the variable.
        own: The packed value in the other interpreter.
        is_set_by_code: True if the application's code may have set it; otherwise, the test has patched it.
    """

    path: str
    own: Any
    is_set_by_code: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of running a handler again in another interpreter.

    Attributes:
        divergence: Where it diverged; None if it did not.
        problem: The reason why it could not run; empty if it ran.
        read: The values that were read, by the application's modules on import and by the run.
        remembered: The smallest set of variables that leads to the recorded run; None if there is no such set.
    """

    divergence: Divergence | None = None
    problem: str = ""
    read: Tape = field(default_factory=dict[Reading, list[Any]])
    remembered: tuple[Remembered, ...] | None = None


@dataclass(frozen=True, slots=True)
class _Sent:
    """A question, and the process that asks it (N1)."""

    path: Sequence[str]
    environ: Mapping[str, str]
    folder: str
    question: Question
    to_new: bool


class _Interpreter:
    """Another interpreter, and the connection to it."""

    def __init__(self, seed: int) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 -- it is open as long as the interpreter
        self._connection, theirs = multiprocessing.Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=self._said,
                stderr=self._said,
                pass_fds=[theirs.fileno()],
                env={
                    **os.environ,
                    _HASH_SEED: str(seed),
                    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                    IS_OTHER_INTERPRETER: "1",
                },
            )

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, question: bytes) -> None:
        with contextlib.suppress(OSError):
            self._connection.send_bytes(question)

    def answer(self) -> Answer:
        with contextlib.suppress(EOFError, OSError):
            if self._connection.poll(_PATIENCE):
                return cast("Answer", self._connection.recv())
        self._process.kill()
        return Answer(problem=f"another interpreter ended: {self._last_words()}")

    def _last_words(self) -> str:
        self._process.wait()
        self._said.seek(0)
        return self._said.read().decode(errors="replace").strip()[-500:] or f"code {self._process.returncode}"

    def close(self) -> None:
        self._connection.close()
        self._process.kill()
        self._process.wait()
        self._said.close()


_kept: Final[dict[tuple[int, str], _Interpreter]] = {}


def ask_kept(question: Question, seeds: Sequence[int]) -> list[Answer]:
    """Ask reused interpreters, one for each hash seed."""
    return _ask([question] * len(seeds), [(seed, "kept") for seed in seeds])


def ask_new(questions: Sequence[Question], seed: int) -> list[Answer]:
    """Ask each question of a new interpreter with this hash seed (N3)."""
    answers: list[Answer] = []
    for begin in range(0, len(questions), len(_FORKS)):
        # Objects have the same addresses in all forks of one interpreter.
        some = questions[begin : begin + len(_FORKS)]
        answers += _ask(some, [(seed, name) for name in _FORKS[: len(some)]])
    return answers


def _ask(questions: Sequence[Question], whom: Sequence[tuple[int, str]]) -> list[Answer]:
    own = tuple(sys.path), dict(os.environ), os.getcwd()
    try:
        sent = [pickle.dumps(_Sent(*own, each, key[1] in _FORKS)) for each, key in zip(questions, whom, strict=True)]
    except Exception as error:
        problem = f"what it has read cannot be sent to another interpreter: {error}"
        return [Answer(problem=problem) for _ in questions]
    asked = [_interpreter(key) for key in whom]
    for interpreter, each in zip(asked, sent, strict=True):
        interpreter.ask(each)
    return [interpreter.answer() for interpreter in asked]


def _interpreter(key: tuple[int, str]) -> _Interpreter:
    found = _kept.get(key)
    if found is None or not found.alive:
        if not _kept:
            atexit.register(_close_all)
        if found is not None:
            found.close()
        found = _kept[key] = _Interpreter(key[0])
    return found


def _close_all() -> None:
    while _kept:
        _kept.popitem()[1].close()


# --- in the other interpreter -----------------------------------------------------------------------------------


def main() -> None:
    """Answer questions until the connection ends."""
    connection: Connection[Any, Any] = Connection(int(sys.argv.pop()))
    while (sent := _next(connection)) is not None:
        if sent.to_new and hasattr(os, "fork"):
            _answer_in_fork(sent, connection)
            continue
        _adopt(sent)
        connection.send_bytes(_pickled(_answer(sent.question)))
        if sent.to_new:
            # It is no longer a new interpreter.
            break


def _next(connection: Connection[Any, Any]) -> _Sent | None:
    try:
        return cast("_Sent", connection.recv())
    except (EOFError, OSError):
        return None


def _answer_in_fork(sent: _Sent, connection: Connection[Any, Any]) -> None:
    process = os.fork()
    if process == 0:
        signal.alarm(math.ceil(_PATIENCE))
        _adopt(sent)
        connection.send_bytes(_pickled(_answer(sent.question)))
        os._exit(0)
    _, status = os.waitpid(process, 0)
    if status != 0:
        code = os.waitstatus_to_exitcode(status)
        connection.send_bytes(_pickled(Answer(problem=f"another interpreter ended: code {code}")))


def _adopt(sent: _Sent) -> None:
    """Take over the environment of the asking process (N1)."""
    sys.path[:] = sent.path
    own = {name: os.environ[name] for name in (_HASH_SEED, IS_OTHER_INTERPRETER)}
    os.environ.clear()
    os.environ.update({**sent.environ, **own})
    with contextlib.suppress(OSError):
        os.chdir(sent.folder)


def _pickled(answer: Answer) -> bytes:
    try:
        return pickle.dumps(answer)
    except Exception as error:
        return pickle.dumps(Answer(problem=f"what another interpreter has read cannot be sent back: {error}"))


def _answer(question: Question) -> Answer:
    playback = Playback({**question.tape, **question.recording.tape}, question.changed, question.variant)
    at_import = Reader(playback)
    token = watching.set(at_import)
    try:
        with watched_sources():
            app = app_named(question.app)
    except BaseException as error:
        return Answer(problem=f"another interpreter cannot import it: {type(error).__name__}: {error}")
    finally:
        at_import.open = False
        watching.reset(token)
    try:
        with watched_sources():
            return _run(question, app, playback, at_import.tape)
    except Exception as error:
        return Answer(problem=f"another interpreter cannot run it: {type(error).__name__}: {error}")


def _run(question: Question, app: ASGIApp, playback: Playback, read_at_import: Tape) -> Answer:
    recording = replace(question.recording, tape=playback.tape)

    def again() -> Rerun:
        return rerun(recording, app, question.changed, question.variant)

    own = {} if question.image is None else differing(question.image)
    found = again()
    if found.definition != recording.definition and found.definition is not None:
        here, there = recording.definition, found.definition
        return Answer(problem=f"another interpreter finds another handler of that name: not {here}, but {there}")
    remembered = None
    if found.divergence is not None and question.image is not None:
        remembered = _remembered(question.image, own, lambda: _repeats(question, again()))
    return Answer(found.divergence, read={**read_at_import, **found.tape}, remembered=remembered)


def _repeats(question: Question, run: Rerun) -> bool:
    return run.divergence is None or run.divergence.index >= question.earliest


def _remembered(image: Image, own: Image, repeats: Callable[[], bool]) -> tuple[Remembered, ...] | None:
    """Return a minimal set of variables whose values lead to the recorded run; None if there is none."""

    def is_enough(paths: Sequence[str]) -> bool:
        # Reset what the previous run has changed.
        give(own, list(own))
        give(image, paths)
        return repeats()

    needed = list(own)
    if not needed or len(needed) > _MOST_NAMES or not is_enough(needed):
        return None
    for path in list(needed):
        fewer = [each for each in needed if each != path]
        if is_enough(fewer):
            needed = fewer
    return tuple(Remembered(path, own[path], is_set_by_code(path, image[path], own[path])) for path in needed)


if __name__ == "__main__":
    # Pickle must find the classes in the module by its name, not in __main__, which this script is.
    from restate_steps.testing._determinism import interpreters as _by_name

    _by_name.main()
