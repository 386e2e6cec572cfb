"""`python -m benchmarks`: measures vicifast and its peers, prints tables and the figures to reach."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from . import machine

if TYPE_CHECKING:
    from .measure import Table

# Each part is a module with `tables(settings)`; what it needs installed is imported with it.
PARTS = {"codec": "codec", "stream": "stream", "import": "imports", "charon": "charon", "bridge": "bridge"}
ON_REQUEST = {"charon", "bridge"}  # they need minutes, the one root and strongSwan, the other a nats-server


def main() -> None:
    options = _options()
    if absent := machine.missing():
        sys.exit(f"not installed: {', '.join(absent)}; run: pip install --group bench")
    _run(options)


def _run(options: argparse.Namespace) -> None:
    from rich.console import Console

    from . import report, targets
    from .measure import Settings

    console = Console(stderr=options.json == "-")
    if not console.is_terminal:
        console = Console(stderr=options.json == "-", width=120)
    described = machine.describe()
    report.show_machine(console, described, machine.busy())
    tables: list[Table] = []
    with console.status("") as status:
        settings = Settings(options.quick, status.update, options.sas, options.charon, options.flood)
        for part in [options.only] if options.only else [part for part in PARTS if part not in ON_REQUEST]:
            for table in importlib.import_module(f"benchmarks.{PARTS[part]}").tables(settings):
                report.show_table(console, table)
                tables.append(table)
    verdicts = targets.judge(tables)
    report.show_verdicts(console, verdicts)
    if options.json:
        _write(options.json, json.dumps(report.as_json(tables, verdicts, described, options.quick), indent=1))
    if options.chart:
        _draw(tables, options.chart)


def _write(name: str, text: str) -> None:
    if name == "-":
        print(text)
    else:
        Path(name).write_text(text + "\n")


def _draw(tables: list[Table], directory: Path) -> None:
    from .chart import draw

    directory.mkdir(parents=True, exist_ok=True)
    for table in tables:
        if table.rows:
            draw(table, directory)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="every row in less than 30 seconds, with few rounds")
    parser.add_argument("--only", choices=PARTS, help=f"one part of it; only so: {', '.join(ON_REQUEST)}")
    parser.add_argument("--flood", metavar="SECONDS", type=float, default=5, help="how long the bridge is flooded")
    parser.add_argument("--sas", metavar="N", type=int, default=5000, help="how many SAs the real charon is given")
    parser.add_argument("--charon", metavar="ADDRESS", help="measure on a charon that runs already, and has SAs")
    parser.add_argument("--json", metavar="FILE", help="write all figures to a file, or with - to standard output")
    parser.add_argument("--chart", metavar="DIR", type=Path, help="write a chart (SVG) for each table")
    return parser.parse_args()


if __name__ == "__main__":
    main()
