"""Test durable handlers: simulate the server in virtual time, explore every crash, or run a real server."""

from restate_steps._protocol.types import MessageType
from restate_steps._protocol.wire import Frame
from restate_steps._public import publish
from restate_steps.testing._both import BothOutcomes, on_both
from restate_steps.testing._determinism.deterministic import DeterminismReport, Nondeterminism, check_deterministic
from restate_steps.testing._errors import (
    InvocationEndedError,
    InvocationPausedError,
    JournalMismatchError,
    NotDeterministicError,
    NotReplaySafeError,
    ReplayDifferenceError,
    SimulationError,
    StuckError,
)
from restate_steps.testing._exploration.explore import explore
from restate_steps.testing._exploration.report import Finding, Report
from restate_steps.testing._real_server.environment import ServerEnvironment, restate_server
from restate_steps.testing._real_server.pool import close_servers
from restate_steps.testing._recording.api import load_journals, replay
from restate_steps.testing._recording.export import export_journal
from restate_steps.testing._recording.recorded import RecordedJournal, record
from restate_steps.testing._simulation.effects import Effects
from restate_steps.testing._simulation.invocation import InvocationStatus
from restate_steps.testing._simulation.journal import Journal, Origin
from restate_steps.testing._simulation.manifest import Target
from restate_steps.testing._simulation.outcome import Outcome
from restate_steps.testing._simulation.schedule import Crash, Schedule
from restate_steps.testing._simulation.simulator import (
    Result,
    SimulatedClient,
    SimulatedInvocation,
    Simulator,
    simulate,
)
from restate_steps.testing._simulation.trace import BodyRun

__all__ = [
    "BodyRun",
    "BothOutcomes",
    "Crash",
    "DeterminismReport",
    "Effects",
    "Finding",
    "Frame",
    "InvocationEndedError",
    "InvocationPausedError",
    "InvocationStatus",
    "Journal",
    "JournalMismatchError",
    "MessageType",
    "Nondeterminism",
    "NotDeterministicError",
    "NotReplaySafeError",
    "Origin",
    "Outcome",
    "RecordedJournal",
    "ReplayDifferenceError",
    "Report",
    "Result",
    "Schedule",
    "ServerEnvironment",
    "SimulatedClient",
    "SimulatedInvocation",
    "SimulationError",
    "Simulator",
    "StuckError",
    "Target",
    "check_deterministic",
    "close_servers",
    "explore",
    "export_journal",
    "load_journals",
    "on_both",
    "record",
    "replay",
    "restate_server",
    "simulate",
]

publish("restate_steps.testing", globals(), __all__)
