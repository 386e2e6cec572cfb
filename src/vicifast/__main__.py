"""Entry point of the command line."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from importlib.util import find_spec

from .standard_output import NAME, StandardOutput


def main() -> None:
    """Run `vicifast`; exit with 2 if its dependencies, the extra `cli`, are missing."""
    for name in ("click", "rich"):
        if find_spec(name) is None:
            print(f'the command line needs {name}; run: pip install "strongswan-vicifast[cli]"', file=sys.stderr)
            sys.exit(2)
    from .cli import main as cli

    run(lambda: cli(prog_name="vicifast"))


def run(program: Callable[[], object]) -> None:
    """Run a program. When its standard output cannot be written, report that in one line and exit with 1.

    A pipe that its reader has closed is reported by the exit code alone. A standard stream that was closed before the
    start is replaced by an empty one, before a socket or a file takes its descriptor.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.platform != "win32":
        sys.stdout = StandardOutput(sys.stdout)
    try:
        try:
            program()
        finally:
            sys.stdout.flush()
    except OSError as error:
        if error.filename != NAME:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the interpreter writes what is left when it exits
        if not isinstance(error, BrokenPipeError):
            print(f"Error: {NAME}: {error.strerror}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
