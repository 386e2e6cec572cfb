"""Tables as text and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from .measure import Table, is_ours
from .targets import Verdict

EXPLAINED = (
    "Each cell: the minimum of all rounds, the median, and the ratio of the minimum to that of our first row. "
    "Each contestant runs in a separate process; rounds are interleaved. CPU is process time. Python's garbage "
    "collector is on, as in programs, but does not traverse the corpora."
)


def show_machine(console: Console, machine: Mapping[str, str], warning: str | None) -> None:
    for name, value in machine.items():
        console.print(f"[bold]{name}[/bold]: {escape(value)}", highlight=False)
    if warning:
        console.print(f"[yellow]{escape(warning)}[/yellow]", highlight=False)
    console.print(EXPLAINED, highlight=False)


def show_table(console: Console, table: Table) -> None:
    grid = Grid(title=f"{table.title}: {table.unit}", title_justify="left", title_style="bold")
    grid.add_column("")
    for case in table.cases:
        grid.add_column(case, justify="right", no_wrap=True)
    for name in table.rows:
        style = "bold" if is_ours(name) else ""
        grid.add_row(name, *(_cell(table, name, case) for case in table.cases), style=style)
    console.print()
    for note in table.notes:
        console.print(escape(note), highlight=False)
    if table.rows:
        console.print(grid)


def show_verdicts(console: Console, verdicts: list[Verdict]) -> None:
    grid = Grid(title="Figures to reach", title_justify="left", title_style="bold")
    for heading in ("what", "case", "to reach", "measured", ""):
        grid.add_column(heading)
    for target, value, reached in verdicts:
        wanted = f"{target.at_least:g}x {target.peer}" if target.peer else f"{target.at_most:.3g} {target.unit} at most"
        state = "not measured" if value is None else "reached" if reached else "[red]not reached[/red]"
        measured = "" if value is None else f"{value:.3g}{'x' if target.peer else f' {target.unit}'}"
        grid.add_row(f"{target.what} ({target.ours})", target.case, wanted, measured, state)
    console.print()
    console.print(grid)


def as_json(tables: list[Table], verdicts: list[Verdict], machine: Mapping[str, str], quick: bool) -> dict[str, Any]:
    return {
        "machine": dict(machine),
        "quick": quick,
        "tables": [_table_as_json(table) for table in tables],
        "targets": [
            verdict.target._asdict() | {"measured": verdict.value, "reached": verdict.reached} for verdict in verdicts
        ],
    }


def _table_as_json(table: Table) -> dict[str, Any]:
    rows = [
        {
            "contestant": name,
            "case": case,
            "minimum": cell.minimum,
            "median": cell.median,
            "ratio": table.ratio(name, table.reference, case),
        }
        for name, cells in table.rows.items()
        for case, cell in cells.items()
    ]
    return {"name": table.name, "title": table.title, "unit": table.unit, "notes": table.notes, "rows": rows}


def _cell(table: Table, name: str, case: str) -> str:
    cell = table.rows[name].get(case)
    if cell is None:
        return ""
    ratio = table.ratio(name, table.reference, case)
    times = "" if ratio is None else f"{ratio:.1f}x" if ratio >= 10 else f"{ratio:.2f}x"
    return f"{_number(cell.minimum)} {_number(cell.median)} {times:>7}"


def _number(value: float) -> str:
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"
