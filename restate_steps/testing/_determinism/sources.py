"""Patch sources of nondeterminism, such as clocks and random numbers, so that they can be watched and played back.

Functions are replaced in every module that holds them, so ``from time import time`` works too. The methods of
``datetime`` are replaced in the type itself, which stays the same type. Outside of watched attempts, all of them behave
as usual.

Compiled code that reads a clock or draws random numbers itself is not seen: numpy's generators, for example.
"""

from __future__ import annotations

import builtins
import ctypes
import datetime
import functools
import gc
import hashlib
import math
import os
import random
import socket
import sys
import time
import uuid
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from types import FrameType, ModuleType
from typing import Any, Final, cast

from restate_steps._user_code import is_standard_library, is_user_code
from restate_steps.testing._determinism.user_code import caller, file_of, is_infrastructure, origin, place_of
from restate_steps.testing._determinism.watch import CauseKind, Reader, Reading, watching

__all__ = ["RANDOM_SEEDS", "SHIFTS", "watched_sources"]

SHIFTS: Final = (45_296.789, 263_107.013, -95_413.4, 15_811_201.5, 613_999.25, -3_600.001, 40_000_000.75, 7.531)
"""The numbers of seconds by which a clock is shifted: to another second, hour, weekday, month, and year."""

RANDOM_SEEDS: Final = (52, 31, 53, 16, 6, 1, 9, 20)
"""Seeds whose first numbers cover the range: 0.99, 0.01, 0.6, 0.35, 0.8, 0.15, 0.48 and 0.92."""

_Function = Callable[..., Any]

_DAY: Final = 86_400


def _shift(variant: int) -> float:
    return SHIFTS[variant % len(SHIFTS)] * (1 + variant // len(SHIFTS))


def _seed(variant: int) -> int:
    return RANDOM_SEEDS[variant] if variant < len(RANDOM_SEEDS) else 1_000 + variant


def _find(kind: CauseKind, name: str) -> tuple[Reader, Reading] | None:
    """Return the reader that watches the caller's caller, and the reading; None if it is not watched."""
    watch = watching.get()
    if watch is None or not watch.idle:
        return None
    found = origin(name, caller(1))
    return None if found is None else (watch, Reading(kind, *found))


# --- clocks -----------------------------------------------------------------------------------------------------


def _move_seconds(value: float, variant: int) -> float:
    return value + _shift(variant)


def _move_nanoseconds(value: int, variant: int) -> int:
    return value + int(_shift(variant) * 1e9)


def _move_datetime(value: datetime.datetime, variant: int) -> datetime.datetime:
    return value + datetime.timedelta(seconds=_shift(variant))


def _move_date(value: datetime.date, variant: int) -> datetime.date:
    days = _shift(variant) / _DAY
    return value + datetime.timedelta(days=math.ceil(days) if days > 0 else math.floor(days))


def _clock(name: str, original: _Function) -> _Function:
    whole = name.endswith("_ns")

    @functools.wraps(original)
    def read() -> Any:
        found = _find("clock", f"time.{name}")
        if found is None:
            return original()
        watch, reading = found
        if whole:
            return watch.read(reading, lambda: original() + int(watch.elapsed() * 1e9), _move_nanoseconds)
        return watch.read(reading, lambda: original() + watch.elapsed(), _move_seconds)

    return read


def _clock_unless_given(name: str, original: _Function, place: int, convert: _Function | None = None) -> _Function:
    """Wrap a function that reads the clock unless its argument at ``place`` is a time."""

    @functools.wraps(original)
    def read(*args: Any) -> Any:
        if len(args) > place and args[place] is not None:
            return original(*args)
        found = _find("clock", f"time.{name}")
        if found is None:
            return original(*args)
        watch, reading = found
        seconds = watch.read(reading, lambda: _TIME() + watch.elapsed(), _move_seconds)
        return original(*args[:place], seconds if convert is None else convert(seconds))

    return read


_TIME: Final = time.time
_LOCALTIME: Final = time.localtime
_NOW: Final = vars(datetime.datetime)["now"]
_UTCNOW: Final = vars(datetime.datetime)["utcnow"]
_TODAY: Final = vars(datetime.date)["today"]


def _datetime_now(cls: type[datetime.datetime], tz: datetime.tzinfo | None = None) -> datetime.datetime:
    def now() -> datetime.datetime:
        return cast(datetime.datetime, _NOW.__get__(None, cls)(tz))

    found = _find("clock", "datetime.now")
    if found is None:
        return now()
    watch, reading = found
    return watch.read(reading, lambda: now() + datetime.timedelta(seconds=watch.elapsed()), _move_datetime)


def _datetime_utcnow(cls: type[datetime.datetime]) -> datetime.datetime:
    def now() -> datetime.datetime:
        return cast(datetime.datetime, _UTCNOW.__get__(None, cls)())

    found = _find("clock", "datetime.utcnow")
    if found is None:
        return now()
    watch, reading = found
    return watch.read(reading, lambda: now() + datetime.timedelta(seconds=watch.elapsed()), _move_datetime)


def _date_today(cls: type[datetime.date]) -> datetime.date:
    if issubclass(cls, datetime.datetime):
        found = _find("clock", "datetime.today")
        if found is None:
            return cast(datetime.date, _TODAY.__get__(None, cls)())
        watch, reading = found
        return watch.read(reading, lambda: cls.fromtimestamp(_TIME() + watch.elapsed()), _move_datetime)
    found = _find("clock", "date.today")
    if found is None:
        return cast(datetime.date, _TODAY.__get__(None, cls)())
    watch, reading = found
    return watch.read(reading, lambda: cls.fromtimestamp(_TIME() + watch.elapsed()), _move_date)


# --- random numbers ---------------------------------------------------------------------------------------------


def _seeded_state(state: Any, variant: int) -> Any:
    del state
    return random.Random(_seed(variant)).getstate()


def _random_function(name: str, original: _Function) -> _Function:
    """Wrap a function of ``random``, playing back the generator's state before the call."""

    @functools.wraps(original)
    def draw(*args: Any, **options: Any) -> Any:
        found = _find("randomness", f"random.{name}")
        if found is None or found[0].seeded:
            return original(*args, **options)
        watch, reading = found
        state = watch.read(reading, _GETSTATE, _seeded_state)
        _SETSTATE(state)
        return original(*args, **options)

    return draw


def _random_seed(original: _Function) -> _Function:
    @functools.wraps(original)
    def seed(*args: Any, **options: Any) -> Any:
        found = _find("randomness", "random.seed")
        if found is not None:
            # Seeding without an argument does not make the numbers repeatable.
            found[0].seeded = bool(args or options) and args[:1] != (None,)
        return original(*args, **options)

    return seed


def _seed_generator(self: random.Random, a: Any = None, version: int = 2) -> None:
    """Seed a ``random.Random()``, as its constructor does."""
    if a is None and not isinstance(self, random.SystemRandom):
        found = _find("randomness", "random.Random")
        if found is not None:
            watch, reading = found
            a = watch.read(reading, lambda: int.from_bytes(_URANDOM(32)), lambda _, variant: _seed(variant))
    _GENERATOR_SEED(self, a, version)


def _other_bytes(value: bytes, variant: int) -> bytes:
    made = b""
    while len(made) < len(value):
        made += hashlib.sha256(value + bytes((variant % 256, len(made) % 256))).digest()
    # Spread the first byte, the most significant one, over its range.
    return (bytes((int(random.Random(_seed(variant)).random() * 256),)) + made)[: len(value)]


def _random_bytes(name: str, original: Callable[..., bytes]) -> _Function:
    @functools.wraps(original)
    def draw(*args: Any) -> bytes:
        found = _find("randomness", name)
        if found is None:
            return original(*args)
        watch, reading = found
        return watch.read(reading, lambda: original(*args), _other_bytes)

    return draw


def _uuid1(original: Callable[..., uuid.UUID]) -> _Function:
    @functools.wraps(original)
    def draw(*args: Any, **options: Any) -> uuid.UUID:
        found = _find("randomness", "uuid.uuid1")
        if found is None:
            return original(*args, **options)
        watch, reading = found
        return watch.read(
            reading,
            lambda: original(*args, **options),
            lambda value, variant: uuid.UUID(bytes=_other_bytes(value.bytes, variant), version=1),
        )

    return draw


_GETSTATE: Final = random.getstate
_SETSTATE: Final = random.setstate
_URANDOM: Final = os.urandom
_GENERATOR_SEED: Final = random.Random.seed
_NOT_DRAWN: Final = frozenset({"seed", "getstate", "setstate"})

# --- the process ------------------------------------------------------------------------------------------------

_ID: Final = id


def _id(thing: object, /) -> int:
    """Return an address; only calls from user code are watched, because all others must be fast."""
    watch = watching.get()
    if watch is None or not watch.idle:
        return _ID(thing)
    frame = caller()
    if not is_user_code(frame.f_code.co_filename):
        return _ID(thing)
    # Inverting the bits reverses the order, and different objects keep different addresses.
    reading = Reading("memory address", "id", place_of(frame))
    return watch.read(reading, lambda: _ID(thing), lambda value, _: value ^ 0x7FFF_FFFF_FFF0)


def _process_value(name: str, original: _Function, change: Callable[[Any, int], Any]) -> _Function:
    @functools.wraps(original)
    def read() -> Any:
        found = _find("environment", name)
        if found is None:
            return original()
        watch, reading = found
        return watch.read(reading, original, change)

    return read


_ENVIRON: Final[type[Any]] = type(os.environ)
_OF_ENVIRON: Final = frozenset({"os", "_collections_abc", "collections.abc"})


def _read_variable(self: Any, key: str) -> str:
    """Read an environment variable; only reads from user code are watched."""
    watch = watching.get()
    if watch is None or not watch.idle:
        return cast(str, _ENVIRON.__getitem__(self, key))
    frame: FrameType | None = caller()
    while frame is not None and frame.f_globals.get("__name__") in _OF_ENVIRON:
        frame = frame.f_back
    if frame is None or not is_user_code(frame.f_code.co_filename):
        return cast(str, _ENVIRON.__getitem__(self, key))

    def now() -> str | None:
        try:
            return cast(str, _ENVIRON.__getitem__(self, key))
        except KeyError:
            return None

    value = watch.read(Reading("environment", f"os.environ[{key!r}]", place_of(frame)), now, _other_variable)
    if value is None:
        raise KeyError(key)
    return value


def _other_variable(value: str | None, variant: int) -> str | None:
    if value is None:
        return "1"
    # First add a digit, so that a number stays a number; then remove the variable.
    return f"{value}0" if variant % 2 == 0 else None


_WATCHED_ENVIRON: Final[Any] = type("_WatchedEnviron", (_ENVIRON,), {"__getitem__": _read_variable})

# --- replacing them ---------------------------------------------------------------------------------------------

_CLOCKS: Final = ("time", "monotonic", "perf_counter", "process_time", "thread_time")


def _functions() -> list[tuple[ModuleType, str, _Function]]:
    """Return the replacements, by module and name."""
    found: list[tuple[ModuleType, str, _Function]] = []
    for name in (*_CLOCKS, *(f"{clock}_ns" for clock in _CLOCKS)):
        found.append((time, name, _clock(name, getattr(time, name))))
    for name in ("localtime", "gmtime", "ctime"):
        found.append((time, name, _clock_unless_given(name, getattr(time, name), 0)))
    found.append((time, "asctime", _clock_unless_given("asctime", time.asctime, 0, _LOCALTIME)))
    found.append((time, "strftime", _clock_unless_given("strftime", time.strftime, 1, _LOCALTIME)))
    generator = random.random.__self__  # type: ignore[attr-defined]
    for name, function in sorted(vars(random).items()):
        if getattr(function, "__self__", None) is generator and name not in _NOT_DRAWN:
            found.append((random, name, _random_function(name, function)))
    found.append((random, "seed", _random_seed(random.seed)))
    found.append((os, "urandom", _random_bytes("os.urandom", os.urandom)))
    if hasattr(os, "getrandom"):
        found.append((os, "getrandom", _random_bytes("os.getrandom", os.getrandom)))
    found.append((uuid, "uuid1", _uuid1(uuid.uuid1)))
    found.append((os, "getpid", _process_value("os.getpid", os.getpid, lambda value, variant: value + variant + 1)))
    found.append(
        (socket, "gethostname", _process_value("socket.gethostname", socket.gethostname, lambda v, n: f"{v}-{n}"))
    )
    return found


_FUNCTIONS: Final = _functions()
_BY_ORIGINAL: Final = {_ID(getattr(module, name)): wrapper for module, name, wrapper in _FUNCTIONS}
# ``random`` imports this function from ``os`` for SystemRandom, and so for secrets.
_SOURCES: Final = (time, os, random, uuid, socket)

_METHODS: Final = (
    (datetime.datetime, "now", classmethod(_datetime_now), _NOW),
    (datetime.datetime, "utcnow", classmethod(_datetime_utcnow), _UTCNOW),
    (datetime.date, "today", classmethod(_date_today), _TODAY),
)


def _set_in_type(cls: type, name: str, value: object) -> None:
    """Set an attribute of a built-in type."""
    namespace: Mapping[str, object] = vars(cls)
    cast("dict[str, object]", gc.get_referents(namespace)[0])[name] = value
    ctypes.pythonapi.PyType_Modified(ctypes.py_object(cls))


def _holders() -> list[ModuleType]:
    """Return the modules whose names are replaced: user code and packages, but not Python's own."""
    found: list[ModuleType] = list(_SOURCES)
    for name, module in list(sys.modules.items()):
        file = file_of(module) if isinstance(module, ModuleType) else None
        if file is None:
            of_interest = name == "__main__"
        else:
            of_interest = not is_infrastructure(name) and not is_standard_library(file)
        if of_interest:
            found.append(module)
    return found


@contextmanager
def watched_sources() -> Generator[None, None, None]:
    """Patch the sources; on exit, restore them and the state of ``random``."""
    replaced: list[tuple[dict[str, Any], str, Any, Any]] = []
    state = _GETSTATE()
    for module in _holders():
        namespace = vars(module)
        for name, value in list(namespace.items()):
            wrapper = _BY_ORIGINAL.get(_ID(value))
            if wrapper is not None:
                namespace[name] = wrapper
                replaced.append((namespace, name, wrapper, value))
    for cls, name, method, _ in _METHODS:
        _set_in_type(cls, name, method)
    random.Random.seed = _seed_generator  # type: ignore[method-assign]
    builtins.id = _id
    os.environ.__class__ = _WATCHED_ENVIRON
    try:
        yield
    finally:
        os.environ.__class__ = _ENVIRON
        builtins.id = _ID
        random.Random.seed = _GENERATOR_SEED  # type: ignore[method-assign]
        for cls, name, _, original in _METHODS:
            _set_in_type(cls, name, original)
        for namespace, name, wrapper, value in replaced:
            if namespace.get(name) is wrapper:
                namespace[name] = value
        _SETSTATE(state)
