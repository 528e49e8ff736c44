"""Documents as tests: every code block of a page, and every example of a docstring, is executed or checked.

Rules:

1. A block whose language has no rule is an error, and so is code that hides from the parser (indented code, a fence
   inside raw HTML or inside a directive): nothing that looks like code goes unchecked.
2. The ``python`` blocks of one page are one module: they run in order, in one namespace and one event loop, and may
   ``await`` at top level.
3. A failure is reported with the file and the line of the page.
4. Examples in docstrings, after ``>>>`` or in a fence, run as well, and may ``await`` at top level too. They run
   outside any handler, and may use the public names, those of their module, and those of ``example_names``.

The languages of blocks:

- ``console``: lines that start with ``$ `` are command lines, the others are output. ``bash`` and ``sh``: every line is
  a command line. Command lines are checked without a shell: ``make`` needs an existing target, ``restate-steps`` a verb
  and options that its parser accepts, an installer well-formed requirements and existing extras, ``python`` an existing
  file or module. A ``curl`` request is sent, to the address that ``test_urls`` of the page gives for its URL. It must
  not fail, and the answer must be what the page shows, if anything (``…`` matches what differs from run to run).
- ``json`` and ``toml``: the block must parse. ``text``: nothing is checked.
- ``markdown``: an example of a page; every block in it must have a rule.

Comments hold what readers need not see. Each stands alone, with an empty line after it::

    <!-- test: fixtures server, tmp_path -->
    <!-- test: setup
    app = await cleanup.enter_async_context(serve_in_background())
    test_urls = {"http://localhost:8080": server.ingress_url}
    -->
    <!-- test: raises StepDefinitionError -->

- ``fixtures`` names synchronous pytest fixtures, which become variables of the page.
- ``setup`` holds Python code that runs at this point. ``cleanup`` is an ``AsyncExitStack``, closed after the page.
- ``raises`` names the exception that the next block must raise.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import contextlib
import doctest
import importlib.util
import inspect
import io
import json
import re
import shlex
import sys
import textwrap
import tomllib
import traceback
import types
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from markdown_it import MarkdownIt
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from restate_steps.cli._main import program
from tests.support import ROOT

# Directives of MyST that hold no code of ours.
_DIRECTIVES = {"{toctree}", "{eval-rst}"}
_COMMENT = re.compile(r"<!--\s*test:\s*(?P<verb>\w+)[ \t]*(?P<rest>.*?)\s*-->\s*", re.DOTALL)
_FENCED = re.compile(r"\A\s*```python\n(?P<code>.*?)```\s*\Z", re.DOTALL)


class DocumentError(AssertionError):
    """A page says something that is not so."""

    def __init__(self, path: Path, line: int, reason: str) -> None:
        shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path.name
        super().__init__(f"{shown}:{line}: {reason}")


@dataclass(frozen=True)
class Block:
    """One fenced block, or the code inside a ``<!-- test: setup -->`` comment.

    Attributes:
        path: The page.
        line: The line of the page on which the content begins, counted from 1.
        language: The first word after the fence.
        code: The content.
        raises: The name of the exception that the block must raise, if any.
    """

    path: Path
    line: int
    language: str
    code: str
    raises: str = ""

    def error(self, reason: str, *, line: int | None = None) -> DocumentError:
        return DocumentError(self.path, line or self.line, reason)


@dataclass(frozen=True)
class Document:
    """A parsed page.

    Attributes:
        path: Where it is.
        blocks: Its blocks, hidden ones too, in order.
        fixtures: The pytest fixtures it asks for.
    """

    path: Path
    blocks: tuple[Block, ...]
    fixtures: tuple[str, ...] = ()


def parse(path: Path, text: str | None = None, *, first_line: int = 1) -> Document:
    """Collect the blocks of a page."""
    blocks: list[Block] = []
    fixtures: list[str] = []
    raises = ""
    for token in MarkdownIt("commonmark").enable("table").parse(path.read_text() if text is None else text):
        if token.map is None:
            continue
        line = token.map[0] + first_line
        if token.type == "code_block":
            raise DocumentError(path, line, "indented code has no language: use a fence")
        if token.type == "html_block":
            if "<!--" in token.content and re.search(r"<!--\s*test\b", token.content):
                verb, rest, offset = _comment(path, line, token.content)
                match verb:
                    case "setup":
                        if fenced := _FENCED.match(rest):
                            offset += rest[: fenced.start("code")].count("\n")
                            rest = fenced["code"]
                        blocks.append(Block(path, line + offset, "python", textwrap.dedent(rest)))
                    case "fixtures":
                        fixtures += rest.replace(",", " ").split()
                    case "raises":
                        raises = rest
                    case _:
                        raise DocumentError(path, line, f"unknown comment 'test: {verb}': setup, fixtures or raises")
            elif re.search(r"```|~~~", token.content):
                raise DocumentError(path, line, "a fence inside HTML is not seen: put empty lines around it")
        elif token.type == "fence":
            language = token.info.split()[0] if token.info.split() else ""
            block = Block(path, line + 1, language, token.content, raises)
            if raises and language != "python":
                raise block.error("'test: raises' must stand before a python block")
            raises = ""
            _known(block)
            blocks.append(block)
    if raises:
        raise DocumentError(path, first_line, "'test: raises' must stand before a python block")
    return Document(path, tuple(blocks), tuple(fixtures))


def _comment(path: Path, line: int, content: str) -> tuple[str, str, int]:
    match = _COMMENT.fullmatch(content)
    if match is None:
        raise DocumentError(path, line, "a 'test:' comment must stand alone, and end with '-->' and an empty line")
    rest = match["rest"]
    start = match.start("rest")
    # Leading newlines belong to the layout of the comment, not to the code.
    stripped = rest.lstrip("\n")
    return match["verb"], stripped, content[: start + len(rest) - len(stripped)].count("\n")


def _known(block: Block) -> None:
    language = block.language
    if language.startswith("{"):
        if language not in _DIRECTIVES:
            raise block.error(f"directive {language} is not seen through: use ':::' fences, whose content is")
        if "code-block::" in block.code or "sourcecode::" in block.code or "::\n\n" in block.code:
            raise block.error(f"code inside {language} is not executed: use a fence of its own")
    elif language not in _RULES:
        known = ", ".join(sorted(_RULES))
        raise block.error(f"no rule says how to check the language {language!r}; those with one: {known}")


class Page:
    """The state in which the blocks of one page run."""

    def __init__(self, document: Document, **names: Any) -> None:
        self.document = document
        # A real module, so that annotations given as text, dataclasses and pickles find their names in it.
        self.module = types.ModuleType("document_" + re.sub(r"\W", "_", document.path.stem))
        self.names = self.module.__dict__
        self.names.update(names, __file__=str(document.path))

    async def run(self) -> None:
        """Execute or check every block, in order; the first failure ends it."""
        sys.modules[self.module.__name__] = self.module
        try:
            async with contextlib.AsyncExitStack() as cleanup:
                self.names["cleanup"] = cleanup
                for block in self.document.blocks:
                    if block.language in _RULES:
                        result = _RULES[block.language](self, block)
                        if inspect.isawaitable(result):
                            await result
        finally:
            del sys.modules[self.module.__name__]

    async def python(self, block: Block) -> None:
        # Empty lines in front give tracebacks and syntax errors the line numbers of the page.
        source = "\n" * (block.line - 1) + block.code
        try:
            code = compile(source, str(block.path), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
            result = eval(code, self.names)
            if inspect.iscoroutine(result):
                await result
        except Exception as error:
            if block.raises and block.raises in {cls.__name__ for cls in type(error).__mro__}:
                return
            line = _line_of(error, block.path, block.line)
            raise block.error(f"{type(error).__name__}: {error}", line=line) from error
        if block.raises:
            raise block.error(f"{block.raises} was not raised")

    def json(self, block: Block) -> None:
        try:
            json.loads(block.code)
        except ValueError as error:
            raise block.error(f"not JSON: {error}") from error

    def toml(self, block: Block) -> None:
        try:
            tomllib.loads(block.code)
        except tomllib.TOMLDecodeError as error:
            raise block.error(f"not TOML: {error}") from error

    def markdown(self, block: Block) -> None:
        # An example of a page: not run, but its blocks and comments must be ones that would be.
        parse(block.path, block.code, first_line=block.line)

    def text(self, block: Block) -> None:
        pass

    async def shell(self, block: Block) -> None:
        for command in commands(block):
            try:
                await check_command(command, self.names)
            except (ValueError, OSError) as error:
                raise block.error(f"`{command.text}`: {error}", line=command.line) from error


_RULES: dict[str, Callable[[Page, Block], Any]] = {
    "bash": Page.shell,
    "console": Page.shell,
    "json": Page.json,
    "markdown": Page.markdown,
    "python": Page.python,
    "sh": Page.shell,
    "text": Page.text,
    "toml": Page.toml,
}


def _line_of(error: BaseException, path: Path, line: int) -> int:
    """The line of the document in which an error arose, as deep as possible; ``line`` if that cannot be told."""
    if isinstance(error, SyntaxError) and error.filename == str(path) and error.lineno:
        return error.lineno
    step = error.__traceback__
    while step is not None:
        if step.tb_frame.f_code.co_filename == str(path):
            line = step.tb_lineno
        step = step.tb_next
    return line


def run(path: Path, **names: Any) -> None:
    """Execute a page whose fixtures are given as ``names``."""
    asyncio.run(Page(parse(path), **names).run())


def docstrings(module: types.ModuleType) -> list[doctest.DocTest]:
    """The docstrings of a module that have examples."""
    found = doctest.DocTestFinder(exclude_empty=True).find(module, module.__name__)
    return [test for test in found if test.examples or _MARKS.search(test.docstring or "")]


async def run_docstring(test: doctest.DocTest, names: dict[str, Any]) -> None:
    """Execute the examples of one docstring, in order, in one namespace that begins with ``names``."""
    path, first = Path(str(test.filename)), (test.lineno or 0) + 1
    docstring = test.docstring or ""
    pieces: list[tuple[int, doctest.Example | str]] = [(first + e.lineno, e) for e in test.examples]
    for fence in _DOCSTRING_FENCE.finditer(docstring):
        code = textwrap.dedent(fence["code"])
        pieces.append((first + docstring.count("\n", 0, fence.start("code")), code))
    for mark in _MARKS.finditer(_DOCSTRING_FENCE.sub(lambda fence: "\n" * fence[0].count("\n"), docstring)):
        line = first + docstring.count("\n", 0, mark.start())
        raise DocumentError(path, line, f"{mark[0]!r} is not executed: use '>>>' or a fence marked 'python'")
    names = {**names, **test.globs, "__name__": f"docstring of {test.name}"}
    for line, piece in sorted(pieces, key=lambda piece: piece[0]):
        example = doctest.Example(piece, "") if isinstance(piece, str) else piece
        mode = "exec" if isinstance(piece, str) else "single"
        await _run_example(path, line, example, mode, names)


# What opens code, and a fence that is executed.
_MARKS = re.compile(r"```.*|~~~.*|code-block::.*")
_DOCSTRING_FENCE = re.compile(r"^(?P<indent> *)```python\n(?P<code>.*?)^(?P=indent)```$", re.DOTALL | re.MULTILINE)


async def _run_example(path: Path, line: int, example: doctest.Example, mode: str, names: dict[str, Any]) -> None:
    flags = doctest.ELLIPSIS | sum(flag for flag, on in example.options.items() if on)
    if flags & doctest.SKIP:
        raise DocumentError(path, line, "an example that is skipped is not executed")
    output = io.StringIO()
    hook, sys.displayhook = sys.displayhook, sys.__displayhook__
    try:
        with contextlib.redirect_stdout(output):
            # Empty lines in front of a statement would make two statements of it, and that is not interactive.
            tree = ast.increment_lineno(ast.parse(example.source, mode=mode), line - 1)
            code = compile(tree, str(path), mode, ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
            result = eval(code, names)
            if inspect.iscoroutine(result):
                await result
    except Exception as error:
        shown = "".join(traceback.format_exception_only(error))
        if example.exc_msg is None or not _matches(example.exc_msg, shown, flags):
            raise DocumentError(path, _line_of(error, path, line), shown.strip().splitlines()[-1]) from error
    else:
        if not _matches(example.want, output.getvalue(), flags):
            raise DocumentError(path, line, f"expected {example.want!r}, and got {output.getvalue()!r}")
    finally:
        sys.displayhook = hook


def _matches(want: str, got: str, flags: int) -> bool:
    return doctest.OutputChecker().check_output(want, got, flags)


# Command lines. None of them is handed to a shell: each is checked against what it would reach, except curl, which is
# carried out as a request.


@dataclass
class Command:
    """One command line of a block, with what the page says that it prints."""

    line: int
    text: str
    output: list[str] = field(default_factory=list)


def commands(block: Block) -> Iterator[Command]:
    """Split a block into command lines; in a ``console`` block they begin with ``$``, and the rest is output."""
    prompt = block.language == "console"
    current: Command | None = None
    unfinished = False
    for number, line in enumerate(block.code.splitlines(), block.line):
        if unfinished and current is not None:
            current.text += "\n" + line.removeprefix("> " if prompt else "")
        elif prompt and not line.startswith("$ "):
            if current is None:
                raise block.error("a console block begins with a command, after '$ '", line=number)
            current.output.append(line)
            continue
        elif not line.strip() or line.lstrip().startswith("#"):
            continue
        else:
            if current is not None:
                yield current
            current = Command(number, line.removeprefix("$ "))
        try:
            shlex.split(current.text)
            unfinished = current.text.endswith("\\")
        except ValueError:
            unfinished = True
    if current is not None:
        if unfinished:
            raise block.error("a command line without an end", line=current.line)
        yield current


async def check_command(command: Command, names: dict[str, Any]) -> None:
    """Check one command line; ``ValueError`` says what is wrong with it."""
    lexer = shlex.shlex(command.text.replace("\\\n", " "), posix=True, punctuation_chars="&;|<>")
    lexer.whitespace_split = True
    lexer.commenters = ""
    words: list[str] = []
    for word in [*lexer, "&&"]:
        if word in ("&&", "&"):
            if words:
                await _check_words(words, command, names)
            words = []
        elif set(word) <= set("&;|<>"):
            raise ValueError(f"no rule for {word!r}")
        elif word.startswith("#"):
            break
        else:
            words.append(word)
    if words:
        await _check_words(words, command, names)


async def _check_words(words: list[str], command: Command, names: dict[str, Any]) -> None:
    while re.fullmatch(r"[A-Za-z_]\w*=.*", words[0], re.DOTALL):
        words = words[1:]
        if not words:
            return
    match words:
        case ["make", *args]:
            _make(args)
        case ["restate-steps", *args]:
            _restate_steps(args)
        case ["pip" | "pip3", "install", *args] | ["uv", "pip", "install", *args] | ["uv", "add", *args]:
            _install(args)
        case ["python" | "python3", "-m", "pip", "install", *args]:
            _install(args)
        case ["python" | "python3", "-m", module, *_]:
            if importlib.util.find_spec(module) is None:
                raise ValueError(f"there is no module {module}")
        case ["python" | "python3", script, *_]:
            if not (ROOT / script).is_file():
                raise ValueError(f"there is no file {script}")
        case ["curl", *args]:
            await _curl(args, command, names)
        case ["git", "clone", _] | ["cd", _]:
            pass
        case ["export", assignment] if re.match(r"[A-Za-z_]\w*=", assignment):
            pass
        case _:
            raise ValueError(f"no rule says how to check {words[0]!r}")


def _make(args: list[str]) -> None:
    targets = set(re.findall(r"^([a-z-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for arg in args:
        if "=" not in arg and arg not in targets:
            raise ValueError(f"the Makefile has no target {arg!r}")


def _restate_steps(args: list[str]) -> None:
    """Parse a command line as the program does, without running the command."""
    command: click.Command = program
    context: click.Context | None = None
    name = "restate-steps"
    try:
        while isinstance(command, click.Group) and args and not args[0].startswith("-"):
            context = click.Context(command, parent=context, info_name=name)
            name, args = args[0], args[1:]
            found = command.get_command(context, name)
            if found is None:
                raise ValueError(f"there is no command {name!r}")
            command = found
        with contextlib.redirect_stdout(io.StringIO()):
            command.make_context(name, list(args), parent=context)
    except click.exceptions.Exit:
        pass
    except click.UsageError as error:
        raise ValueError(error.format_message()) from error


def _install(args: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    words = iter(args)
    for word in words:
        if word in ("-r", "--requirement"):
            if not (ROOT / (name := next(words, ""))).is_file():
                raise ValueError(f"there is no file {name!r}")
        elif not word.startswith("-"):
            # A path to the project itself reads like its name, with the same extras.
            own = re.sub(r"^\.(?=\[|$)", project["name"], word)
            try:
                requirement = Requirement(own)
            except InvalidRequirement as error:
                raise ValueError(f"{word!r} is no requirement: {error}") from error
            if canonicalize_name(requirement.name) == project["name"]:
                unknown = requirement.extras - set(project["optional-dependencies"])
                if unknown:
                    raise ValueError(f"the project has no extra {', '.join(sorted(unknown))}")


class _CurlParser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise ValueError(message)


async def _curl(args: list[str], command: Command, names: dict[str, Any]) -> None:
    """Send the request to where ``test_urls`` of the page says, and compare the answer with the page's output."""
    parser = _CurlParser("curl", add_help=False, allow_abbrev=False)
    parser.add_argument("url")
    parser.add_argument("-X", "--request")
    parser.add_argument("-H", "--header", action="append", default=[])
    parser.add_argument("-d", "--data")
    parser.add_argument("--json")
    for flag in ("-f", "-s", "-S"):
        parser.add_argument(flag, action="store_true")
    options = parser.parse_args(args)

    url = options.url if "://" in options.url else f"http://{options.url}"
    bases: dict[str, str] = names.get("test_urls", {})
    base = next((base for base in bases if url == base or url.startswith(base.rstrip("/") + "/")), None)
    if base is None:
        raise ValueError(f"test_urls, a dict that the page's set-up makes, says nothing about {url}")
    headers = {"accept": "*/*"}
    if options.json is not None:
        headers["content-type"] = "application/json"
    for header in options.header:
        name, _, value = header.partition(":")
        headers[name.strip().lower()] = value.strip()
    data = options.json if options.json is not None else options.data
    if data is not None and "json" in headers.get("content-type", ""):
        json.loads(data)
    request = urllib.request.Request(
        bases[base].rstrip("/") + url[len(base.rstrip("/")) :],
        data=None if data is None else data.encode(),
        headers=headers,
        method=options.request or ("GET" if data is None else "POST"),
    )
    answer = await asyncio.to_thread(_send, request)
    expected = "\n".join(command.output).strip()
    if expected and not _same(expected, answer):
        raise ValueError(f"the page shows {expected!r}, and the answer is {answer!r}")


def _send(request: urllib.request.Request) -> str:
    # No proxy: what a page calls runs on this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=60) as response:
            return str(response.read().decode()).strip()
    except urllib.error.HTTPError as error:
        with error:
            raise ValueError(f"the server answers {error.code}: {error.read().decode()}") from error


def _same(expected: str, answer: str) -> bool:
    with contextlib.suppress(ValueError):
        if json.loads(expected) == json.loads(answer):
            return True
    # An ellipsis stands for what differs from run to run.
    return re.fullmatch(re.escape(expected).replace("…", ".*"), answer, re.DOTALL) is not None
