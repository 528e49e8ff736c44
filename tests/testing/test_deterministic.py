"""What makes a handler do otherwise with the same journal: `check_deterministic`."""

from __future__ import annotations

import http.server
import logging
import os
import random
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest
import restate
from restate.entry_codec import JournalValueCodec

import restate_steps
from restate_steps.testing import (
    DeterminismReport,
    Nondeterminism,
    NotDeterministicError,
    SimulationError,
    Simulator,
    check_deterministic,
)
from tests.testing import deterministic, nondeterministic
from tests.testing.nondeterministic import culprits

FILE = nondeterministic.__file__
QUOTED = "step 'quote'"


def only(report: DeterminismReport) -> Nondeterminism:
    assert len(report.findings) == 1, str(report)
    return report.findings[0]


def blamed(finding: Nondeterminism) -> int:
    assert finding.location is not None
    file, _, line = finding.location.rpartition(":")
    assert FILE == file
    return int(line)


# --- each kind --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("handler", "kind", "cause"),
    [
        (nondeterministic.branches_on_time, "clock", "time.time()"),
        (nondeterministic.branches_on_the_hour, "clock", "datetime.now()"),
        (nondeterministic.names_a_step_by_the_day, "clock", "date.today()"),
        (nondeterministic.answers_with_the_time, "clock", "datetime.today()"),
        (nondeterministic.formats_the_time, "clock", "time.strftime()"),
        (nondeterministic.tosses_a_coin, "randomness", "random.random()"),
        (nondeterministic.chooses, "randomness", "random.choice()"),
        (nondeterministic.shuffles, "randomness", "random.shuffle()"),
        (nondeterministic.draws_from_its_own_generator, "randomness", "random.Random()"),
        (nondeterministic.calls_with_a_new_id, "randomness", "uuid.uuid4()"),
        (nondeterministic.sends_with_a_random_key, "randomness", "os.urandom()"),
        (nondeterministic.answers_with_a_secret, "randomness", "secrets.token_hex()"),
        (nondeterministic.sorts_by_address, "memory address", "id()"),
        (nondeterministic.asks_for_a_variable, "environment", "os.environ['FAULTY_MODE']"),
        (nondeterministic.asks_where_it_is, "environment", "socket.gethostname()"),
    ],
    ids=lambda case: getattr(case, "__name__", None),
)
def test_a_line_that_reads_what_is_in_no_journal(handler: Callable[..., Any], kind: str, cause: str) -> None:
    """The report names the kind, the call, its line, and the step after which the runs part."""
    finding = only(check_deterministic(handler, interpreters=0))

    assert (kind, cause) == (finding.kind, finding.cause)
    assert culprits(handler) == [blamed(finding)]
    assert QUOTED == finding.after
    assert finding.recorded != finding.replayed


def test_a_draw_with_which_every_other_attempt_fails() -> None:
    """It is not like one that fails by chance: no retry gets through."""
    handler = nondeterministic.asserts_its_own_draw
    finding = only(check_deterministic(handler, interpreters=0))

    assert "randomness" == finding.kind
    assert culprits(handler) == [blamed(finding)]
    assert "it fails: ValueError('another number')" == finding.replayed


def test_the_state_that_is_set_is_compared() -> None:
    """A value that is written depends on the clock: the report shows both."""
    finding = only(check_deterministic(nondeterministic.keeps_the_time, key="k", interpreters=0))

    assert "clock" == finding.kind
    assert culprits(nondeterministic.keeps_the_time) == [blamed(finding)]
    assert finding.recorded.startswith("set state 'seen' to 1")
    assert finding.replayed.startswith("set state 'seen' to 1")
    assert finding.replayed.endswith("with the clock shifted by 12:34:56.789000")


def test_each_line_is_blamed_for_itself() -> None:
    """A duration depends on two readings of a clock, under a name that was imported: both lines are named."""
    handler = nondeterministic.measures_with_an_imported_name
    report = check_deterministic(handler, interpreters=0)

    assert culprits(handler) == [blamed(finding) for finding in report.findings]
    assert {"time.monotonic()"} == {finding.cause for finding in report.findings}
    assert {QUOTED} == {finding.after for finding in report.findings}


@pytest.mark.parametrize(
    ("handler", "kind", "after"),
    [
        (nondeterministic.walks_through_a_set, "hash order", QUOTED),
        (nondeterministic.gathers_a_set, "hash order", QUOTED),
    ],
    ids=lambda case: getattr(case, "__name__", None),
)
def test_what_differs_between_processes(handler: Callable[..., Any], kind: str, after: str) -> None:
    """Other interpreters have other hash seeds, and other addresses."""
    finding = only(check_deterministic(handler))

    assert kind == finding.kind
    assert after == finding.after
    assert culprits(handler) == [blamed(finding)]


def test_the_order_of_a_set_in_an_answer() -> None:
    """An answer is compared too, although no line of the handler asks for it."""
    handler = nondeterministic.answers_with_a_set
    finding = only(check_deterministic(handler))

    assert culprits(handler) == [blamed(finding)]
    assert ("hash order", QUOTED) == (finding.kind, finding.after)
    assert finding.recorded.startswith("answer [")
    assert finding.replayed.startswith("answer [")


@pytest.mark.parametrize(
    ("handler", "name", "after"),
    [
        (nondeterministic.counts, "nondeterministic.numbers", QUOTED),
        (nondeterministic.caches, "nondeterministic.prices", QUOTED),
    ],
    ids=lambda case: getattr(case, "__name__", None),
)
def test_what_a_run_leaves_in_memory(handler: Callable[..., Any], name: str, after: str) -> None:
    """A counter and a cache are others in the next attempt: the report names the variables that have changed."""
    nondeterministic.prices.clear()
    finding = only(check_deterministic(handler, interpreters=0))

    assert "memory" == finding.kind
    assert name in finding.cause
    assert culprits(handler) == [blamed(finding)]
    assert after == finding.after


def test_what_only_this_process_has_in_memory() -> None:
    """What an earlier run has left behind makes no difference here, but it does in a new process."""
    handler = nondeterministic.knows_what_a_new_process_does_not
    nondeterministic.only_here.append("x")
    finding = only(check_deterministic(handler))

    assert "memory" == finding.kind
    assert "a new one lacks" in finding.cause
    assert culprits(handler) == [blamed(finding)]
    assert ("step 'charge'", "step 'end'") == (finding.recorded, finding.replayed)


# --- the world outside ------------------------------------------------------------------------------------------


@pytest.fixture
def port() -> Iterator[int]:
    """The port of a small HTTP server."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("handler", "cause"),
    [
        (nondeterministic.reads_a_file, "open('{path}')"),
        (nondeterministic.asks_a_database, "sqlite3.connect('{path}')"),
        (nondeterministic.asks_over_http, "a connection to 127.0.0.1:{port}"),
        (nondeterministic.asks_over_http_without_asyncio, "a connection to 127.0.0.1:{port}"),
        (nondeterministic.starts_a_program, "a program '{python}'"),
        (nondeterministic.works_in_a_thread, "a thread"),
    ],
    ids=lambda case: getattr(case, "__name__", None),
)
def test_what_is_done_outside_of_a_step(handler: Callable[..., Any], cause: str, tmp_path: Path, port: int) -> None:
    """It is found even if it makes no difference this time, with its line and the step before it."""
    path = tmp_path / "file"
    path.touch()
    given: dict[str, Any] = {"asks_over_http": port, "asks_over_http_without_asyncio": port}
    argument = given.get(handler.__name__, str(path))
    takes_none = handler.__name__ in ("starts_a_program", "works_in_a_thread")
    finding = only(check_deterministic(handler, *([] if takes_none else [argument]), interpreters=0))

    assert "outside I/O" == finding.kind
    assert cause.format(path=path, port=port, python=sys.executable) == finding.cause
    assert culprits(handler) == [blamed(finding)]
    assert QUOTED == finding.after


def test_what_was_read_outside_is_blamed_for_a_difference(tmp_path: Path) -> None:
    """A file that changes from run to run is one finding, which shows what it leads to."""
    handler = nondeterministic.appends_to_a_file_and_reads_it
    finding = only(check_deterministic(handler, str(tmp_path / "file"), interpreters=0))

    assert "outside I/O" == finding.kind
    assert culprits(handler) == [blamed(finding)]
    assert ("step 'at 1'", "step 'at 2'") == (finding.recorded, finding.replayed)


# --- with branches ----------------------------------------------------------------------------------------------


def test_a_branch_is_compared_as_well() -> None:
    """What a branch of gather does is in the journal, and so is what it does otherwise."""
    handler = nondeterministic.branches_on_time_in_a_branch
    finding = only(check_deterministic(handler, interpreters=0))

    assert "clock" == finding.kind
    assert culprits(handler) == [blamed(finding)]
    assert finding.after.startswith("step 'quote")


def test_time_passes_for_a_handler_that_waits_for_it() -> None:
    """Clocks go on with virtual time, or a handler that polls would not end; both of its readings are to blame."""
    handler = nondeterministic.polls_until_a_deadline
    report = check_deterministic(handler, interpreters=0)

    assert culprits(handler) == [blamed(finding) for finding in report.findings]
    assert {"clock"} == {finding.kind for finding in report.findings}


def test_attempts_that_contradict_each_other() -> None:
    """A scenario may crash; what the server would refuse with 570 is a finding that shows both attempts."""

    async def crash(sim: Simulator) -> Any:
        invocation = await sim.send(nondeterministic.counts_before_it_waits)
        await sim.crash()
        return (await invocation.result()).value

    handler = nondeterministic.counts_before_it_waits
    finding = only(check_deterministic(handler, scenario=crash, interpreters=0))

    assert ("unknown", "the beginning") == (finding.kind, finding.after)
    assert culprits(handler) == [blamed(finding)]
    assert finding.recorded.startswith("step 'order ")
    assert finding.replayed.startswith("step 'order ")


# --- no false alarms --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("handler", "arguments"),
    [
        (deterministic.steps_of_the_sdk, ["tea"]),
        (deterministic.random_numbers_of_the_context, []),
        (deterministic.sleeps_locally, []),
        (deterministic.waits_until_midnight, []),
        (deterministic.fails_by_chance, []),
        (deterministic.waits_for_several, []),
        (deterministic.calls_others, []),
        (deterministic.fails, []),
        (deterministic.logs_and_measures, []),
        (deterministic.looks_things_up, []),
        (deterministic.imports_late, []),
        (deterministic.seeds_its_random_numbers, [7]),
        (deterministic.many_branches, ["tea"]),
        (deterministic.reads_in_a_step, []),
        (deterministic.asks_an_agent, ["What is the weather?"]),
    ],
    ids=lambda case: getattr(case, "__name__", None),
)
@pytest.mark.parametrize("version", [6, 7])
def test_no_false_alarm(handler: Callable[..., Any], arguments: list[Any], version: int) -> None:
    """A handler that always does the same is left in peace, whatever its steps do, and everything was looked at."""
    report = check_deterministic(handler, *arguments, version=version)

    assert [] == report.findings, str(report)
    assert [] == report.not_checked
    report.assert_deterministic()


def test_no_false_alarm_for_state() -> None:
    """What a Virtual Object keeps is read from the journal."""
    report = check_deterministic(deterministic.deposit, 5, key="a")

    assert ([], []) == (report.findings, report.not_checked)


def test_no_false_alarm_for_a_log_file(tmp_path: Path) -> None:
    """A log may be written to a file that is opened with the first line of it."""
    handler = logging.FileHandler(tmp_path / "log", delay=True)
    deterministic.logger.addHandler(handler)
    try:
        report = check_deterministic(deterministic.logs_and_measures, interpreters=0)
    finally:
        deterministic.logger.removeHandler(handler)
        handler.close()

    assert [] == report.findings, str(report)


class Sealed(JournalValueCodec):
    """Seals values in another way each time, as encryption does."""

    def encode(self, buf: bytes) -> bytes:
        return b"sealed" + os.urandom(4) + buf

    async def decode(self, buf: bytes) -> bytes:
        return buf[10:] if buf.startswith(b"sealed") else buf


def test_no_false_alarm_for_values_that_are_encrypted() -> None:
    """The same value is encrypted otherwise each time; it is not compared, as the SDK does not compare it either."""
    app = restate_steps.app([deterministic.sound], journal_value_codec=Sealed())
    report = check_deterministic(deterministic.steps_of_the_sdk, "tea", app=app, interpreters=0)

    assert [] == report.findings, str(report)


async def test_a_scenario() -> None:
    """A scenario does what a client does; every handler that runs then is checked, in an async test too."""

    async def approve(sim: Simulator) -> Any:
        invocation = await sim.send(deterministic.asks_for_approval)
        await sim.send(nondeterministic.tosses_a_coin)
        await sim.resolve_awakeable(await sim.awakeable(invocation), "yes")
        return (await invocation.result()).value

    app = restate_steps.app([deterministic.sound, nondeterministic.faulty])
    finding = only(check_deterministic(app=app, scenario=approve, interpreters=0))

    assert "Faulty/tosses_a_coin" == finding.handler
    assert culprits(nondeterministic.tosses_a_coin) == [blamed(finding)]


# --- the report -------------------------------------------------------------------------------------------------


def test_the_report_can_be_read() -> None:
    """It says what, where, after which step, what either run did, and how to fix it."""
    report = check_deterministic(nondeterministic.chooses, interpreters=0)
    with pytest.raises(NotDeterministicError) as caught:
        report.assert_deterministic()
    text = str(caught.value)

    assert "found one cause of nondeterminism" in text
    assert "not checked: hash order, because interpreters=0" in text
    assert "randomness: random.choice()" in text
    assert f"at         {FILE}:{culprits(nondeterministic.chooses)[0]}" in text
    assert "after      step 'quote' (entry 1 of the journal)" in text
    assert "recorded   step '" in text
    assert "replayed   step '" in text
    assert "ctx.random()" in text
    assert "run" in report.journal.entries[only(report).after_index].type.lower()


def test_what_does_not_matter_can_be_left_out() -> None:
    """Kinds that are ignored are not found."""
    report = check_deterministic(nondeterministic.asks_for_a_variable, interpreters=0, ignore=("environment",))

    assert [] == report.findings
    with pytest.raises(SimulationError, match="'weather' is not a kind of finding"):
        check_deterministic(nondeterministic.asks_for_a_variable, ignore=("weather",))


def test_everything_is_left_as_it_was() -> None:
    """After a check the clocks, the random numbers and the environment are those of Python again."""
    before = (time.time, random.random, os.urandom, vars(datetime)["now"], vars(date)["today"], type(os.environ), id)
    random.seed(5)
    expected = random.Random(5).random()
    check_deterministic(nondeterministic.tosses_a_coin, interpreters=0)

    assert expected == random.random()
    assert before == (
        time.time,
        random.random,
        os.urandom,
        vars(datetime)["now"],
        vars(date)["today"],
        type(os.environ),
        id,
    )


# --- applications -----------------------------------------------------------------------------------------------


def test_an_application_that_another_process_cannot_find() -> None:
    """A handler inside a function is checked, but for the order of sets, and the report says so."""
    local = restate.Service("Local")

    @local.handler()
    async def walks(ctx: restate.Context) -> None:
        for name in {"apples", "pears", "plums"}:
            await ctx.run_typed(name, lambda: 1)

    report = check_deterministic(walks, app=restate_steps.app([local]))

    assert [] == report.findings
    [reason] = report.not_checked
    assert reason.startswith("hash order: neither the application nor the service 'Local' is a global variable")


def test_an_application_that_cannot_be_found_here() -> None:
    """Without an application, the service has to be a global variable; the error says what to pass."""
    local = restate.Service("Local")

    @local.handler()
    async def walks(ctx: restate.Context) -> None:
        pass

    with pytest.raises(SimulationError, match=r"Pass it: app=restate_steps\.app\(\[service\]\)"):
        check_deterministic(walks)
    with pytest.raises(SimulationError, match="Pass it too: app="):
        check_deterministic("Local/walks")
    with pytest.raises(SimulationError, match="is not a handler of a service"):
        check_deterministic(only)


SCRIPT = """
import restate
from restate_steps.testing import check_deterministic

shop = restate.Service("Shop")


@shop.handler()
async def buy(ctx: restate.Context) -> None:
    for name in {"apples", "pears", "plums", "cherries", "figs"}:
        await ctx.run_typed(name, lambda: 1)

"""


def test_a_script(tmp_path: Path) -> None:
    """A script is no module that can be imported by its name, but it has a file."""
    script = tmp_path / "shop.py"
    script.write_text(SCRIPT + 'if __name__ == "__main__":\n    print(check_deterministic(buy).findings[0].kind)\n')
    found = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)

    assert ("hash order\n", "") == (found.stdout, found.stderr)


def test_a_script_that_checks_as_it_is_imported(tmp_path: Path) -> None:
    """Other interpreters import the script, and would check it in turn: the report says what to do."""
    script = tmp_path / "shop.py"
    script.write_text(SCRIPT + "print(check_deterministic(buy).not_checked)\n")
    found = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)

    assert 'under `if __name__ == "__main__":`' in found.stdout


def test_what_is_typed_in() -> None:
    """Code without a file is checked, but for the order of sets."""
    code = textwrap.dedent(SCRIPT) + "print(check_deterministic(buy).not_checked)\n"
    found = subprocess.run([sys.executable, "-"], input=code, capture_output=True, text=True, check=True)

    assert "the module __main__ has no file" in found.stdout
