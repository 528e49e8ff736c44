"""Every code block of the documentation is executed or checked, and the machinery that does it is tested too."""

from __future__ import annotations

import asyncio
import doctest
import http.server
import importlib
import json
import os
import re
import subprocess
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from tests.support import ROOT
from tests.support.documents import Block, DocumentError, commands, docstrings, parse, run, run_docstring
from tests.support.example_names import names

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_page(page: Path, request: pytest.FixtureRequest) -> None:
    """Every block of the page does what the page says."""
    fixtures = {name: request.getfixturevalue(name) for name in parse(page).fixtures}

    run(page, **fixtures)


@pytest.mark.timeout(300)
def test_examples_of_the_readme_pass_checkers_as_pasted(tmp_path: Path) -> None:
    """A new user pastes them into a project with strict checkers, or with the defaults of a linter."""
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    for name, code in zip(("shop.py", "explore_shop.py"), blocks, strict=True):
        (tmp_path / name).write_text(code)
    (tmp_path / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict"}')
    commands = (
        ("pyright", "--pythonpath", sys.executable),
        ("ruff", "check", "--isolated", "--extend-select", "I,UP,B,SIM,RET,ASYNC,RUF", "."),
        ("ruff", "format", "--isolated", "--check", "."),
    )

    for module, *options in commands:
        command = [sys.executable, "-m", module, *options]
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        assert (0, "") == (done.returncode, done.stdout if done.returncode else ""), f"{module}:\n{done.stderr}"


@pytest.mark.timeout(300)
def test_documentation_builds_without_a_warning(tmp_path: Path) -> None:
    """Sphinx finds every page, every reference and every documented name."""
    command = [sys.executable, "-m", "sphinx", "-W", "-n", "--keep-going", "-q", "-b", "html", "docs", str(tmp_path)]

    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    assert (0, "") == (built.returncode, built.stderr)


def _modules() -> list[str]:
    parts = [path.relative_to(ROOT).with_suffix("").parts for path in sorted((ROOT / "restate_steps").rglob("*.py"))]
    return [".".join(p[:-1] if p[-1] == "__init__" else p) for p in parts if p[-1] != "__main__"]


def _public(module: str) -> dict[str, object]:
    """The public names of the package and of the subpackages that lead to a module."""
    parts = module.split(".")
    packages = [importlib.import_module(".".join(parts[:end])) for end in range(1, len(parts))]
    return {name: getattr(package, name) for package in packages for name in getattr(package, "__all__", ())}


async def _run_docstring(test: doctest.DocTest, module: str) -> None:
    await run_docstring(test, {**names(), **_public(module)})


@pytest.mark.timeout(300)
@pytest.mark.parametrize("module", _modules())
def test_examples_in_docstrings(module: str) -> None:
    """What a docstring shows is what happens."""
    for test in docstrings(importlib.import_module(module)):
        asyncio.run(_run_docstring(test, module))


class TestDocstrings:
    """How examples in docstrings are executed."""

    def check(self, docstring: str) -> None:
        module = types.ModuleType("sample", dedent(docstring))
        module.__file__ = "sample.py"
        for test in docstrings(module):
            test.lineno, test.filename = 0, "sample.py"
            asyncio.run(run_docstring(test, {"given": 1}))

    def test_examples_may_await_and_fail_as_shown(self) -> None:
        """Values, printed lines, awaited values and exceptions are compared with what is shown."""
        self.check(
            """
            >>> import asyncio
            >>> task = asyncio.ensure_future(asyncio.sleep(0, {"a": 1}))
            >>> await task
            {'a': 1}
            >>> print("one", object())
            one <object object at ...>
            >>> 1 / 0
            Traceback (most recent call last):
                ...
            ZeroDivisionError: division by zero
            """
        )

    @pytest.mark.parametrize(
        ("docstring", "reason"),
        [
            ("Text.\n\n>>> 1 + 1\n3\n", r"^sample\.py:3: expected '3\\n', and got '2\\n'"),
            ("Text.\n\n>>> 1 / 0\n3\n", r"^sample\.py:3: ZeroDivisionError"),
            (">>> 1 / 1\nTraceback (most recent call last):\nKeyError: 1\n", "expected .* and got '1.0"),
            (">>> 1 / 0  # doctest: +SKIP\n", "an example that is skipped is not executed"),
        ],
    )
    def test_other_outcomes_are_reported_with_file_and_line(self, docstring: str, reason: str) -> None:
        """Another value or exception, and an example that would not run, are errors."""
        with pytest.raises(DocumentError, match=reason):
            self.check(docstring)

    def test_fences_and_prompts_share_a_namespace(self) -> None:
        """Both kinds of examples run in order, with the given names, at any indentation."""
        self.check(
            """
            Text.

            Example:
                ```python
                async def double(value):
                    return 2 * value

                found = await double(given)
                ```

                >>> found
                2

                ```python
                assert found == 2
                ```
            """
        )

    @pytest.mark.parametrize(
        ("code", "reason"),
        [
            ("Text.\n\n    ```python\n    1 / 1\n    1 / 0\n    ```\n", r"^sample\.py:5: ZeroDivisionError"),
            ("Text.\n\n```python\nreturn 1\n```\n", r"^sample\.py:4: SyntaxError"),
            ("Text.\n\n```\n1 / 1\n```\n", r"^sample\.py:3: '```' is not executed"),
            ("Text.\n\n.. code-block:: python\n\n   1 / 1\n", r"^sample\.py:3: 'code-block:: python' is not executed"),
        ],
    )
    def test_fences_are_executed(self, code: str, reason: str) -> None:
        """A fence that fails, or that would not be executed, is an error."""
        with pytest.raises(DocumentError, match=reason):
            self.check(code)


class TestMachinery:
    """What the pages rely on."""

    @pytest.fixture
    def page(self, tmp_path: Path) -> Path:
        return tmp_path / "page.md"

    def check(self, page: Path, text: str) -> None:
        page.write_text(dedent(text).lstrip("\n"))
        run(page)

    def test_blocks_share_a_namespace_and_may_await(self, page: Path) -> None:
        """What one block defines, the next one uses, on the same event loop."""
        self.check(
            page,
            """
            ```python
            import asyncio

            loop = asyncio.get_running_loop()
            task = asyncio.create_task(asyncio.sleep(0, "answer"))
            ```

            1. In a list too:

               ```python
               assert await task == "answer"
               assert asyncio.get_running_loop() is loop
               ```
            """,
        )

    def test_annotations_as_text_are_resolved(self, page: Path) -> None:
        """A page is a module, so that `get_type_hints` finds its classes; a future import ends with its block."""
        self.check(
            page,
            """
            ```python
            from __future__ import annotations
            from typing import get_type_hints

            class Order: ...

            def quote(order: Order) -> int: ...

            assert get_type_hints(quote) == {"order": Order, "return": int}
            ```

            ```python
            def plain(order: Order): ...

            assert plain.__annotations__ == {"order": Order}
            ```
            """,
        )

    def test_hidden_setup_runs(self, page: Path) -> None:
        """A comment may hold code, fenced or not, which runs at its place."""
        self.check(
            page,
            """
            <!-- test: setup
            hidden = 1

            more = 2
            -->

            <!-- test: setup
            ```python
            hidden += more
            ```
            -->

            ```python
            assert hidden == 3
            ```
            """,
        )

    def test_cleanup_runs_after_the_last_block(self, page: Path) -> None:
        """What a page opens on `cleanup` is closed at its end, also when it fails."""
        closed: list[str] = []
        page.write_text(
            "<!-- test: setup\ncleanup.callback(closed.append, 'closed')\n-->\n\n"
            "```python\nassert not closed\nraise KeyError('x')\n```\n"
        )

        with pytest.raises(DocumentError):
            run(page, closed=closed)

        assert ["closed"] == closed

    def test_fixtures_are_collected(self, page: Path) -> None:
        """A page names the fixtures it needs."""
        page.write_text("<!-- test: fixtures server, tmp_path -->\n")

        assert ("server", "tmp_path") == parse(page).fixtures

    def test_a_failing_block_is_reported_with_file_and_line(self, page: Path) -> None:
        """The line is the one of the page that failed, not one of the block."""
        with pytest.raises(DocumentError, match=r"^page\.md:5: ValueError: no$") as caught:
            self.check(
                page,
                """
                # Title

                ```python
                def fails():
                    raise ValueError("no")

                fails()
                ```
                """,
            )

        assert isinstance(caught.value.__cause__, ValueError)

    def test_a_failing_hidden_block_is_reported_with_file_and_line(self, page: Path) -> None:
        """Lines are counted through comments as well."""
        with pytest.raises(DocumentError, match=r"^page\.md:6: ZeroDivisionError"):
            self.check(
                page,
                """
                Text.

                <!-- test: setup
                ```python
                one = 1
                one / 0
                ```
                -->
                """,
            )

    def test_a_syntax_error_is_reported_with_file_and_line(self, page: Path) -> None:
        """A block that cannot be compiled is found at its place too."""
        with pytest.raises(DocumentError, match=r"^page\.md:3: SyntaxError"):
            self.check(page, "```python\nx = 1\nx = = 2\n```\n")

    def test_an_expected_exception(self, page: Path) -> None:
        """A block may show what is refused, and must then be refused, for the reason that is named."""
        self.check(page, "<!-- test: raises ArithmeticError -->\n\n```python\n1 / 0\n```\n")

        with pytest.raises(DocumentError, match=r"page\.md:4: KeyError was not raised"):
            self.check(page, "<!-- test: raises KeyError -->\n\n```python\n1 / 1\n```\n")
        with pytest.raises(DocumentError, match=r"page\.md:4: ZeroDivisionError"):
            self.check(page, "<!-- test: raises KeyError -->\n\n```python\n1 / 0\n```\n")

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("```pyhton\n1 / 0\n```\n", r"^page\.md:2: no rule .* 'pyhton'"),
            ("```\n1 / 0\n```\n", r"^page\.md:2: no rule .* ''"),
            ("```{code-block} python\n1 / 0\n```\n", r"directive \{code-block\} is not seen through"),
            ("````{note}\n```python\n1 / 0\n```\n````\n", r"directive \{note\} is not seen through"),
            ("```{eval-rst}\n.. code-block:: python\n\n   1 / 0\n```\n", r"code inside \{eval-rst\} is not executed"),
            ("Text\n\n    1 / 0\n", r"^page\.md:3: indented code"),
            ("<details>\n```python\n1 / 0\n```\n</details>\n", r"^page\.md:1: a fence inside HTML"),
            ("<!-- test: setpu\n1 / 0\n-->\n", r"unknown comment 'test: setpu'"),
            ("<!-- test: setup\n1 / 0\n--> text\n", r"must stand alone"),
            ("<!-- test: raises KeyError -->\n", r"must stand before a python block"),
            ("<!-- test: raises KeyError -->\n\n```text\n```\n", r"must stand before a python block"),
            ('```json\n{"a": 1,}\n```\n', r"^page\.md:2: not JSON"),
            ("```toml\na = \n```\n", r"^page\.md:2: not TOML"),
            ("````markdown\n```pyhton\n```\n````\n", r"^page\.md:3: no rule .* 'pyhton'"),
        ],
    )
    def test_nothing_goes_unchecked(self, page: Path, text: str, reason: str) -> None:
        """An unknown language, code out of the parser's sight and broken data are errors."""
        with pytest.raises(DocumentError, match=reason):
            self.check(page, text)

    @pytest.mark.parametrize(
        "command",
        [
            "make test",
            'make test ARGS="-k codec"',
            "git clone https://example.org/project.git && cd project && make demo",
            "pip install restate-steps",
            "pip install -U 'restate-steps[agents,server]>=0.1'",
            "python -m pip install -e '.[testing]'",
            "uv pip install -r pyproject.toml",
            "uv add restate-steps",
            "python tests/support/documents.py",
            "python3 -m venv .venv",
            "OPENAI_API_KEY=key make demo  # with a real model",
            "export OPENAI_API_KEY=key",
            "make \\\n    lint",
        ],
    )
    def test_command_lines_that_are_right(self, page: Path, command: str) -> None:
        """Commands that reach something pass."""
        self.check(page, f"```bash\n# A comment.\n\n{command}\n```\n")

    @pytest.mark.parametrize(
        ("command", "reason"),
        [
            ("make tset", "no target 'tset'"),
            ("pip install restate-steps[agnets]", "no extra agnets"),
            ("pip install '.[agnets]'", "no extra agnets"),
            ("pip install 'restate-steps>>1'", "is no requirement"),
            ("pip install -r requirements.txt", "no file 'requirements.txt'"),
            ("python examples/missing.py", "no file examples/missing.py"),
            ("python -m missing_module", "no module missing_module"),
            ("make test | tee log", r"no rule for '\|'"),
            ("make test > log", "no rule for '>'"),
            ("rm -rf /", "no rule says how to check 'rm'"),
            ("echo 'open", "without an end"),
            ("curl localhost:8080/greet", "says nothing about http://localhost:8080/greet"),
            ("curl --frobnicate localhost:8080", "frobnicate"),
        ],
    )
    def test_command_lines_that_are_wrong(self, page: Path, command: str, reason: str) -> None:
        """A command that reaches nothing, or that no rule covers, is reported with its line."""
        with pytest.raises(DocumentError, match=rf"^page\.md:3: .*{reason}"):
            self.check(page, f"```console\n$ make help\n$ {command}\n```\n")

    def test_verbs_of_the_command_line_are_parsed(self, page: Path) -> None:
        """`restate-steps` is checked by its own parser."""
        self.check(page, "```console\n$ restate-steps --help\n```\n")

        with pytest.raises(DocumentError, match=r"page\.md:2: .*no-such-verb"):
            self.check(page, "```console\n$ restate-steps no-such-verb\n```\n")

    def test_console_blocks_tell_commands_from_output(self) -> None:
        """Only lines after a prompt are commands; a command may go on over lines, and knows its output."""
        code = "$ curl x -d '{\n>   \"a\": 1}'\nanswer\n\nmore\n$ make \\\n> test\n"

        found = list(commands(Block(Path("page.md"), 10, "console", code)))

        assert [(10, "curl x -d '{\n  \"a\": 1}'"), (15, "make \\\ntest")] == [(c.line, c.text) for c in found]
        assert [["answer", "", "more"], []] == [c.output for c in found]

    def test_console_block_without_a_prompt(self, page: Path) -> None:
        """A forgotten prompt would make a command into output, unseen."""
        with pytest.raises(DocumentError, match=r"page\.md:2: a console block begins with a command"):
            self.check(page, "```console\nmake tset\n```\n")


class TestCurl:
    """Requests of the pages are really sent."""

    @pytest.fixture
    def url(self) -> Iterator[str]:
        """The address of a server that tells what it was asked."""

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0))).decode()
                answer = {"method": self.command, "path": self.path, "body": body}
                self.send_response(404 if self.path == "/missing" else 200)
                self.end_headers()
                self.wfile.write(json.dumps(answer).encode())

            do_GET = do_POST

            def log_message(self, *args: object) -> None:
                pass

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            yield f"http://127.0.0.1:{server.server_port}"
            server.shutdown()
            thread.join()

    def check(self, tmp_path: Path, url: str, console: str) -> None:
        page = tmp_path / "page.md"
        page.write_text(f"```console\n{console}\n```\n")
        run(page, test_urls={"http://localhost:8080": url})

    @pytest.mark.parametrize(
        "console",
        [
            "$ curl localhost:8080/a",
            '$ curl localhost:8080/a\n{"body": "", "path": "/a", "method": "GET"}',
            '$ curl -fsS http://localhost:8080/a --json \'{"x": 1}\'\n{"method": "POST", "path": "/a", "body": …}',
            "$ curl -X POST http://localhost:8080/a -H 'content-type: application/json' -d '1'",
        ],
    )
    def test_right(self, tmp_path: Path, url: str, console: str) -> None:
        """The answer is what the page shows, up to the order of keys and to ellipses."""
        self.check(tmp_path, url, console)

    @pytest.mark.parametrize(
        ("console", "reason"),
        [
            ('$ curl localhost:8080/a\n{"path": "/b"}', "the page shows .* and the answer is"),
            ("$ curl localhost:8080/missing", "the server answers 404"),
            ("$ curl localhost:8080/a --json '{'", "Expecting property name"),
            ("$ curl localhost:80801/a", "says nothing about"),
        ],
    )
    def test_wrong(self, tmp_path: Path, url: str, console: str, reason: str) -> None:
        """Another answer, an error and a broken body fail the page."""
        with pytest.raises(DocumentError, match=rf"^page\.md:2: .*{reason}"):
            self.check(tmp_path, url, console)
