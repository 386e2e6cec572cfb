"""Resident memory of decoded messages that are kept, measured in a separate process for each decoder."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

from .contest import stored
from .contestants import contestant_of
from .measure import resident

_WARM_UP = 50  # messages, so that one-time allocations of a decoder do not count


def measured(contestant: str, file: Path) -> float:
    """Bytes that the results of one decoder for all items in a file take."""
    command = [sys.executable, "-m", "benchmarks.memory", contestant, str(file)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout)


def main() -> None:
    name, file = sys.argv[1:]
    items = stored(file)
    decode = contestant_of("decode-keep", name).make()
    for item in items[:_WARM_UP]:
        decode(item)
    gc.collect()
    before = resident()
    kept = [decode(item) for item in items]
    print(resident() - before)
    del kept


if __name__ == "__main__":
    main()
