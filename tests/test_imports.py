"""Imports go one way, in the library and in the bridge, without circles; ARCHITECTURE.md has the same tables."""

from __future__ import annotations

import ast
import asyncio
import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from importlib.util import find_spec, resolve_name
from pathlib import Path

import pytest

from vicifast.testing import FakeCharon

# What each part may import: parts of a lower rank only. A part is a module or package directly below the root.
RANKS = {
    "vicifast": (
        {"errors", "commands", "standard_output", "version"},
        {"_wire"},
        {"address", "methods", "protocol", "results"},
        {"session", "_blocking_connection", "_aio_connection", "recording", "swanctl"},
        {"blocking", "aio", "compat", "testing"},
        {"follow", "pytest_plugin"},
        {"cli"},
        {"__main__"},
    ),
    "vicibridge": (
        {"contract"},
        {"config"},
        {"bus"},
        {"events", "mirror", "client"},
        {"commands", "ops", "console"},
        {"gateway"},
        {"service"},
        {"demo"},
        {"cli"},
        {"__main__"},
    ),
}
# What a part may import of its own package, where that is less than all of the lower ranks.
ONLY = {"vicibridge.client": {"bus", "contract"}}
# Third-party packages that a part of the library may import; the command line and the bridge may import any.
OUTSIDE = {
    "pytest_plugin": {"pytest"},
    "session": {"typing_extensions"},
    "swanctl": {"cryptography"},
}


def modules(package: str) -> dict[str, Path]:
    """Return every module of an installed package by its name within it; a package within is named without __init__."""
    spec = find_spec(package)
    if spec is None:
        pytest.skip(f"{package} is not installed")
    assert spec.submodule_search_locations
    root = Path(spec.submodule_search_locations[0])
    found = {".".join(path.relative_to(root).with_suffix("").parts): path for path in root.rglob("*.py")}
    return {name.removesuffix(".__init__") if name != "__init__" else "": path for name, path in found.items()}


def parsed(path: Path) -> ast.Module:
    # CPython 3.11 fails with a SystemError when the garbage collector runs code that parses too, such as pytest's.
    gc.disable()
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    finally:
        gc.enable()


def imported(package: str, module: str, path: Path) -> Iterator[str]:
    """Yield the full name of every module, or name in a module, that a file imports anywhere."""
    full = f"{package}.{module}".rstrip(".")
    parent = full if path.name == "__init__.py" else full.rpartition(".")[0]
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = resolve_name("." * node.level + (node.module or ""), parent) if node.level else str(node.module)
            yield from (f"{source}.{alias.name}" for alias in node.names)


def graph(package: str) -> dict[str, set[str]]:
    """Return which modules of a package each of its modules imports."""
    known = modules(package)
    edges: dict[str, set[str]] = {}
    for module, path in known.items():
        names = {
            name.removeprefix(f"{package}.") for name in imported(package, module, path) if name.startswith(package)
        }
        longest = {next((n for n in (name, name.rpartition(".")[0]) if n in known), "") for name in names}
        edges[module] = longest - {module, ""}
    return edges


@pytest.mark.parametrize("package", RANKS)
def test_parts_import_lower_ranks_only(package: str) -> None:
    ranks = {part: rank for rank, parts in enumerate(RANKS[package]) for part in parts}
    edges = graph(package)
    assert {module.partition(".")[0] for module in edges} - {""} <= ranks.keys()
    upward = [
        f"{module} imports {other}"
        for module, others in edges.items()
        for other in others
        if module
        and (mine := module.partition(".")[0]) != (theirs := other.partition(".")[0])
        and ranks[theirs] >= ranks[mine]
    ]
    assert upward == []


@pytest.mark.parametrize("limited", ONLY)
def test_part_imports_no_more_than_it_may(limited: str) -> None:
    package, _, part = limited.rpartition(".")
    found = {
        other.partition(".")[0]
        for module, others in graph(package).items()
        for other in others
        if module.partition(".")[0] == part
    }
    assert found - {part} <= ONLY[limited]


@pytest.mark.parametrize("package", RANKS)
def test_no_circle(package: str) -> None:
    # A package imports its own modules to offer their names, and its modules do not import it back.
    try:
        TopologicalSorter(graph(package)).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_library_has_no_dependencies() -> None:
    for module, path in modules("vicifast").items():
        part = module.partition(".")[0]
        if part in ("cli", "__main__"):
            continue
        outside = {name.partition(".")[0] for name in imported("vicifast", module, path)}
        assert outside - {"vicifast", *sys.stdlib_module_names} <= OUTSIDE.get(part, set()), module


def test_protocol_does_no_input_or_output() -> None:
    names = {name.partition(".")[0] for name in imported("vicifast", "protocol", modules("vicifast")["protocol"])}
    assert not names & {"asyncio", "selectors", "socket", "ssl"}


def test_each_client_loads_only_itself() -> None:
    program = "import sys, vicifast; vicifast.{}; print(*sys.modules)"
    for session, other in (("Session", "vicifast.aio"), ("AsyncSession", "vicifast.blocking")):
        done = subprocess.run(
            [sys.executable, "-c", program.format(session)], capture_output=True, text=True, check=True
        )
        assert other not in done.stdout.split()


SLOW = {  # packages that take long to import, or import such a package
    *("aiohttp", "asyncio", "cryptography", "email", "importlib.metadata", "msgpack", "nacl", "nats", "nkeys"),
    *("prometheus_client", "pydantic", "pydantic_settings", "rich", "ssl", "vicifast.results", "vicifast.swanctl"),
}


def loaded(program: str, *arguments: object) -> set[str]:
    """Run a command line in a separate process, and return which packages of `SLOW` it has loaded at its end."""
    code = (
        "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr)); "
        "from runpy import run_module; run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("NATS_", "VICIBRIDGE_"))}
    done = subprocess.run(
        [sys.executable, "-c", code, program, *map(str, arguments)], capture_output=True, text=True, env=clean
    )
    return SLOW & set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize(
    ("arguments", "uses"),
    [
        ("--help", ""),
        ("-h", ""),
        ("--version", ""),
        *((f"{name} --help", "") for name in "call certs conns counters events initiate load log policies".split()),
        *((f"{name} --help", "") for name in "pools rekey sas stats terminate unload".split()),
        *((f"{name} --help", "asyncio rich ssl vicifast.results") for name in ("record", "replay")),
        ("nothing", ""),
        ("sas --uri /nowhere", ""),
        ("events --uri /nowhere", ""),
    ],
)
def test_vicifast_loads_only_what_it_uses(arguments: str, uses: str) -> None:
    pytest.importorskip("click", reason="needs the cli extra")
    assert loaded("vicifast", *arguments.split()) <= set(uses.split())


@pytest.mark.parametrize(
    ("arguments", "uses"),
    [
        ("sas", "rich vicifast.results"),
        ("sas --json", ""),
        ("stats", "rich"),
        ("call version", ""),
        ("call list-sas --raw", ""),
        ("unload conn x", ""),
        ("rekey --ike x", ""),
    ],
)
def test_vicifast_with_a_daemon_loads_only_what_it_uses(arguments: str, uses: str) -> None:
    pytest.importorskip("click", reason="needs the cli extra")

    async def scenario() -> None:
        async with FakeCharon() as charon:
            for command in ("stats", "version", "unload-conn", "rekey"):
                charon.on(command, {"success": "yes"})
            charon.on("list-sas", {}, stream=[("list-sa", {"gw": {"uniqueid": "1"}})])
            found = await asyncio.to_thread(loaded, "vicifast", *arguments.split(), "--uri", charon.address)
            assert charon.requests and found <= set(uses.split())

    asyncio.run(scenario())


_NATS = "asyncio email importlib.metadata nats ssl"


@pytest.mark.parametrize(
    ("arguments", "uses"),
    [
        ("--help", ""),
        *((f"{name} --help", "") for name in "call check demo nodes run sas schema tail top".split()),
        ("nothing", ""),
        ("schema --list", "email importlib.metadata msgpack pydantic vicifast.results"),
        ("check", "asyncio email importlib.metadata pydantic pydantic_settings ssl"),
        *((f"{name} --server nats://127.0.0.1:1", f"{_NATS} msgpack") for name in ("nodes", "sas", "tail")),
    ],
)
def test_vicibridge_loads_only_what_it_uses(arguments: str, uses: str) -> None:
    pytest.importorskip("nats", reason="needs the bridge extra")
    assert loaded("vicibridge", *arguments.split()) <= set(uses.split())


@pytest.mark.parametrize("package", ["vicifast", "vicibridge"])
def test_command_lists_match_the_help_texts(package: str) -> None:
    pytest.importorskip("nats" if package == "vicibridge" else "click", reason="needs the extra")
    cli = import_module(f"{package}.cli")
    group = cli.main if package == "vicifast" else cli.cli
    for name, listed in group.commands.items():
        for width in (20, 40, 1000):
            assert listed.get_short_help_str(width) == group.load(name).get_short_help_str(width), name


def test_client_of_the_bus_loads_no_server() -> None:
    program = "import sys, vicibridge.client; print(*sys.modules)"
    pytest.importorskip("nats", reason="needs the bridge extra")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = {name for name in done.stdout.split() if name.startswith(("vicibridge.", "pydantic", "prometheus"))}
    assert {name.split(".")[1] for name in loaded if name.startswith("vicibridge.")} == {"bus", "client", "contract"}
    assert not {name.partition(".")[0] for name in loaded} - {"vicibridge"}
