"""Import times, relative to an interpreter that imports nothing."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import vici  # type: ignore[import-untyped]

import vicifast

from .measure import Settings, Table, interleave

STATEMENTS = {
    "bare": "pass",
    "vicifast": "import vicifast",
    "vicifast.aio": "import vicifast.aio",
    "python vici": "import vici",
    "asyncio": "import asyncio",
}


class _Times(NamedTuple):
    wall: float
    cpu: float


def tables(settings: Settings) -> Iterator[Table]:
    table = Table("import", "import", "ms over a bare interpreter")
    settings.report(table.title)
    runs = {name: _run(statement) for name, statement in STATEMENTS.items()}
    for run in runs.values():
        run()  # so that every file is in memory and compiled
    results = interleave(5 if settings.quick else 31, runs)
    bare = results.pop("bare")
    table.notes = [f"a bare interpreter takes {min(bare).wall * 1e3:.1f} ms"]
    for clock in ("wall", "cpu"):
        least = min(getattr(times, clock) for times in bare)
        over = {name: [getattr(times, clock) - least for times in several] for name, several in results.items()}
        table.add("wall" if clock == "wall" else "CPU", over, 1e3)
    yield table


def _run(statement: str) -> Callable[[], _Times]:
    """Without site: modules that it loads for editable installs would be missing from our share; only os is in both."""
    places = {str(Path(module.__file__ or "").parents[1]) for module in (vici, vicifast)}
    program = f"import os, sys; sys.path += {sorted(places)}; {statement}"

    def run() -> _Times:
        cpu, wall = children(), time.perf_counter()
        subprocess.run([sys.executable, "-I", "-S", "-c", program], check=True)
        return _Times(time.perf_counter() - wall, children() - cpu)

    return run


def children() -> float:
    """Return the CPU seconds of all processes that were started and have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
