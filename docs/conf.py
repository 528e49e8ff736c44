"""How Sphinx builds the documentation; `make docs` treats every warning as an error."""

from __future__ import annotations

import importlib
import pydoc
import sys
import tomllib
from pathlib import Path
from typing import Any

from sphinx.pycode import ModuleAnalyzer

_PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]

project = "restate-steps"
author = "restate_steps contributors"
copyright = f"2026, {author}"
release = version = _PROJECT["version"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "restate-steps"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4

autodoc_default_options = {"members": True}
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 100


def _locate(name: str, module: str | None) -> Any:
    """The object that a reference names: by its full name, or as a module of this package would know it."""
    head, _, rest = name.partition(".")
    for known in (module, *sorted(sys.modules)):
        if known is not None and known.split(".")[0] == "restate_steps" and known in sys.modules:
            found = getattr(sys.modules[known], head, None)
            for part in rest.split(".") if rest else ():
                found = getattr(found, part, None)
            if found is not None:
                return found
    return pydoc.locate(name)


def _resolve(app: Any, env: Any, node: Any, contnode: Any) -> Any:
    """Resolve what Sphinx cannot, without a network.

    A type is documented under the name one imports it by, and annotations name the module that defines it: lead
    the second to the first. A name of another package is right when there is such an object; it stays plain text.
    What remains is a mistake, and Sphinx reports it.
    """
    if node.get("refdomain") != "py":
        return None
    # The annotation `P.args` is shown, and looked for, as "~P".
    found = _locate(node["reftarget"].rpartition("~")[2], node.get("py:module"))
    if found is None:
        # Part of a type whose brackets Sphinx has cut apart, such as "dict[str".
        return contnode if "[" in node["reftarget"] else None
    home = getattr(found, "__module__", None) or ""
    name = getattr(found, "__qualname__", None) or getattr(found, "__name__", "")
    if home.split(".")[0] != "restate_steps" or type(found).__module__ in ("typing", "typing_extensions"):
        return contnode
    package = importlib.import_module("restate_steps")
    for public in dict.fromkeys((f"restate_steps.{name}", f"{home.partition('._')[0]}.{name}", f"{home}.{name}")):
        top = public.removeprefix("restate_steps.").split(".")[0]
        if public.count(".") > 1 or top in package.__all__:
            domain = env.get_domain("py")
            link = domain.resolve_any_xref(env, node["refdoc"], app.builder, public, node, contnode)
            if link:
                return link[0][1]
    return None


def _show_fences(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Turn the fences that docstrings have, for readers in an editor, into blocks that Sphinx knows."""
    indent: str | None = None
    shown: list[str] = []
    for line in lines:
        if line.strip().startswith("```"):
            indent = line[: len(line) - len(line.lstrip())] if indent is None else None
            shown += [f"{indent}.. code-block:: {line.strip().removeprefix('```')}", ""] if indent is not None else [""]
        else:
            shown.append(line if indent is None or not line else f"   {line}")
    lines[:] = shown


def _keep_prose(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Keep what follows "Returns:" as text: napoleon takes what stands before a colon for a type."""
    for index, line in enumerate(lines[:-1]):
        if line.strip() == "Returns:":
            lines[index] = ""
            lines[index + 1] = f"{line[: len(line) - len(line.lstrip())]}:returns: {lines[index + 1].strip()}"


def _describe_data(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Show what stands below a constant where it is defined, instead of the docstring of its class."""
    if what == "data":
        for module in sorted(known for known in sys.modules if known.partition(".")[0] == "restate_steps"):
            found = ModuleAnalyzer.for_module(module).find_attr_docs().get(("", name.rpartition(".")[2]))
            if found:
                lines[:] = found
                return


_NOT_CALLED = (
    "AsCompleted",
    "Codec",
    "DurableStep",
    "ServerEnvironment",
    "SimulatedInvocation",
    "Simulator",
    "TypedSerde",
)


def _hide_constructors(app: Any, what: str, name: str, *rest: Any) -> tuple[str, None] | None:
    """Show no parameters of classes that one does not make by calling them."""
    return ("", None) if name.rpartition(".")[2] in _NOT_CALLED else None


def setup(app: Any) -> None:
    """Connect the resolver, and what changes docstrings before and after napoleon reads the sections, at 500."""
    importlib.import_module("restate_steps")
    app.connect("autodoc-process-docstring", _show_fences, priority=400)
    app.connect("autodoc-process-docstring", _keep_prose, priority=400)
    app.connect("autodoc-process-docstring", _describe_data, priority=600)
    app.connect("autodoc-process-signature", _hide_constructors)
    app.connect("missing-reference", _resolve)
