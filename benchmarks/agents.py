"""A scripted pydantic-ai agent: durable with this package, with `restate.ext.pydantic`, with DBOS, and not durable.

    python -m benchmarks agents
    python -m benchmarks.agents --quick

The scripted model answers immediately, so the benchmark measures the agent and its durability. The two Restate variants
share a server, and are called over HTTP. DBOS, with SQLite, and the plain agent are called in this process, which saves
them a request and a response per run. A step leaves one row in DBOS and two entries in Restate's journal: one when it
starts, and one with its result.
"""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import restate
from dbos import DBOS
from pydantic_ai import Agent
from pydantic_ai.durable_exec.dbos import DBOSDurability
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from restate.ext.pydantic import RestateAgent as SdkAgent

import restate_steps
from benchmarks._measure import Ratio, by_turns, print_table, ratio, spread
from restate_steps.agents import RestateAgent
from restate_steps.server import RestateServer, serve_app

SERVICES = {"ours": "Agents", "sdk": "AgentsOfTheSdk"}
OURS, SDK, ON_DBOS, PLAIN = "restate_steps", "restate.ext.pydantic", "DBOS with SQLite", "not durable"

PAUSE = 0.05
AT_ONCE = 16
SERIAL = 3
"""The number of sequential runs per sample."""

SECONDS = {"serial": 15.0, "at once": 35.0, "pauses": 15.0}
"""The minimum duration of each measurement."""

LEAST, QUICK = 5, 2
"""The minimum number of samples, and the number with ``--quick``."""

SPEED_GOAL = 3.0
PAUSES_GOAL = 150.0


class Script(NamedTuple):
    """The model's script: the tool it calls, the number of turns with calls, and the calls in each turn."""

    tool: str
    turns: int
    calls: int


SCRIPTS = {"turns": Script("look_up", turns=5, calls=4), "pauses": Script("pause", turns=1, calls=32)}

Tool = Callable[[str], Awaitable[dict[str, Any]]]
Run = Callable[[str], Awaitable[str]]
"""A function that runs an agent and returns its answer."""


async def look_up(sku: str) -> dict[str, Any]:
    """Look up an article."""
    return {"sku": sku, "price": "9.90", "left": 3}


async def pause(sku: str) -> dict[str, Any]:
    """Look up an article in a slow place."""
    await asyncio.sleep(PAUSE)
    return {"sku": sku, "price": "9.90", "left": 3}


TOOLS: dict[str, Tool] = {"look_up": look_up, "pause": pause}


def agent_of(script: Script, name: str, tool: Tool, *capabilities: Any) -> Agent[None, str]:
    async def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        turn = sum(isinstance(message, ModelResponse) for message in messages)
        if turn < script.turns:
            skus = [f"{turn}-{number}" for number in range(script.calls)]
            return ModelResponse([ToolCallPart(script.tool, {"sku": sku}, f"call-{sku}") for sku in skus])
        parts = [part for message in messages for part in message.parts]
        return ModelResponse([TextPart(f"{sum(isinstance(part, ToolReturnPart) for part in parts)} articles")])

    return Agent(FunctionModel(answer), name=name, tools=[tool], capabilities=capabilities)


def applications(agents: dict[str, Agent[None, str]]) -> list[Any]:
    """Return an ASGI application for each Restate variant, with a handler for each script."""
    ours, theirs = restate.Service(SERVICES["ours"]), restate.Service(SERVICES["sdk"])
    for name, agent in agents.items():
        ours.handler(f"ours_{name}")(by_steps(agent))
        theirs.handler(f"sdk_{name}")(by_sdk(agent))
    return [restate_steps.app([ours]), restate.app([theirs])]


def by_steps(agent: Agent[None, str]) -> Callable[[restate.Context, str], Awaitable[str]]:
    async def handler(ctx: restate.Context, prompt: str) -> str:
        return (await RestateAgent(agent, restate_context=ctx).run(prompt)).output

    return handler


def by_sdk(agent: Agent[None, str]) -> Callable[[restate.Context, str], Awaitable[str]]:
    durable = SdkAgent(agent, auto_wrap_tools=True)

    async def handler(ctx: restate.Context, prompt: str) -> str:
        return (await durable.run(prompt)).output

    return handler


def plainly(agent: Agent[None, str]) -> Run:
    async def run(prompt: str) -> str:
        return (await agent.run(prompt)).output

    return run


@contextmanager
def on_dbos(folder: str) -> Generator[tuple[dict[str, Run], Path], None, None]:
    """Yield a workflow for each script, and the path of their database. No conductor, no telemetry, no port."""
    path = Path(folder, "dbos.sqlite")
    config: Any = {"name": "benchmark", "system_database_url": f"sqlite:///{path}", "log_level": "ERROR"}
    DBOS(config=config)
    try:
        workflows: dict[str, Run] = {}
        for name, script in SCRIPTS.items():
            tool = DBOS.step(name=script.tool)(TOOLS[script.tool])
            run = plainly(agent_of(script, f"dbos_{name}", tool, DBOSDurability()))
            workflows[name] = DBOS.workflow(name=name)(run)
        DBOS.launch()
        yield workflows, path
    finally:
        DBOS.destroy(destroy_registry=True)


class Kept(NamedTuple):
    """The records that one run leaves behind, including its input and output."""

    steps: int
    entries: int
    bytes: int


class Variant(NamedTuple):
    """A way to run the scripts.

    Attributes:
        runs: The function that runs each script, by the script's name.
        kept: A function that returns the records of the last run.
    """

    runs: dict[str, Run]
    kept: Callable[[], Kept]


def on_restate(server: RestateServer, client: httpx.AsyncClient, prefix: str) -> Variant:
    last = ""

    def calling(name: str) -> Run:
        async def run(prompt: str) -> str:
            nonlocal last
            answer = await client.post(f"{server.ingress_url}/{SERVICES[prefix]}/{prefix}_{name}", json=prompt)
            answer.raise_for_status()
            last = answer.headers["x-restate-id"]
            return str(answer.json())

        return run

    def kept() -> Kept:
        rows = server.admin.query(f"SELECT entry_type, raw_length FROM sys_journal WHERE id = '{last}'")
        steps = sum(row["entry_type"] == "Command: Run" for row in rows)
        return Kept(steps, len(rows), sum(row["raw_length"] for row in rows))

    return Variant({name: calling(name) for name in SCRIPTS}, kept)


def kept_in(path: Path) -> Kept:
    """Return the records of DBOS's last workflow, without the rows' keys, which Restate's byte counts exclude too."""
    connection = sqlite3.connect(path)
    try:
        [[last]] = connection.execute("SELECT workflow_uuid FROM workflow_status ORDER BY rowid DESC LIMIT 1")

        def rows(columns: str, table: str) -> list[tuple[str | None, ...]]:
            return connection.execute(f"SELECT {columns} FROM {table} WHERE workflow_uuid = ?", (last,)).fetchall()

        steps = rows("function_name, output, error", "operation_outputs")
        around = rows("inputs", "workflow_input") + rows("output, error", "workflow_output")
    finally:
        connection.close()
    return Kept(len(steps), len(steps + around), sum(len(value or "") for row in steps + around for value in row))


@contextmanager
def variants(runner: asyncio.Runner) -> Generator[dict[str, Variant], None, None]:
    with ExitStack() as stack:
        agents = {name: agent_of(script, name, TOOLS[script.tool]) for name, script in SCRIPTS.items()}
        server = stack.enter_context(RestateServer())
        for application in applications(agents):
            stack.enter_context(serve_app(application, server))
        # Ignore the environment's proxy settings: the server is on loopback.
        client = httpx.AsyncClient(trust_env=False, timeout=60)
        stack.callback(lambda: runner.run(client.aclose()))
        workflows, path = stack.enter_context(on_dbos(stack.enter_context(tempfile.TemporaryDirectory())))
        yield {
            OURS: on_restate(server, client, "ours"),
            SDK: on_restate(server, client, "sdk"),
            ON_DBOS: Variant(workflows, lambda: kept_in(path)),
            PLAIN: Variant({name: plainly(agent) for name, agent in agents.items()}, lambda: Kept(0, 0, 0)),
        }


def measurement(runner: asyncio.Runner, run: Run, script: Script, *, times: int, at_once: int) -> Callable[[], float]:
    """Return a function that measures the time per run, in seconds."""
    expected = f"{script.turns * script.calls} articles"

    async def all_runs() -> None:
        for _ in range(times):
            answers = await asyncio.gather(*(run("What is left?") for _ in range(at_once)))
            assert set(answers) == {expected}, answers

    def measure() -> float:
        start = time.perf_counter()
        runner.run(all_runs())
        return (time.perf_counter() - start) / (times * at_once)

    return measure


def faster(goal: float, base: Sequence[float], ours: Sequence[float]) -> list[str]:
    """Return the table cells that compare our speed with another candidate's."""
    found = ratio(base, ours)
    return [f"{found.median:.2f}", found.quartiles, f"≥ {goal:.2f}", ratio(ours, base).verdict(1 / goal)]


def milliseconds(goal: float, ours: Sequence[float]) -> list[str]:
    found: Ratio = ratio(ours, [1e-3] * len(ours))
    return [f"{found.median:.0f} ms", f"{found.low:.0f} … {found.high:.0f}", f"≤ {goal:.0f} ms", found.verdict(goal)]


def no_more(ours: int, base: int) -> list[str]:
    return [f"{ours / base:.2f}", "", "≤ 1.00", "met" if ours <= base else "missed"]


def main() -> int:
    quick = "--quick" in sys.argv
    kinds = {
        "serial": ("turns", 1 if quick else SERIAL, 1),
        "at once": ("turns", 1, AT_ONCE),
        "pauses": ("pauses", 1, 1),
    }
    taken: dict[str, dict[str, list[float]]] = {}
    kept: dict[str, Kept] = {}
    with asyncio.Runner() as runner, variants(runner) as found:
        # Do not let collections scan the objects of all candidates, which are more than any single one needs.
        gc.collect()
        gc.freeze()
        for kind, (name, times, at_once) in kinds.items():
            candidates = {
                label: measurement(runner, variant.runs[name], SCRIPTS[name], times=times, at_once=at_once)
                for label, variant in found.items()
            }
            least, seconds = (QUICK, 0.0) if quick else (LEAST, SECONDS[kind])
            taken[kind] = by_turns(candidates, seconds=seconds, least=least)
            if kind == "serial":
                kept = {label: variant.kept() for label, variant in found.items()}
        gc.unfreeze()

    turns, pauses = SCRIPTS["turns"], SCRIPTS["pauses"]
    rows: list[list[str]] = []
    for label in found:
        middle = {kind: spread(samples[label]).median for kind, samples in taken.items()}
        rows.append(
            [
                label,
                f"{middle['serial'] * 1e3:.1f}",
                f"{1 / middle['at once']:.1f}",
                f"{middle['pauses'] * 1e3:.0f}",
                *(f"{number:,}" for number in kept[label]),
            ]
        )
    packages = ", ".join(f"{name} {version(name)}" for name in ("pydantic-ai-slim", "dbos"))
    print(
        f"One agent with {packages}: {turns.turns} turns of {turns.calls} tool calls, in milliseconds per run, in\n"
        f"runs per second with {AT_ONCE} at once, and in records per run. Then 1 turn of {pauses.calls} tool calls of "
        f"{PAUSE * 1e3:.0f} ms.\n"
    )
    print_table(["", "ms/run", "runs/s", f"{pauses.calls} tools, ms", "steps", "entries", "bytes"], rows)
    rows = []
    for base in (SDK, ON_DBOS):
        goal = SPEED_GOAL if base == SDK else 1.0
        rows.append([f"runs/s, vs. {base}", *faster(goal, taken["at once"][base], taken["at once"][OURS])])
        rows.append([f"one run, vs. {base}", *faster(1.0, taken["serial"][base], taken["serial"][OURS])])
    rows.append([f"{pauses.calls} tools at once", *milliseconds(PAUSES_GOAL, taken["pauses"][OURS])])
    for what in Kept._fields:
        for base in (SDK, ON_DBOS):
            rows.append([f"{what}, vs. {base}", *no_more(getattr(kept[OURS], what), getattr(kept[base], what))])
    print("\nrestate_steps compared with the others: how many times as fast, and how many times the records\n")
    print_table(["", "restate_steps", "quartiles", "goal", "verdict"], rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
