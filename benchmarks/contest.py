"""Runs one contestant of a codec table in a separate process, so that no other affects its heap and caches."""

from __future__ import annotations

import gc
import marshal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from .contestants import contestant_of
from .measure import drop, keep


def store(file: Path, items: list[Any]) -> None:
    file.write_bytes(marshal.dumps(items))


def stored(file: str | Path) -> list[Any]:
    items: list[Any] = marshal.loads(Path(file).read_bytes())
    return items


class Process:
    """A process of one contestant, run on request with one of the files that it was started with."""

    def __init__(self, operation: str, contestant: str, files: list[Path]) -> None:
        command = [sys.executable, "-m", "benchmarks.contest", operation, contestant, *map(str, files)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, case: int) -> float:
        """CPU seconds for processing each item of one file once."""
        assert self._process.stdin and self._process.stdout
        print(case, file=self._process.stdin, flush=True)
        return float(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


@contextmanager
def processes(operation: str, files: dict[str, list[Path]]) -> Iterator[dict[str, Process]]:
    """A process for each contestant, by name."""
    with ExitStack() as stack:
        started = {name: Process(operation, name, of_it) for name, of_it in files.items()}
        for process in started.values():
            stack.callback(process.close)
        yield started


def _serve(operation: str, name: str, files: list[str], orders: Iterable[str]) -> None:
    contestant = contestant_of(operation, name)
    loop = keep if operation == "decode-keep" else drop
    cases = [(contestant.make(), stored(file)) for file in files]
    for function, items in cases:
        loop(function, items)
    gc.collect()
    gc.freeze()  # the garbage collector must not traverse the items
    for order in orders:
        gc.collect()
        print(loop(*cases[int(order)]), flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1], sys.argv[2], sys.argv[3:], sys.stdin)
