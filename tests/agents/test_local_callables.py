"""Instructions, hooks, output functions and custom toolsets that use a client of the server's event loop."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import httpx
import pytest
import restate
from pydantic_ai import Agent, ModelRetry, RunContext
from pydantic_ai.capabilities import AbstractCapability, Hooks
from pydantic_ai.capabilities.hooks import HookTimeoutError
from pydantic_ai.messages import ModelMessage, ModelRequest, SystemPromptPart
from pydantic_ai.tools import ToolDefinition
from pydantic_ai.toolsets import AbstractToolset, ToolsetTool
from pydantic_core import SchemaValidator, core_schema

import restate_steps
from restate_steps import durable_step
from restate_steps.agents import RestateAgent, RestateDurability
from restate_steps.testing import InvocationPausedError, Simulator, explore, simulate
from tests.support.agents_kit import Again, Answer, Call, Decide, Script, Serve, Served, returned, serve_handler

pytestmark = [pytest.mark.usefixtures("collected"), pytest.mark.filterwarnings("ignore::ResourceWarning")]

client = httpx.AsyncClient(trust_env=False)
"""A client that handler code and step bodies share. Each test has its own, because each has its own event loop."""

bodies: Counter[str] = Counter()
"""The number of times that each step's body ran."""


class Host:
    """An HTTP server that answers each path with its name.

    Attributes:
        url: The address.
        requests: How often each path was requested.
        connections: The number of connections that it accepted.
    """

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.connections = 0
        self.released = threading.Event()
        host = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                host.connections += 1
                super().setup()

            def do_GET(self) -> None:
                name = self.path[1:]
                host.requests[name] += 1
                if name == "hangs":
                    host.released.wait(20)
                elif name == "slow":
                    host.released.wait(0.6)
                answer = name.upper().encode()
                self.send_response(200)
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *args: Any) -> None:
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        """Stop the server."""
        self.released.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def host() -> Iterator[Host]:
    """Run an HTTP server, and point the client at it."""
    global client
    host = Host()
    client = httpx.AsyncClient(base_url=host.url, trust_env=False)
    bodies.clear()
    yield host
    host.close()


async def get(name: str) -> str:
    """Ask the server."""
    return (await client.get(f"/{name}")).text


@durable_step(name="look up {name}")
async def look_up(name: str) -> str:
    """Ask the server in a step."""
    bodies[name] += 1
    return await get(name)


async def both(name: str) -> str:
    """Ask the server in the handler, and in a step."""
    return f"{await get(f'{name}-handler')} {await look_up(f'{name}-step')}"


BOTH = "PLACE-HANDLER PLACE-STEP"


# --- agents that are durable in two ways ------------------------------------------------------------------------------


class How:
    """A way to make a run durable.

    Args:
        wraps: Whether the handler makes a :class:`RestateAgent`; otherwise, the agent has the capability.
    """

    def __init__(self, *, wraps: bool) -> None:
        self.wraps = wraps

    def agent(self, script: Script, *, capabilities: Sequence[Any] = (), **options: Any) -> Agent[None, Any]:
        """Make an agent."""
        given = [*capabilities] if self.wraps else [*capabilities, RestateDurability()]
        return Agent(script.model, name="talker", capabilities=given, **options)

    async def run(self, agent: Agent[None, Any], ctx: restate.Context) -> Any:
        """Run it, and return its output."""
        return (await (RestateAgent(agent, restate_context=ctx) if self.wraps else agent).run("go")).output

    def serve(self, serve: Serve, name: str, agent: Agent[None, Any]) -> tuple[Served, Again]:
        """Serve a handler that runs an agent, and then fails once, so that all of it is replayed."""
        again = Again()

        async def handler(ctx: restate.Context) -> Any:
            output = await self.run(agent, ctx)
            again()
            return output

        return serve_handler(serve, name, handler), again


@pytest.fixture(params=[How(wraps=True), How(wraps=False)], ids=["RestateAgent", "RestateDurability"])
def how(request: pytest.FixtureRequest) -> How:
    """Each way to make a run durable."""
    found = request.param
    assert isinstance(found, How)
    return found


def say(messages: list[ModelMessage]) -> str:
    """Repeat what the tools returned."""
    return "; ".join(str(content) for content in returned(messages))


def say_instructions(messages: list[ModelMessage]) -> str:
    """Repeat the instructions, and what the tools returned."""
    request = messages[-1]
    assert isinstance(request, ModelRequest)
    return f"{request.instructions} | {say(messages)}"


def say_system_prompt(messages: list[ModelMessage]) -> str:
    """Repeat the system prompt, and what the tools returned."""
    parts = [part for part in messages[0].parts if isinstance(part, SystemPromptPart)]
    return f"{parts[0].content} | {say(messages)}"


# --- a place for user code each ---------------------------------------------------------------------------------------


def scripted(*last: Decide | Answer) -> Script:
    """Call the tool ``tool``, and then answer."""
    return Script(("tool", {}), *last)


def in_instructions(how: How) -> Agent[None, Any]:
    agent = how.agent(scripted(say_instructions))

    @agent.instructions
    async def instructions() -> str:
        return await both("place")

    return agent


def in_a_system_prompt(how: How) -> Agent[None, Any]:
    agent = how.agent(scripted(say_system_prompt))

    @agent.system_prompt
    async def prompt() -> str:
        return await both("place")

    return agent


def in_a_dynamic_system_prompt(how: How) -> Agent[None, Any]:
    agent = how.agent(scripted(say_system_prompt))

    @agent.system_prompt(dynamic=True)
    async def prompt() -> str:
        return await both("place")

    return agent


def in_an_output_validator(how: How) -> Agent[None, Any]:
    agent = how.agent(scripted(say))

    @agent.output_validator
    async def validate(output: str) -> str:
        return f"{await both('place')} | {output}"

    return agent


def in_an_output_function(how: How) -> Agent[None, Any]:
    async def combine(word: str) -> str:
        return f"{await both('place')} | {word}"

    return how.agent(scripted(lambda messages: ("final_result", {"word": say(messages)})), output_type=combine)


def in_a_hook(how: How, timeout: float | None = None) -> Agent[None, Any]:
    hooks: Hooks[None] = Hooks()

    async def before(ctx: RunContext[None], request_context: Any) -> Any:
        request = request_context.messages[-1]
        request.instructions = await both("place")
        return request_context

    if timeout is None:
        hooks.on.before_model_request(before)
    else:
        hooks.on.before_model_request(timeout=timeout)(before)
    return how.agent(scripted(say_instructions), capabilities=[hooks])


def in_a_hook_with_a_timeout(how: How) -> Agent[None, Any]:
    return in_a_hook(how, timeout=20)


class Asking(AbstractCapability[None]):
    """A capability with a method that uses the client.

    Args:
        ask: Uses the client.
    """

    def __init__(self, ask: Callable[[], Awaitable[str]]) -> None:
        self._ask = ask

    async def before_model_request(self, ctx: RunContext[None], request_context: Any) -> Any:
        """Replace the instructions."""
        request_context.messages[-1].instructions = await self._ask()
        return request_context


async def both_locally() -> str:
    return await restate_steps.local(both("place"))


def in_a_method_of_a_capability(how: How, ask: Callable[[], Awaitable[str]] = both_locally) -> Agent[None, Any]:
    return how.agent(scripted(say_instructions), capabilities=[Asking(ask)])


def in_a_wrap_hook(how: How, ask: Callable[[], Awaitable[str]] = both_locally) -> Agent[None, Any]:
    hooks: Hooks[None] = Hooks()

    @hooks.on.model_request
    async def wrap(ctx: RunContext[None], *, request_context: Any, handler: Any) -> Any:
        request_context.messages[-1].instructions = await ask()
        return await handler(request_context)

    return how.agent(scripted(say_instructions), capabilities=[hooks])


PLACES = [
    in_instructions,
    in_a_system_prompt,
    in_a_dynamic_system_prompt,
    in_an_output_validator,
    in_an_output_function,
    in_a_hook,
    in_a_hook_with_a_timeout,
    in_a_method_of_a_capability,
    in_a_wrap_hook,
]


@pytest.mark.parametrize("place", PLACES)
def test_user_code_uses_a_client(
    env_factory: Serve, host: Host, how: How, place: Callable[[How], Agent[None, Any]]
) -> None:
    """The code makes a request and calls a step; the step is journaled once, and its body runs once."""
    agent = place(how)

    @agent.tool_plain
    async def tool() -> str:
        bodies["tool"] += 1
        return await get("tool")

    served, again = how.serve(env_factory, "Places", agent)
    answer, names = served.with_steps()

    assert f"{BOTH} | TOOL" == answer
    assert again.times >= 2
    # Instructions and hooks run before each of the two requests, and their step is called each time.
    calls = names.count("look up place-step")
    assert calls in (1, 2)
    assert {"tool": 1, "place-step": calls} == bodies
    assert host.requests["place-handler"] >= 2 * calls
    assert 1 == host.connections


@pytest.mark.parametrize("place", [in_a_method_of_a_capability, in_a_wrap_hook])
async def test_code_that_needs_local(host: Host, how: How, place: Callable[..., Agent[None, Any]]) -> None:
    """Methods of a capability and wrap hooks are handler code, and the error names ``restate_steps.local``."""
    service = restate.Service("NeedsLocal")
    agent = place(how, lambda: get("place"))

    @service.handler()
    async def run(ctx: restate.Context) -> str:
        return str(await how.run(agent, ctx))

    async with simulate(restate_steps.app([service])) as simulator:
        with pytest.raises(InvocationPausedError, match=r"Put the work into a step, .* restate_steps\.local"):
            await simulator.call(run)


def test_an_output_function_may_ask_again(env_factory: Serve, host: Host, how: How) -> None:
    """An output function raises ModelRetry after a request, and gets another value."""

    def word(messages: list[ModelMessage]) -> Call:
        return ("final_result", {"word": "bad" if len(messages) < 3 else "good"})

    async def check(word: str) -> str:
        found = await both(word)
        if word == "bad":
            raise ModelRetry("say something good")
        return found

    served, _ = how.serve(env_factory, "AsksAgain", how.agent(Script(word), output_type=check))
    answer, names = served.with_steps()

    assert "GOOD-HANDLER GOOD-STEP" == answer
    assert ["look up bad-step", "look up good-step"] == [name for name in names if name.startswith("look up")]
    assert {"bad-step": 1, "good-step": 1} == bodies


def test_instructions_call_steps_at_the_same_time(env_factory: Serve, host: Host, how: How) -> None:
    """An instructions function gathers two steps between two requests."""
    agent = how.agent(Script(say_instructions))
    together = threading.Barrier(2)

    @durable_step(name="meet {name}")
    async def meet(name: str) -> str:
        bodies[name] += 1
        await asyncio.to_thread(together.wait, 20)
        return await get(name)

    @agent.instructions
    async def instructions() -> str:
        before = await get("before")
        found = await restate_steps.gather(meet("a"), meet("b"))
        return f"{before} {found} {await get('after')}"

    served, _ = how.serve(env_factory, "Gathers", agent)
    answer, names = served.with_steps()

    assert "BEFORE ['A', 'B'] AFTER | " == answer
    assert {"a": 1, "b": 1} == bodies
    assert ["meet a", "meet b"] == [name for name in names if name.startswith("meet")]


def test_two_instructions_functions(env_factory: Serve, host: Host, how: How) -> None:
    """They run one after another, in the order in which they were added."""
    agent = how.agent(Script(say_instructions))

    @agent.instructions
    async def first() -> str:
        return await both("first")

    @agent.instructions
    async def second(ctx: RunContext[None]) -> str:
        return await both("second" if ctx.prompt == "go" else "other")

    served, _ = how.serve(env_factory, "TwoInstructions", agent)
    answer, names = served.with_steps()

    assert "FIRST-HANDLER FIRST-STEP\n\nSECOND-HANDLER SECOND-STEP | " == answer
    assert {"first-step": 1, "second-step": 1} == bodies
    assert ["look up first-step", "look up second-step"] == [name for name in names if name.startswith("look up")]


@pytest.mark.parametrize("ask", [get, look_up])
def test_the_timeout_of_a_hook_that_hangs(
    env_factory: Serve, host: Host, how: How, ask: Callable[[str], Awaitable[str]]
) -> None:
    """The timeout fires around a request, in the handler or in a step, and the handler continues with a step."""
    hooks: Hooks[None] = Hooks()

    @hooks.on.before_model_request(timeout=0.15)
    async def before(ctx: RunContext[None], request_context: Any) -> Any:
        # A step in flight keeps its attempt from being suspended, so it must end some time.
        await ask("hangs" if ask is get else "slow")
        return request_context

    script = Script("unexpected")
    agent = how.agent(script, capabilities=[hooks])
    again = Again()

    async def handler(ctx: restate.Context) -> str:
        try:
            found = str(await how.run(agent, ctx))
        except HookTimeoutError as error:
            found = f"{error.hook_name} {await look_up('fallback')}"
        again()
        return found

    served = serve_handler(env_factory, "Hangs", handler)

    assert "before_model_request FALLBACK" == served()
    assert 0 == script.requests
    assert 1 == bodies["fallback"]


# --- custom toolsets --------------------------------------------------------------------------------------------------


ANY_ARGUMENTS = SchemaValidator(core_schema.dict_schema())


class Directory(AbstractToolset[None]):
    """A toolset that lists its tools from a server, and calls them there.

    Attributes:
        own_client: Its client, while it is entered.
        log: What was called.
    """

    def __init__(self, url: str, toolset_id: str | None = None) -> None:
        self._url = url
        self._id = toolset_id
        self._entered = 0
        self.own_client: httpx.AsyncClient | None = None
        self.log: list[str] = []

    @property
    def id(self) -> str | None:
        return self._id

    async def __aenter__(self) -> Self:
        self._entered += 1
        if self._entered == 1:
            await self.open()
        return self

    async def __aexit__(self, *args: Any) -> bool | None:
        self._entered -= 1
        if self._entered == 0:
            await self.close()
        return None

    async def open(self) -> None:
        """Make the client."""
        self.own_client = await httpx.AsyncClient(base_url=self._url, trust_env=False).__aenter__()
        self.log.append("open")

    async def close(self) -> None:
        """Close the client."""
        own_client, self.own_client = self.own_client, None
        assert own_client is not None
        await own_client.get("/goodbye")
        await own_client.__aexit__(None, None, None)
        self.log.append("close")

    async def get_instructions(self, ctx: RunContext[None]) -> str:
        return await self.ask("instructions")

    async def get_tools(self, ctx: RunContext[None]) -> dict[str, ToolsetTool[None]]:
        names = ("left", "right")
        await self.ask("tools")
        return {
            name: ToolsetTool(
                toolset=self, tool_def=ToolDefinition(name=name), max_retries=1, args_validator=ANY_ARGUMENTS
            )
            for name in names
        }

    async def call_tool(
        self, name: str, tool_args: dict[str, Any], ctx: RunContext[None], tool: ToolsetTool[None]
    ) -> str:
        assert tool.toolset is self
        return await self.ask(name)

    async def ask(self, name: str) -> str:
        """Ask the server."""
        assert self.own_client is not None
        return (await self.own_client.get(f"/{name}")).text


class DurableDirectory(Directory):
    """One whose tools are steps."""

    async def call_tool(
        self, name: str, tool_args: dict[str, Any], ctx: RunContext[None], tool: ToolsetTool[None]
    ) -> str:
        return f"{await self.ask(name)} {await look_up(name)} {await self.ask(name)}"


class Exclusive(Directory):
    """One that counts no references: it may be entered again once it has been exited, in the same task."""

    task: asyncio.Task[Any] | None = None

    async def __aenter__(self) -> Self:
        self.log.append("enter" if self.task is None else "entered too early")
        self.task = asyncio.current_task()
        await self.open()
        return self

    async def __aexit__(self, *args: Any) -> bool | None:
        await self.close()
        self.log.append("exit" if self.task is asyncio.current_task() else "exited in another task")
        self.task = None
        return None


def test_a_custom_toolset(env_factory: Serve, host: Host, how: How) -> None:
    """It is entered, lists and calls its tools, and is exited, all on the server's loop."""
    toolset = Directory(host.url)
    script = Script([("left", {}), ("right", {})], say_instructions)
    served, _ = how.serve(env_factory, "Custom", how.agent(script, toolsets=[toolset]))
    answer, names = served.with_steps()

    assert "INSTRUCTIONS | LEFT; RIGHT" == answer
    # No call is recorded: the journal has the two requests to the model.
    assert 2 == len(names)
    assert host.requests["goodbye"] >= 1


def test_a_custom_toolset_that_calls_steps(env_factory: Serve, host: Host, how: How) -> None:
    """The steps are journaled once, between requests to the server that every replay repeats."""
    toolset = DurableDirectory(host.url, "directory")
    script = Script([("left", {}), ("right", {})], say)
    served, again = how.serve(env_factory, "CustomSteps", how.agent(script, toolsets=[toolset]))
    answer, names = served.with_steps()

    assert "LEFT LEFT LEFT; RIGHT RIGHT RIGHT" == answer
    assert again.times >= 2
    assert {"left": 1, "right": 1} == bodies
    assert ["look up left", "look up right"] == [name for name in names if name.startswith("look up")]


def test_a_custom_toolset_is_exited_before_the_next_attempt(env_factory: Serve, host: Host, how: How) -> None:
    """Entered and exited in one task, and never entered by two attempts of an invocation at the same time."""
    toolset = Exclusive(host.url, "exclusive")
    served, _ = how.serve(env_factory, "Exclusive", how.agent(Script(("left", {}), say), toolsets=[toolset]))

    assert "LEFT" == served()
    found = [entry for entry in toolset.log if entry not in ("open", "close")]
    assert (len(found) + 1) // 2 * ["enter", "exit"] == [*found, "exit"][: (len(found) + 1) // 2 * 2]


def test_an_agent_is_entered_around_its_runs(env_factory: Serve, host: Host, how: How) -> None:
    """``async with local(agent)`` keeps the client of a custom toolset open for several runs."""
    toolset = Directory(host.url, "directory")
    agent = how.agent(Script(("left", {}), say), toolsets=[toolset])

    async def handler(ctx: restate.Context) -> list[str]:
        async with restate_steps.local(agent):
            return [str(await how.run(agent, ctx)), str(await how.run(agent, ctx))]

    assert ["LEFT", "LEFT"] == serve_handler(env_factory, "Entered", handler)()


# --- every order, every crash, and a cancellation ---------------------------------------------------------------------


@durable_step(name="{tag}")
async def work(tag: str) -> str:
    bodies[tag] += 1
    await asyncio.sleep(0)
    return tag


@pytest.mark.parametrize("how", [How(wraps=True), How(wraps=False)], ids=["RestateAgent", "RestateDurability"])
def test_instructions_beside_parallel_tools_explored(how: How) -> None:
    """Instructions sleep on the server's loop and call a step, and three tools run at once."""
    service = restate.Service("Explored")
    agent = how.agent(Script([("a", {}), ("b", {}), ("c", {})], say_instructions))

    @agent.instructions
    async def instructions() -> str:
        await asyncio.sleep(0.01)
        return await work("instructions")

    @agent.tool_plain
    async def a() -> str:
        bodies["a"] += 1
        return "A"

    @agent.tool_plain(metadata={"restate": False})
    async def b() -> str:
        return f"{await work('b1')} {await work('b2')}"

    @agent.tool_plain(metadata={"restate": False})
    async def c() -> str:
        return str(await restate_steps.gather(work("c1"), work("c2")))

    @service.handler()
    async def run(ctx: restate.Context) -> str:
        return str(await how.run(agent, ctx))

    def once(simulator: Simulator) -> None:
        crashes = sum(invocation.attempts - 1 for invocation in simulator.invocations)
        counts = {tag: count for tag, count in bodies.items() if tag != "instructions"}
        assert all(count <= 1 + crashes for count in counts.values()), bodies
        # They run before each of the two requests.
        assert bodies["instructions"] <= 2 + crashes, bodies

    report = explore(
        restate_steps.app([service]),
        "Explored/run",
        before_each=bodies.clear,
        check=once,
        crashes=1,
        cancel=True,
        max_runs=40,
        max_seconds=10,
        progress=False,
    )

    report.assert_replay_safe()
    answers = {str(outcome.value) for outcome, _ in report.outcomes}
    assert {"instructions | A; b1 b2; ['c1', 'c2']", "(409, 'cancelled')"} == answers
