"""Interleaved rounds and the resulting tables."""

from __future__ import annotations

import gc
import re
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

Sample = TypeVar("Sample")

LONG_ENOUGH = 0.01  # minimum duration of a sample, in seconds
MEMORY_IS_KNOWN = Path("/proc/self/smaps_rollup").exists()


class Settings(NamedTuple):
    """How long to measure: `quick` measures every row with few rounds. `report` is called with the current measurement.

    `charon` is the address of a running one with SAs to list; without it one is started, for `sas` SAs. The bridge is
    flooded for `flood` seconds. `against` is another revision to measure.
    """

    quick: bool
    report: Callable[[str], None]
    sas: int = 5000
    charon: str | None = None
    flood: float = 5
    against: str | None = None


class Cell(NamedTuple):
    """The results of one contestant in one case, over all rounds."""

    minimum: float
    median: float


@dataclass
class Table:
    """One thing measured: contestants by cases. The first contestant whose name begins with `vicifast` is the one
    that ratios refer to."""

    name: str
    title: str
    unit: str
    rows: dict[str, dict[str, Cell]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def cases(self) -> list[str]:
        return list(dict.fromkeys(case for cells in self.rows.values() for case in cells))

    @property
    def reference(self) -> str | None:
        return next((name for name in self.rows if is_ours(name)), None)

    def add(self, case: str, samples: Mapping[str, Sequence[float]], scale: float = 1.0) -> None:
        """Add the samples of a case, each multiplied by `scale`."""
        for name, values in samples.items():
            cell = Cell(min(values) * scale, statistics.median(values) * scale)
            self.rows.setdefault(name, {})[case] = cell

    def ratio(self, name: str, to: str | None, case: str) -> float | None:
        """Return the ratio of the minima of `name` and `to`; None if either was not measured."""
        above, below = self.rows.get(name, {}).get(case), self.rows.get(to or "", {}).get(case)
        return above.minimum / below.minimum if above and below and below.minimum > 0 else None


class Clock:
    """CPU and wall time of a part of the program."""

    def __enter__(self) -> Clock:
        self.cpu, self.wall = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.cpu, self.wall = time.process_time() - self.cpu, time.perf_counter() - self.wall


def is_ours(contestant: str) -> bool:
    return contestant.startswith(("vicifast", "vicibridge"))


def interleave(rounds: int, runs: Mapping[str, Callable[[], Sample]]) -> dict[str, list[Sample]]:
    """Run each once per round, A B C A B C, so that disturbances affect all of them."""
    samples: dict[str, list[Sample]] = {name: [] for name in runs}
    for _ in range(rounds):
        gc.collect()
        for name, run in runs.items():
            samples[name].append(run())
    return samples


def drop(function: Callable[[Any], object], items: Iterable[Any]) -> float:
    """CPU seconds for calling the function on each item and discarding the result, like a reader of a stream.

    It is the mean of enough passes that earlier work is no longer in the processor's caches, as in a long stream.
    """
    passes, begin = 0, time.process_time()
    while passes == 0 or time.process_time() - begin < LONG_ENOUGH:
        for item in items:
            function(item)
        passes += 1
    return (time.process_time() - begin) / passes


def keep(function: Callable[[Any], object], items: Iterable[Any]) -> float:
    """CPU seconds for the results of all items in a list; freeing it is not counted."""
    begin = time.process_time()
    kept = [function(item) for item in items]
    spent = time.process_time() - begin
    del kept
    return spent


def resident(process: int | str = "self") -> int:
    """Return the RSS of a process: exact, unlike that in /proc/self/statm, which newer kernels count in batches."""
    found = re.search(r"^Rss:\s+(\d+) kB", Path(f"/proc/{process}/smaps_rollup").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024
