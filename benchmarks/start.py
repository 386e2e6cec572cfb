"""CPU time of whole commands, over that of an interpreter that imports nothing."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from vicifast.testing import BlockingFakeCharon

from .imports import children
from .measure import Settings, Table, interleave
from .revision import python_of

# The arguments of a program, and its exit code. vicifast lists three SAs; no nats-server listens.
COMMANDS = {"--version": 0, "--help": 0, "sas --help": 0, "sas --json": 0, "sas": 0}
FLEET = {"--help": 0, "nodes --help": 0, "tail --help": 0, "nodes": 3}
_SAS = [("list-sa", {f"site-{n}": {"uniqueid": str(n), "state": "ESTABLISHED"}}) for n in range(3)]


def tables(settings: Settings) -> Iterator[Table]:
    pythons = {"": Path(sys.executable)}
    if settings.against:
        settings.report(f"building {settings.against}")
        pythons[f" of {settings.against}"] = python_of(settings.against)
    with BlockingFakeCharon() as charon:
        charon.on("list-sas", {}, stream=_SAS)
        yield _table(settings, "vicifast", COMMANDS, ["--uri", charon.address], pythons)
    if importlib.util.find_spec("vicibridge") and importlib.util.find_spec("nats"):
        yield _table(settings, "vicibridge", FLEET, ["--server", "nats://127.0.0.1:1"], pythons)


def _table(
    settings: Settings, package: str, commands: dict[str, int], server: list[str], pythons: dict[str, Path]
) -> Table:
    table = Table(f"start-{package}", f"start of {package}", "ms of CPU over a bare interpreter")
    settings.report(table.title)
    places = {python: _places(python, package) for python in pythons.values()}
    for case, code in commands.items():
        arguments = case.split() if case.startswith("--") or case.endswith("--help") else [*case.split(), *server]
        runs: dict[str, Callable[[], float]] = {"bare": partial(_python, Path(sys.executable), [], "pass", [])}
        for suffix, python in pythons.items():
            start = f"from {package}.__main__ import main; main()"
            runs[package + suffix] = partial(_python, python, places[python], start, arguments, code)
        for run in runs.values():
            run()  # so that every file is in memory and compiled
        results = interleave(5 if settings.quick else 31, runs)
        bare = min(results.pop("bare"))
        table.add(case, {name: [cpu - bare for cpu in each] for name, each in results.items()}, 1e3)
    table.notes = [f"a bare interpreter takes {bare * 1e3:.1f} ms"]
    if swanctl := shutil.which("swanctl"):
        whole = min(interleave(5, {"": partial(_cpu, [swanctl, "--help"])})[""])
        table.notes = [f"{table.notes[0]}, swanctl --help {whole * 1e3:.1f} ms"]
    return table


def _places(python: Path, package: str) -> list[str]:
    """Return the directories from which an interpreter imports the package and what it needs."""
    program = (
        f"import click, {package}, vicifast; print(click.__file__, {package}.__file__, vicifast.__file__, sep='\\n')"
    )
    done = subprocess.run([python, "-c", program], check=True, stdout=subprocess.PIPE, text=True)
    return sorted({str(Path(file).parents[1]) for file in done.stdout.splitlines()})


def _python(python: Path, places: list[str], start: str, arguments: list[str], code: int = 0) -> float:
    """Without site, as what it loads for editable installs would be missing from our share."""
    program = f"import os, sys; sys.path += {places}; {start}"
    return _cpu([str(python), "-I", "-S", "-c", program, *arguments], code)


def _cpu(command: list[str], code: int = 0) -> float:
    before = children()
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode != code:
        raise RuntimeError(f"{command} exited with {done.returncode}: {done.stderr}")
    return children() - before
