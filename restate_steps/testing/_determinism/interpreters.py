"""Run handlers again in other interpreters, each with a hash seed of its own.

The order of a set of strings depends on a seed that an interpreter draws when it starts. Starting one takes most of a
second, so they are kept until this process ends.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any, Final

from restate_steps.testing._determinism.find_app import AppName, load_app
from restate_steps.testing._determinism.rerun import Parting, Recording, rerun
from restate_steps.testing._determinism.sources import watched_sources

__all__ = ["IS_OTHER_INTERPRETER", "Answer", "rerun_elsewhere"]

IS_OTHER_INTERPRETER: Final = "RESTATE_STEPS_OTHER_INTERPRETER"
"""The environment variable by which such an interpreter knows that it is one."""

_LENGTH: Final = struct.Struct(">Q")
_PATIENCE: Final = 60.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of running a handler again in another interpreter.

    Attributes:
        parting: Where it went another way, if it did.
        problem: Why nothing came of it.
    """

    parting: Parting | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class _Question:
    path: Sequence[str]
    app: AppName
    recording: Recording


class _Interpreter:
    """One other interpreter, and the pipes to it."""

    def __init__(self, seed: int) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 -- it is open as long as the interpreter
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env={
                **os.environ,
                "PYTHONHASHSEED": str(seed),
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                IS_OTHER_INTERPRETER: "1",
            },
        )
        self._asked = 0

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, question: bytes) -> None:
        stream = self._process.stdin
        assert stream is not None
        with contextlib.suppress(OSError):
            _write(stream, question)

    def answer(self) -> Answer:
        stream = self._process.stdout
        assert stream is not None
        timer = threading.Timer(_PATIENCE, self._process.kill)
        timer.start()
        try:
            found = _read(stream)
        finally:
            timer.cancel()
        return (
            found if isinstance(found, Answer) else Answer(problem=f"another interpreter ended: {self._last_words()}")
        )

    def _last_words(self) -> str:
        self._process.wait()
        self._said.seek(0)
        return self._said.read().decode(errors="replace").strip()[-500:] or f"code {self._process.returncode}"

    def close(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self._process.kill()
        self._process.wait()
        self._said.close()


_kept: Final[dict[tuple[int, int], _Interpreter]] = {}


def rerun_elsewhere(recording: Recording, app: AppName, seeds: Sequence[int], copy: int = 0) -> list[Answer]:
    """Run a handler again in other interpreters, one for each hash seed.

    Args:
        recording: The recorded run.
        app: Where the application is found.
        seeds: The hash seeds.
        copy: Another number is another interpreter with the same hash seed.
    """
    try:
        question = pickle.dumps(_Question(tuple(sys.path), app, recording))
    except Exception as error:
        return [Answer(problem=f"what it has read cannot be sent to another interpreter: {error}") for _ in seeds]
    asked = [_interpreter(seed, copy) for seed in seeds]
    for interpreter in asked:
        interpreter.ask(question)
    return [interpreter.answer() for interpreter in asked]


def _interpreter(seed: int, copy: int) -> _Interpreter:
    found = _kept.get((seed, copy))
    if found is None or not found.alive:
        if not _kept:
            atexit.register(_close_all)
        if found is not None:
            found.close()
        found = _kept[seed, copy] = _Interpreter(seed)
    return found


def _close_all() -> None:
    while _kept:
        _kept.popitem()[1].close()


# --- between the two --------------------------------------------------------------------------------------------


def _write(stream: IO[bytes], data: bytes) -> None:
    stream.write(_LENGTH.pack(len(data)) + data)
    stream.flush()


def _read(stream: IO[bytes]) -> Any:
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    data = stream.read(length)
    return pickle.loads(data) if len(data) == length else None


# --- the other side ---------------------------------------------------------------------------------------------


def main() -> None:
    """Answer until nothing more is asked."""
    questions = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    # What the user's modules print is not an answer, and what they read is not a question.
    os.dup2(2, 1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    while (question := _read(questions)) is not None:
        _write(answers, pickle.dumps(_answer(question)))


def _answer(question: _Question) -> Answer:
    sys.path[:] = question.path
    try:
        app = load_app(question.app)
    except BaseException as error:
        return Answer(problem=f"another interpreter cannot import it: {type(error).__name__}: {error}")
    try:
        with watched_sources():
            return Answer(rerun(question.recording, app).parting)
    except Exception as error:
        return Answer(problem=f"another interpreter cannot run it: {type(error).__name__}: {error}")


if __name__ == "__main__":
    # The classes that travel belong to the module by its name, and not to the script that this is here.
    from restate_steps.testing._determinism import interpreters as _by_name

    _by_name.main()
