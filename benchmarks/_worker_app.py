"""The application of the agents benchmark, for processes that serve it."""

from __future__ import annotations

from benchmarks.agents import SCRIPTS, TOOLS, agent_of, applications

agents = {name: agent_of(script, name, TOOLS[script.tool]) for name, script in SCRIPTS.items()}
app = applications(agents)[0]
