"""Starts the command line."""

from __future__ import annotations

import sys
from importlib.util import find_spec

for _name in ("click", "rich"):
    if find_spec(_name) is None:
        print(f'the command line needs {_name}; run: pip install "vicifast[cli]"', file=sys.stderr)
        sys.exit(2)

from .cli import main  # noqa: E402

if __name__ == "__main__":
    main(prog_name="vicifast")
