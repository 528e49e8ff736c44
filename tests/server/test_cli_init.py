"""``restate-steps init``: the project that it writes runs, passes its tests, and pleases the checkers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import httpx
import pytest
from packaging.requirements import Requirement

from restate_steps.cli import main
from restate_steps.server._ports import free_ports
from tests.support import ROOT
from tests.support.commands import Run

FILES = {"README.md", "app.py", "pyproject.toml", "test_app.py"}


@pytest.fixture(params=["service", "agent"])
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A new project of each kind."""
    folder = tmp_path / "my-project"
    assert 0 == main(["init", str(folder), *(["--agent"] if request.param == "agent" else [])])
    return folder


def check(folder: Path, *words: str, **variables: str) -> str:
    """Run a tool on a project, which must succeed."""
    environment = {name: value for name, value in os.environ.items() if name != "OPENAI_API_KEY"}
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_its_files(project: Path) -> None:
    """The names in the files are those of the project, and its dependencies have the extras that it needs."""
    assert FILES == {path.name for path in project.iterdir()}
    assert (project / "README.md").read_text().startswith("# my-project\n")
    written = tomllib.loads((project / "pyproject.toml").read_text())
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "my-project" == written["project"]["name"]
    [ours, *_] = map(Requirement, written["project"]["dependencies"])
    [testing] = map(Requirement, written["dependency-groups"]["dev"])
    assert ours.name == testing.name == known["name"]
    assert ours.extras | testing.extras <= set(known["optional-dependencies"])


@pytest.mark.parametrize("key", [{}, {"OPENAI_API_KEY": "not-a-key"}], ids=["without a key", "with a key"])
def test_its_tests_pass(project: Path, key: dict[str, str]) -> None:
    """They need neither a server nor a model, even if a key is set."""
    check(project, "pytest", "-q", "-p", "no:cacheprovider", **key)


def test_style_and_types(project: Path) -> None:
    """Ruff and strict pyright have nothing to say, with ruff's own line length, which the project has."""
    style = ["--no-cache", "--config", str(ROOT / "pyproject.toml"), "--config", "line-length = 88"]
    check(project, "ruff", "check", *style, "--ignore", "D", ".")
    check(project, "ruff", "format", "--no-cache", "--isolated", "--check", ".")
    (project / "pyrightconfig.json").write_text(json.dumps({"typeCheckingMode": "strict"}))
    check(project, "pyright", "--pythonpath", sys.executable)


def test_dev_runs_it(project: Path, run: Run) -> None:
    """The command in its README serves it, and the request in its README gets an answer."""
    names = ("--ingress-port", "--admin-port", "--port")
    ports = [part for name, port in zip(names, free_ports(3), strict=True) for part in (name, str(port))]
    data = ["--base-dir", str(project / "data")]
    dev = run("dev", str(project / "app.py"), *ports, *data, env={"OPENAI_API_KEY": ""})
    dev.wait_for(r"serving \w+")
    ingress = dev.wait_for(r"ingress +(http\S+)\n")[1]
    [request] = [line for line in (project / "README.md").read_text().splitlines() if line.startswith("$ curl")]
    path, body = request.removeprefix("$ curl localhost:8080").split(" --json ")

    answer = httpx.post(ingress + path, json=json.loads(body.strip("'")), timeout=60, trust_env=False)

    assert answer.is_success, answer.text
    assert "sunny" in answer.text or {"order_id": "o1", "paid": "9.50"} == answer.json()
    dev.end()


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """If one of its files exists, none is written."""
    (tmp_path / "app.py").write_text("mine")

    assert 2 == main(["init", str(tmp_path)])

    assert f"error: {tmp_path} already has app.py. Choose another folder." in capsys.readouterr().err
    assert ["app.py"] == [path.name for path in tmp_path.iterdir()]
    assert "mine" == (tmp_path / "app.py").read_text()


def test_a_link_to_nothing_exists(tmp_path: Path) -> None:
    """No file is written before one that cannot be."""
    (tmp_path / "test_app.py").symlink_to("nowhere")

    assert 2 == main(["init", str(tmp_path)])

    assert ["test_app.py"] == [path.name for path in tmp_path.iterdir()]


def test_the_commands_can_be_pasted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The folder in them is quoted for a shell."""
    folder = tmp_path / "it's mine" / "shop"
    assert 0 == main(["init", str(folder)])
    [there] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("test it: ")]

    command = there.removeprefix("test it: ").removesuffix("pytest") + "pwd -P"

    assert f"{folder.resolve()}\n" == subprocess.check_output(["/bin/sh", "-c", command], text=True)


def test_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a name, the files are written here, and the commands need no other folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)

    assert 0 == main(["init"])

    assert FILES == {path.name for path in folder.iterdir()}
    assert capsys.readouterr().out.endswith("run it:  restate-steps dev app.py\ntest it: pytest\n")
