"""Resident memory of decoded messages that are kept, measured in a separate process for each decoder."""

from __future__ import annotations

import gc
import re
import subprocess
import sys
from pathlib import Path

from .contest import stored
from .contestants import contestant_of

_ROLLUP = Path("/proc/self/smaps_rollup")
SUPPORTED = _ROLLUP.exists()

_WARM_UP = 50  # messages, so that one-time allocations of a decoder do not count


def measured(contestant: str, file: Path) -> float:
    """Bytes that the results of one decoder for all items in a file take."""
    command = [sys.executable, "-m", "benchmarks.memory", contestant, str(file)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout)


def _resident() -> int:
    """Exact, unlike the RSS in /proc/self/statm, which newer kernels count in batches."""
    found = re.search(r"^Rss:\s+(\d+) kB", _ROLLUP.read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024


def main() -> None:
    name, file = sys.argv[1:]
    items = stored(file)
    decode = contestant_of("decode-keep", name).make()
    for item in items[:_WARM_UP]:
        decode(item)
    gc.collect()
    before = _resident()
    kept = [decode(item) for item in items]
    print(_resident() - before)
    del kept


if __name__ == "__main__":
    main()
