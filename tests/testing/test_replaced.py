"""What a test replaces is missing in another interpreter; that is not the handler's fault, and not "memory"."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import restate

import restate_steps
from restate_steps.testing import DeterminismReport, Simulator, check_deterministic
from tests.testing import replaced, replaced_too


class FakeBank:
    def account(self) -> str:
        return "no account"


def seven() -> int:
    return 7


def replaces_a_client(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(replaced, "bank", FakeBank())


def replaces_a_client_of_the_same_class(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(replaced, "bank", replaced.Bank("test.example"))


def replaces_a_method_of_the_class(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(replaced.Bank, "account", lambda self: "no account")


def replaces_a_method_of_the_object(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(replaced.bank, "account", lambda: "no account")


def replaces_an_attribute_of_the_object(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(replaced.bank, "url", "test.example")


def replaces_a_function(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(replaced, "discount", seven)


def replaces_a_source_of_ids(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(replaced, "new_id", lambda: "id 1")


def replaces_a_setting(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(replaced, "rate", 2)


def replaces_an_item(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(replaced.prices, "tea", 5)


PATCHES = [
    (replaces_a_client, replaced.asks_the_bank),
    (replaces_a_client_of_the_same_class, replaced.asks_the_bank),
    (replaces_a_method_of_the_class, replaced.asks_the_bank),
    (replaces_a_method_of_the_object, replaced.asks_the_bank),
    (replaces_an_attribute_of_the_object, replaced.asks_the_bank),
    (replaces_a_function, replaced.calls_a_function),
    (replaces_a_source_of_ids, replaced.makes_an_id),
    (replaces_a_setting, replaced.has_a_setting),
    (replaces_an_item, replaced.looks_up),
]


def is_skipped(report: DeterminismReport) -> None:
    """Check that nothing was found, and that the report says why another interpreter could tell nothing."""
    assert [] == report.findings, str(report)
    [reason] = report.not_checked
    assert reason.startswith("memory: a new interpreter diverges (")
    assert "Most often the test has replaced something" in reason


@pytest.mark.parametrize(("replaces", "handler"), PATCHES, ids=[replaces.__name__ for replaces, _ in PATCHES])
def test_monkeypatch(
    replaces: Callable[[pytest.MonkeyPatch], None], handler: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A patch of the test is not in a new interpreter."""
    replaces(monkeypatch)
    is_skipped(check_deterministic(handler, interpreters=2))


def test_nothing_is_replaced() -> None:
    """Without the patches the same handlers are checked in full."""
    handlers = {handler for _, handler in PATCHES if handler is not replaced.makes_an_id}
    for handler in sorted(handlers, key=lambda each: each.__name__):
        report = check_deterministic(handler, interpreters=2)
        assert ([], []) == (report.findings, report.not_checked), str(report)


def test_mocks() -> None:
    """`unittest.mock` replaces in the same way."""
    with mock.patch.object(replaced, "bank") as bank:
        bank.account.return_value = "no account"
        is_skipped(check_deterministic(replaced.asks_the_bank, interpreters=2))
    with mock.patch(f"{replaced.__name__}.discount", return_value=7):
        is_skipped(check_deterministic(replaced.calls_a_function, interpreters=2))
    with mock.patch.dict(replaced.prices, tea=5):
        is_skipped(check_deterministic(replaced.looks_up, interpreters=2))


def test_plain_assignment() -> None:
    """A test may do without either."""
    before = replaced.rate
    try:
        replaced.rate = 3
        is_skipped(check_deterministic(replaced.has_a_setting, interpreters=2))
    finally:
        replaced.rate = before


def test_a_context_variable() -> None:
    """The caller's context is not in a new interpreter."""
    token = replaced.tenant.set("test")
    try:
        is_skipped(check_deterministic(replaced.knows_the_tenant, interpreters=2))
    finally:
        replaced.tenant.reset(token)


def test_arguments_of_a_factory() -> None:
    """A module has a service of the same factory, made with another argument."""
    service, handler = replaced.make(rate=2)
    is_skipped(check_deterministic(handler, app=restate_steps.app([service]), interpreters=2))
    report = check_deterministic(replaced.made_handler, interpreters=2)
    assert ([], []) == (report.findings, report.not_checked), str(report)


# --- what other interpreters take over --------------------------------------------------------------------------


def test_the_environment_and_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """They are those of this process, also in interpreters that were started before."""
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        monkeypatch.chdir(folder)
        monkeypatch.setenv("HOME", str(folder))
        report = check_deterministic(replaced.knows_the_environment, interpreters=2)
        assert ([], []) == (report.findings, report.not_checked), str(report)


SHOP = """
import restate
import restate_steps

shop = restate.Service("Shop")


@shop.handler()
async def buy(ctx: restate.Context) -> None:
    await ctx.run_typed("{step}", lambda: 1)


app = restate_steps.app([shop])
"""


def test_modules_of_the_same_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two tests may each have a module `shop` in a folder of its own, on the path for as long as the test lasts."""
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "shop_of_a_test.py").write_text(SHOP.format(step=name))
        with monkeypatch.context() as patch:
            patch.syspath_prepend(folder)
            patch.delitem(sys.modules, "shop_of_a_test", raising=False)
            module = __import__("shop_of_a_test")
            report = check_deterministic(module.buy, app=module.app, interpreters=2)
        sys.modules.pop("shop_of_a_test", None)
        assert [name] == report.journal.names
        assert ([], []) == (report.findings, report.not_checked), str(report)


# --- services of the same name ----------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [replaced, replaced_too], ids=["replaced", "replaced_too"])
def test_services_of_the_same_name(module: Any) -> None:
    """Another interpreter takes the module that has the same handler, also if only the application is known."""

    async def scenario(sim: Simulator) -> None:
        await (await sim.send("SameName/run")).result()

    app = restate_steps.app([module.same_name])
    for report in (
        check_deterministic("SameName/run", app=app, interpreters=2),
        check_deterministic(app=app, scenario=scenario, interpreters=2),
    ):
        assert ([], []) == (report.findings, report.not_checked), str(report)


def test_a_service_of_a_function_and_one_of_a_module() -> None:
    """The module's service is another one, and the report says so."""
    service = restate.Service("SameName")

    @service.handler("run")
    async def run(ctx: restate.Context) -> None:
        await ctx.run_typed("in a function", lambda: 1)

    report = check_deterministic(run, app=restate_steps.app([service]), interpreters=2)
    assert [] == report.findings
    [reason] = report.not_checked
    assert "has the same handler (not in " in reason
    assert "replaced" in reason
