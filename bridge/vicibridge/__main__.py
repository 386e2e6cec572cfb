"""Starts the command line, or names the package that is missing."""

from __future__ import annotations

import sys

from vicifast.__main__ import run

_NEEDS = {
    *("click", "cryptography", "msgpack", "nats", "nkeys", "prometheus_client", "pydantic"),
    *("pydantic_settings", "rich"),
}


def main() -> None:
    """Run `vicibridge`; exit with 2 if the `bridge` extra is not installed."""
    try:
        from .cli import cli

        run(lambda: cli(prog_name="vicibridge"))
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _NEEDS:
            raise
        print(
            f'vicibridge needs {missing}; install it with: pip install "strongswan-vicifast[bridge]"', file=sys.stderr
        )
        sys.exit(2)


if __name__ == "__main__":
    main()
