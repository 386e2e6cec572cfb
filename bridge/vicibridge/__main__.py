"""Starts the command line, or says what has to be installed for it."""

from __future__ import annotations

import sys

_NEEDS = {"click", "msgpack", "nats", "nkeys", "pydantic", "pydantic_settings"}


def main() -> None:
    """Run `vicibridge`; exit with 2 when the extra with its dependencies is missing."""
    try:
        from .cli import cli
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _NEEDS:
            raise
        print(f'vicibridge needs {missing}; install it with: pip install "vicifast[bridge]"', file=sys.stderr)
        sys.exit(2)
    cli(prog_name="vicibridge")


if __name__ == "__main__":
    main()
