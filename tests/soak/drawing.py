"""The run as a picture."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from .notes import Notes


def draw(notes: Notes, path: Path) -> None:
    """Lag, memory and descriptors over time, with the faults behind them."""
    figure = Figure(figsize=(12, 9), layout="constrained")
    lag, memory, descriptors = figure.subplots(3, 1, sharex=True)
    for kind, color in (("log", "#6b93c4"), ("state", "#e8702a")):
        lags = notes.lags[kind]
        step = max(1, len(lags.times) // 4_000)
        values = [max(value, 1e-4) for value in lags.values[::step]]
        lag.plot(lags.times[::step], values, ".", ms=1, color=color, label=kind)
    lag.set_yscale("log")
    lag.set_ylabel("seconds from charon to a subscriber")
    lag.legend(markerscale=8)
    memory.plot([s[0] for s in notes.process], [s[2] for s in notes.process], color="#e8702a")
    memory.set_ylabel("bridge, MB resident")
    descriptors.plot([s[0] for s in notes.process], [s[3] for s in notes.process], color="#e8702a")
    descriptors.set_ylabel("bridge, descriptors")
    descriptors.set_xlabel("seconds")
    colors = {kind: f"C{n}" for n, kind in enumerate(sorted({fault.kind for fault in notes.faults}))}
    for fault in notes.faults:
        for axes in (lag, memory, descriptors):
            axes.axvspan(fault.begin, max(fault.end, fault.begin + 0.5), alpha=0.25, color=colors[fault.kind], lw=0)
    for kind, color in colors.items():
        descriptors.fill_between([], [], color=color, alpha=0.25, label=kind)
    descriptors.legend(ncols=4, loc="upper left", fontsize=8)
    figure.savefig(path)
