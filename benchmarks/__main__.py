"""`python -m benchmarks`: measures vicifast and its peers, prints tables and the targets."""

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

# Each part is a module with `tables(settings)`; importing it imports the packages that it needs.
PARTS = {
    "codec": "codec",
    "stream": "stream",
    "import": "imports",
    "start": "start",
    "charon": "charon",
    "bridge": "bridge",
    "subscribe": "subscribers",
    "gateways": "gateways",
}
# They take minutes; charon needs root and strongSwan, the others a nats-server.
ON_REQUEST = ("charon", "bridge", "subscribe", "gateways")


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
        settings = Settings(options.quick, status.update, options.sas, options.charon, options.flood, options.against)
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
    parser.add_argument(
        "--quick", action="store_true", help="Measure every row in less than 30 seconds, with few rounds."
    )
    parser.add_argument(
        "--only", choices=PARTS, help=f"Run only one part; {', '.join(ON_REQUEST)} run only with this option."
    )
    parser.add_argument(
        "--flood", metavar="SECONDS", type=float, default=5, help="Duration of the flood for the bridge."
    )
    parser.add_argument(
        "--sas", metavar="N", type=int, default=5000, help="Number of SAs to establish in the real charon."
    )
    parser.add_argument("--charon", metavar="ADDRESS", help="Address of a running charon with SAs to measure.")
    parser.add_argument(
        "--against",
        metavar="REV",
        help="Measure the commands and the bridge of another revision too, built in build/revisions.",
    )
    parser.add_argument("--json", metavar="FILE", help="Write all results to a file, or with - to standard output.")
    parser.add_argument("--chart", metavar="DIR", type=Path, help="Write a chart (SVG) for each table.")
    return parser.parse_args()


if __name__ == "__main__":
    main()
