"""Converts docstrings, plain prose with code in single backticks, to reStructuredText for Sphinx."""

from __future__ import annotations

import ast
import dataclasses
import itertools
import re
import textwrap
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxRole

import vicifast

STUB = Path(vicifast.__file__).with_name("_wire.pyi")

HOMES = ("vicifast", "vicifast.errors", "vicifast.results", "vicifast.methods.Commands", "vicibridge.client")
MADE_BY_SESSIONS = {"Stream", "Listener", "BusSession", "Everyone", "Answers", "Events"}

_CODE = re.compile(r"(`[^`]*`)")
_MARKUP = re.compile(r"[*|]|(?<=\w)_(?!\w)")
_NAME = re.compile(r"[A-Za-z_][\w.]*(\(\))?")
_BULLET = re.compile(r"\s*[-*] ")


class Code(SphinxRole):
    """Code in backticks; a link if it is a documented name."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        code = nodes.literal(self.rawtext, self.text, classes=["code"])
        if not _NAME.fullmatch(self.text):
            return [code], []
        target = self.text.removesuffix("()")
        link = addnodes.pending_xref("", code, refdomain="py", reftype="obj", reftarget=target, refexplicit=True)
        link["may_be_code"] = True
        for context in ("py:module", "py:class"):
            link[context] = self.env.ref_context.get(context)
        self.set_source_info(link)
        return [link], []


def find(app: Sphinx, env: Any, link: addnodes.pending_xref, content: nodes.Element) -> nodes.Node | None:
    """Resolve names without a module or with that of the extension; an unknown name in prose is code, not an error."""
    python = env.domains.python_domain
    name = link.get("reftarget", "").removeprefix("vicifast._wire.")
    shell = "vicifast.aio" if link.get("py:class") == "AsyncSession" else "vicifast.blocking"
    for module in (*HOMES, shell):
        found = python.objects.get(f"{module}.{name}")
        if found is not None and found.objtype != "module":
            target = f"{module}.{name}"
            return python.resolve_xref(env, link["refdoc"], app.builder, "obj", target, link, content)  # type: ignore[no-any-return]
    # Signatures have names from any module, and no role.
    return content if link.get("may_be_code") or "refwarn" not in link else None


def read_prose(app: Sphinx, what: str, name: str, item: object, options: object, lines: list[str]) -> None:
    """Escape characters of markup in a docstring, and mark indented blocks as code."""
    if what == "class" and dataclasses.is_dataclass(item):
        lines += _fields(item)
    prose: list[str] = []
    in_code = False
    for number, line in enumerate(lines):
        indented = line.startswith("    ")
        if indented and not in_code and prose and not prose[-1] and not _last_is_bullet(prose):
            prose += [f".. code-block:: {_language(lines[number:])}", ""]
            in_code = True
        in_code = in_code and (indented or not line)
        prose.append(line if in_code else _escape(line))
    lines[:] = prose


def skip(app: Sphinx, what: str, name: str, item: object, skipped: bool, options: object) -> bool | None:
    """Omit the fields of named tuples: the signature has them, with their types."""
    return True if (item.__doc__ or "").startswith("Alias for field number") else None


def _fields(kind: Any) -> list[str]:
    """Return the fields of a dataclass, grouped by type."""
    by_type: dict[str, list[str]] = {}
    for item in dataclasses.fields(kind):
        name = str(item.type).removesuffix(" | None")
        by_type.setdefault({"SectionName": "str", "Extra": "dict[str, Any]"}.get(name, name), []).append(
            f"`{item.name}`"
        )
    return ["", *(text for kind, names in by_type.items() for text in (f"* {kind}: {', '.join(names)}",))]


def _language(rest: list[str]) -> str:
    """Return the language of an indented block at the beginning: Python or text."""
    block = itertools.takewhile(lambda line: not line or line.startswith("    "), rest)
    try:
        ast.parse(textwrap.dedent("\n".join(block)), feature_version=(3, 11))
    except SyntaxError:
        return "text"
    return "python"


def _last_is_bullet(prose: list[str]) -> bool:
    return bool(_BULLET.match(next((line for line in reversed(prose) if line), "")))


def _escape(line: str) -> str:
    bullet = _BULLET.match(line)
    if bullet:
        return bullet[0] + _escape(line[bullet.end() :])
    parts = _CODE.split(line)
    return "".join(part if part.startswith("`") else _MARKUP.sub(r"\\\g<0>", part) for part in parts)


def stub_signature(
    app: Sphinx, what: str, name: str, item: object, options: object, signature: str | None, returns: str | None
) -> tuple[str, str | None] | None:
    """Return signatures of the extension module from its stub, which has the types; none for dataclasses."""
    if what == "class" and dataclasses.is_dataclass(item):
        return "", None
    if what == "class" and name.rpartition(".")[2] in MADE_BY_SESSIONS:
        return "", None
    if getattr(item, "__module__", None) == "vicifast._wire" or name.startswith("vicifast._wire"):
        return _stub_signatures().get(name.removeprefix("vicifast._wire.").removeprefix("vicifast."))
    owner = getattr(getattr(item, "__objclass__", None), "__module__", None)
    if owner == "vicifast._wire":
        return _stub_signatures().get(name.removeprefix("vicifast."))
    return None


def _stub_signatures() -> dict[str, tuple[str, str | None]]:
    found = {}
    for node in ast.parse(STUB.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = _signature(node, 0)
        elif isinstance(node, ast.ClassDef):
            for member in node.body:
                if isinstance(member, ast.FunctionDef):
                    name = node.name if member.name == "__init__" else f"{node.name}.{member.name}"
                    found[name] = _signature(member, 1)
    return found


def _signature(function: ast.FunctionDef, skip: int) -> tuple[str, str | None]:
    function.args.args = function.args.args[skip:]
    returns = ast.unparse(function.returns) if function.returns and function.name != "__init__" else None
    return f"({ast.unparse(function.args)})", returns


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_role("plain", Code())
    app.connect("autodoc-process-docstring", read_prose)
    app.connect("autodoc-skip-member", skip)
    app.connect("autodoc-process-signature", stub_signature)
    app.connect("missing-reference", find)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
