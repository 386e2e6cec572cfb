"""Instructions that each of our codec's operations takes per message, counted by callgrind and therefore free of noise.

`python -m benchmarks.instructions` compares them with the committed baseline of this CPython and processor, and fails
when one has grown by more than 2 %; `--update` makes them the baseline.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .machine import missing, python_build

BASELINE = Path(__file__).with_suffix(".json")
TOLERANCE = 0.02
ROUNDS = 2

# A libc function that is not otherwise called: callgrind writes and resets its counts at each call of it.
MARKER = "clock_getres*"  # the name is versioned


class Measured(NamedTuple):
    """`counts`: instructions per message by operation, contestant and traffic. `made_with`: the tools used."""

    counts: dict[str, int]
    made_with: dict[str, str]


class Change(NamedTuple):
    name: str
    before: int | None
    after: int

    @property
    def growth(self) -> float | None:
        return None if self.before is None else self.after / self.before - 1


def key() -> str:
    return f"cpython-{sys.version_info[0]}.{sys.version_info[1]}-{platform.machine()}"


def compare(before: dict[str, int], after: dict[str, int]) -> list[Change]:
    return [Change(name, before.get(name), count) for name, count in after.items()]


def regressions(changes: list[Change]) -> list[Change]:
    return [change for change in changes if change.before and change.after > change.before * (1 + TOLERANCE)]


def measure() -> Measured:
    """Run this module under callgrind."""
    with tempfile.TemporaryDirectory() as directory:
        valgrind = ["valgrind", "--tool=callgrind", f"--dump-before={MARKER}", f"--callgrind-out-file={directory}/out"]
        command = [*valgrind, sys.executable, "-m", "benchmarks.instructions", "--counted"]
        # Hashes, and with them the collisions in dicts, are the same in every run.
        done = subprocess.run(
            command, env=os.environ | {"PYTHONHASHSEED": "0"}, capture_output=True, text=True, timeout=1800
        )
        if done.returncode:
            raise RuntimeError(f"callgrind failed: {done.stderr[-2000:]}")
        runs = done.stdout.splitlines()
        # Every second part has the counts between the two markers of a run.
        totals = [_total(Path(directory, f"out.{2 * number}")) for number in range(1, len(runs) + 1)]
    return Measured(_per_message(runs, totals), _made_with())


def _made_with() -> dict[str, str]:
    cython = importlib.metadata.version("cython")
    return {"python": platform.python_version(), "build": python_build(), "cython": cython}


def _total(file: Path) -> int:
    found = re.search(r"^(?:summary|totals): (\d+)", file.read_text(), re.MULTILINE)
    if not found:
        raise RuntimeError(f"callgrind left no counts in {file}")
    return int(found[1])


def _per_message(runs: list[str], totals: list[int]) -> dict[str, int]:
    """Subtract the cost of the loop itself, which was counted first, with an empty function."""
    counts, loop = {}, 0.0
    for line, total in zip(runs, totals, strict=True):
        name, calls = line.rsplit(" ", 1)
        if name == "loop":
            loop = total / int(calls)
        else:
            counts[name] = round(total / int(calls) - loop)
    return counts


def _runs() -> Iterator[tuple[str, Callable[[Any], Any], list[Any]]]:
    """The operations of vicifast alone, each on all traffics."""
    from .codec import operations
    from .corpus import traffics
    from .measure import is_ours

    corpora = traffics()
    yield "loop", callable, corpora[0].messages
    for operation in operations():
        for contestant in operation.contestants:
            if is_ours(contestant.name) and "," not in contestant.name and operation.name != "decode-keep":
                for traffic in corpora:
                    name = f"{operation.name}, {contestant.name.removeprefix('vicifast ')}, {traffic.name}"
                    yield name, contestant.make(), getattr(traffic, contestant.takes)


def _counted() -> None:
    """The part that runs under callgrind: prints the name and number of calls of each run, made between two markers."""
    runs = list(_runs())
    gc.collect()
    gc.disable()
    for name, function, items in runs:
        _loop(function, items)
        time.clock_getres(time.CLOCK_MONOTONIC)
        for _ in range(ROUNDS):
            _loop(function, items)
        time.clock_getres(time.CLOCK_MONOTONIC)
        print(name, ROUNDS * len(items))


def _loop(function: Callable[[Any], Any], items: list[Any]) -> None:
    for item in items:
        function(item)


def _show(changes: list[Change]) -> None:
    for change in changes:
        growth = "new" if change.growth is None else f"{change.growth:+.1%}"
        print(f"{change.name:<44} {change.after:>8,} instructions per message  {growth:>7}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.instructions", description=__doc__)
    parser.add_argument("--update", action="store_true", help="Save these counts as the baseline.")
    parser.add_argument("--counted", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if absent := missing():
        sys.exit(f"not installed: {', '.join(absent)}; run: pip install --group bench")
    if options.counted:
        return _counted()
    if not shutil.which("valgrind"):
        sys.exit("valgrind is not installed (Debian: apt-get install valgrind)")
    baselines = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    baseline = baselines.get(key(), {"counts": {}, "made_with": {}})
    measured = measure()
    changes = compare(baseline["counts"], measured.counts)
    _show(changes)
    if options.update:
        baselines[key()] = measured._asdict()
        BASELINE.write_text(json.dumps(baselines, indent=1, sort_keys=True) + "\n")
        return
    if baseline["made_with"] not in ({}, measured.made_with):
        print(f"the baseline was made with {baseline['made_with']}, this with {measured.made_with}")
    if grown := regressions(changes):
        sys.exit(f"grown by more than {TOLERANCE:.0%}: {'; '.join(change.name for change in grown)}")


if __name__ == "__main__":
    main()
