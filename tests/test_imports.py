"""Imports go one way: errors <- _wire <- protocol <- session <- {client, aio} <- vicibridge."""

from __future__ import annotations

import ast
import sys
from importlib.util import find_spec, resolve_name
from pathlib import Path

import pytest

LAYER = {"errors": 0, "_wire": 1, "protocol": 2, "methods": 2, "session": 3, "connection": 3, "client": 4, "aio": 4}
ALLOWED = {
    "keys": {"cryptography"},
    "pytest_plugin": {"pytest"},
    "session": {"typing_extensions"},
}
PACKAGES = ["", "follow", "testing"]


def modules() -> dict[str, Path]:
    spec = find_spec("vicifast")
    assert spec and spec.submodule_search_locations
    root = Path(spec.submodule_search_locations[0])
    paths = [path for package in PACKAGES for path in (root / package).glob("*.py")]
    return {".".join(path.relative_to(root).with_suffix("").parts): path for path in paths}


def imported(module: str, path: Path) -> set[str]:
    """Full names of every module, or name in a module, that a file of the package imports anywhere."""
    package, found = f"vicifast.{module}".rpartition(".")[0], set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            source = resolve_name("." * node.level + (node.module or ""), package)
            found |= {source, *(f"{source}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_go_one_way(module: str) -> None:
    names = imported(module, modules()[module])
    outside = {name.split(".")[0] for name in names} - {"vicifast", *sys.stdlib_module_names}
    assert outside <= ALLOWED.get(module, set())
    if module in LAYER:
        inside = {name.split(".")[1] for name in names if name.startswith("vicifast.")}
        assert all(LAYER[other] < LAYER[module] for other in inside & LAYER.keys())
    assert {"vicifast.client", "vicifast.aio"} - names or module == "__init__"
    if module == "protocol":
        assert not {name.split(".")[0] for name in names} & {"asyncio", "selectors", "socket", "ssl"}
