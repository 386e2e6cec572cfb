"""Runs the fuzzer for some time, or repeats single inputs.

    python tests/fuzz [--seconds 60]    needs atheris and an instrumented extension: `make fuzz` has both
    python tests/fuzz FILE...           works with any build; one with sanitizers reports most

Findings are written to build/fuzz/findings, each input with a text that explains how to reproduce it. To turn an input
into a test, copy it to tests/fuzz/regressions.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # for `reference` and `generate`
WORK = Path("build/fuzz")
CORPUS, FINDINGS, LOG = WORK / "corpus", WORK / "findings", WORK / "log"
SHOWN = ("INITED", "pulse", "DONE", "stat::")  # the lines of libFuzzer to show at a terminal


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("inputs", nargs="*", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.inputs:
        from checks import check

        for path in options.inputs:
            check(path.read_bytes())
        return 0
    return fuzz(options.seconds)


def fuzz(seconds: int) -> int:
    for folder in (CORPUS, FINDINGS):
        folder.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, str(HERE / "seeds.py"), str(CORPUS)], env=sanitized(), check=True)
    before = set(FINDINGS.iterdir())
    command = [
        *(sys.executable, str(HERE / "target.py"), str(CORPUS), f"-artifact_prefix={FINDINGS}/"),
        *(f"-max_total_time={seconds}", "-max_len=3000", "-rss_limit_mb=3072", "-print_final_stats=1"),
        *("-timeout=60", "-report_slow_units=60"),  # on a busy machine the longest seed takes seconds
    ]
    status = run(command)
    found = sorted(set(FINDINGS.iterdir()) - before)
    for path in found:
        report(path)
    if status and not found:
        print(f"the fuzzer failed without a finding; see {LOG}", file=sys.stderr)
    return 1 if status or found else 0


def sanitized() -> dict[str, str]:
    """The environment of the fuzzing process: sanitizers are loaded first, and see every Python object."""
    import atheris

    return os.environ | {
        "LD_PRELOAD": str(Path(atheris.path()) / "asan_with_fuzzer.so"),
        "PYTHONPATH": str(HERE.parent),
        "PYTHONMALLOC": "malloc",
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:quarantine_size_mb=64",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    }


def run(command: list[str]) -> int:
    process = subprocess.Popen(
        command, env=sanitized(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    assert process.stdout is not None
    with LOG.open("w") as log, process:
        for line in process.stdout:
            log.write(line)
            if any(word in line for word in SHOWN):
                print(line, end="", flush=True)
    return process.returncode


def report(path: Path) -> None:
    text = path.with_name(f"{path.name}.txt")
    lines = [
        f"again, with sanitizers:  {' '.join(again(path))}",
        f"again, with any build:   python tests/fuzz {path}",
        f"as a test:               cp {path} {HERE / 'regressions'}/what-went-wrong.input",
        "",
        *end_of_log(),
    ]
    text.write_text("\n".join(lines) + "\n")
    print(f"found: {path}; see {text}", file=sys.stderr)


def again(path: Path) -> Iterator[str]:
    yield from (f"{name}={value}" for name, value in sanitized().items() if os.environ.get(name) != value)
    yield from (sys.executable, str(HERE / "target.py"), str(path))


def end_of_log() -> list[str]:
    """Return the log from the first word of a finding; without one, its last lines."""
    lines = LOG.read_text().splitlines()
    for at, line in enumerate(lines):
        if "=== Uncaught" in line or "ERROR:" in line or "runtime error:" in line:
            return lines[at:]
    return lines[-50:]


if __name__ == "__main__":
    sys.exit(main())
