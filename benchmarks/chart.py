"""One SVG for each table, readable on light and on dark pages."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("svg")

from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from .measure import Table, is_ours  # noqa: E402

# Halfway between black and white, so that the contrast is the same on both.
INK = "#7a828e"
OURS = "#e8702a"
PEER = "#6b93c4"


def draw(table: Table, directory: Path) -> Path:
    """Write the chart of a table, a group of bars for each case; the text stays text."""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": table.name, "font.family": "sans-serif"}):
        bars = sum(len(table.rows) + 1 for _ in table.cases)
        figure = Figure(figsize=(9, 0.8 + 0.27 * bars), layout="constrained")
        figure.suptitle(f"{table.title}: {table.unit} (times ours)", color=INK, fontsize=12)
        axes = figure.subplots(len(table.cases), 1, squeeze=False)
        for row, case in zip(axes, table.cases, strict=True):
            _group(row[0], table, case)
        path = directory / f"{table.name}.svg"
        figure.savefig(path, transparent=True, metadata={"Date": None})
    return path


def _group(axes: Axes, table: Table, case: str) -> None:
    names = [name for name in table.rows if case in table.rows[name]]
    least = [max(table.rows[name][case].minimum, 0.0) for name in names]
    bars = axes.barh(names, least, color=[OURS if is_ours(name) else PEER for name in names])
    axes.bar_label(bars, [_label(table, name, case) for name in names], padding=4, color=INK, fontsize=9)
    axes.set_title(case, loc="left", color=INK, fontsize=10)
    axes.set_xlim(0, max(least) * 1.18 or 1)
    axes.invert_yaxis()
    axes.tick_params(left=False, labelcolor=INK, labelsize=9)
    axes.xaxis.set_visible(False)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    axes.spines["left"].set_color(INK)


def _label(table: Table, name: str, case: str) -> str:
    ratio = table.ratio(name, table.reference, case)
    value = f"{table.rows[name][case].minimum:.3g}"
    return value if ratio is None or name == table.reference else f"{value}  ({float(f'{ratio:.2g}'):g}x)"
