"""A planner creates the tasks, workers do them concurrently, and an editor combines the findings.

Unlike in a fixed workflow, the planner decides how many workers to start: its output is a typed list of tasks. The plan
is in the journal, so a replay starts the same workers.

    $ restate-steps dev examples.tour.workflow_orchestrator:app
    $ curl localhost:8080/MarketStudy/study --json '"e-bikes in Austria and Belgium"'
"""

from __future__ import annotations

import asyncio
import re
from typing import Literal

import restate
from pydantic import BaseModel, TypeAdapter
from pydantic_ai import Agent

import restate_steps
from examples.tour._scripted import Reply, Seen, call, scripted
from restate_steps.agents import RestateAgent

SOLD = {"Austria": 240_000, "Belgium": 310_000}


class Task(BaseModel):
    """The task of one worker."""

    question: Literal["how many are sold", "who sells them"]
    country: str


class Plan(BaseModel):
    """The tasks of a study."""

    tasks: list[Task]


class Finding(BaseModel):
    """A worker's answer to its task."""

    task: Task
    answer: str


FINDINGS = TypeAdapter(list[Finding])


@scripted
def planner_model(seen: Seen) -> Reply:
    countries = re.findall(r"[A-Z]\w+", seen.prompt) or ["Europe"]
    tasks = [Task(question="how many are sold", country=country) for country in countries]
    return Plan(tasks=[*tasks, Task(question="who sells them", country=countries[0])])


@scripted
def worker_model(seen: Seen) -> Reply:
    task = Task.model_validate_json(seen.prompt)
    if task.question == "who sells them":
        return f"KTM leads in {task.country}"
    if "statistics" in seen.tools:
        return f"{seen.tools['statistics'].content or 'Some'} are sold in {task.country}"
    return [call("statistics", country=task.country)]


@scripted
def editor_model(seen: Seen) -> Reply:
    return f"{'; '.join(finding.answer for finding in FINDINGS.validate_json(seen.prompt))}."


planner = Agent(planner_model, name="planner", output_type=Plan, instructions="Plan a market study as tasks.")
worker = Agent(worker_model, name="worker", instructions="Do the task, in one sentence.")
editor = Agent(editor_model, name="editor", instructions="Write the study from the findings.")


@worker.tool_plain
async def statistics(country: str) -> int | None:
    """Look up how many e-bikes are sold in a country each year."""
    return SOLD.get(country)


studies = restate.Service("MarketStudy")


@studies.handler()
async def study(ctx: restate.Context, subject: str) -> str:
    async def work(task: Task) -> Finding:
        result = await RestateAgent(worker, restate_context=ctx).run(task.model_dump_json())
        return Finding(task=task, answer=result.output)

    plan = (await RestateAgent(planner, restate_context=ctx).run(subject)).output
    findings = await asyncio.gather(*[work(task) for task in plan.tasks])
    return (await RestateAgent(editor, restate_context=ctx).run(FINDINGS.dump_json(findings).decode())).output


app = restate_steps.app([studies])
