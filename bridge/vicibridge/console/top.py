"""`vicibridge top`."""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import click

from vicifast.cli.common import until_interrupted
from vicifast.cli.output import results, shown

from .common import EPILOG, Reach, below_trouble, reaches
from .tail import batches

if TYPE_CHECKING:
    import asyncio

    from rich.table import Table

    from ..client import Envelope, Fleet

_WINDOW = 10  # intervals in the average


@dataclass
class Rate:
    """The event rate of one class from one gateway."""

    total: int = 0
    recent: deque[int] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    now: int = 0
    last: Envelope | None = None

    def tick(self) -> None:
        """End an interval."""
        self.recent.append(self.now)
        self.now = 0


class Rates:
    """Counts envelopes by node and class, in intervals of `interval` seconds."""

    def __init__(self, interval: float) -> None:
        from ..client import Completeness

        self._interval = interval
        self._rates: dict[tuple[str, str], Rate] = {}
        self._check = Completeness()

    def add(self, envelope: Envelope) -> None:
        rate = self._rates.setdefault((envelope.node, envelope.kind), Rate())
        rate.total += 1
        rate.now += 1
        rate.last = envelope
        self._check.add(envelope)

    def tick(self) -> None:
        for rate in self._rates.values():
            rate.tick()

    def table(self) -> Table:
        """Return the rates as a table, the highest first."""
        from rich.table import Table

        missing = Counter[tuple[str, str]]()
        for gap in self._check.gaps():
            missing[gap.node, gap.kind] += gap.last - gap.first + 1
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("node", "class", "events/s", f"of {_WINDOW * self._interval:g} s", "total", "missing", "last"):
            table.add_column(column, justify="left" if column in ("node", "class", "last") else "right", no_wrap=True)
        for (node, kind), rate in sorted(self._rates.items(), key=lambda item: -sum(item[1].recent)):
            now = rate.recent[-1] if rate.recent else 0
            average = sum(rate.recent) / max(1, len(rate.recent))
            rates = (f"{now / self._interval:,.0f}", f"{average / self._interval:,.1f}")
            lost = f"{missing[node, kind]:,}"
            table.add_row(shown(node), kind, *rates, f"{rate.total:,}", lost, _last(rate))
        return table


def _last(rate: Rate) -> str:
    if rate.last is None:
        return ""
    age = max(0.0, time.time() - rate.last.time / 1e9)
    return f"{shown(rate.last.event)} {age:.0f} s ago"


@click.command(epilog=EPILOG)
@click.option("--node", "nodes", multiple=True, metavar="NAME", help="Show only this gateway.")
@click.option(
    "--interval",
    type=click.FloatRange(0.1),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Refresh interval.",
)
@click.option("--count", type=click.IntRange(1), help="Stop after this number of intervals.")
@reaches
def top(reach: Reach, nodes: tuple[str, ...], interval: float, count: int | None) -> None:
    """Show the event rate of each gateway by class, until Ctrl-C.

    The column "missing" counts skipped sequence numbers. For the log it may include a few lines from before the start.
    """
    with until_interrupted():
        reach.run(lambda fleet: show(fleet, nodes, interval, count))


async def show(fleet: Fleet, nodes: tuple[str, ...], interval: float, count: int | None) -> None:
    import asyncio

    rates = Rates(interval)

    async def gather() -> None:
        async for batch in batches(source):
            for envelope in batch:
                rates.add(envelope)

    async with fleet.subscribe(nodes=nodes, log=True) as source:
        gathering = asyncio.create_task(gather())
        try:
            await _picture(fleet, rates, interval, count, gathering)
        finally:
            gathering.cancel()


async def _picture(
    fleet: Fleet, rates: Rates, interval: float, count: int | None, gathering: asyncio.Task[None]
) -> None:
    import asyncio

    from rich.live import Live

    live = Live(console=results(), screen=True, auto_refresh=False) if results().is_terminal else None
    if live is not None:
        live.start()
    try:
        while count is None or count > 0:
            await asyncio.wait([gathering], timeout=interval)
            if gathering.done():
                gathering.result()
            rates.tick()
            if live is not None:
                live.update(below_trouble(fleet, rates.table()), refresh=True)
            else:
                results().print(rates.table())
            count = None if count is None else count - 1
    finally:
        if live is not None:
            live.stop()
