"""`make soak`: mixed traffic for a given time with faults all around the bridge, and an account at the end.

A scripted charon sends log lines and numbered events; a bridge in a separate process publishes them to a real NATS
server; the content of JetStream is compared with the events sent. Every few seconds a random fault occurs. In the
second half the bridge itself keeps running, to verify that its memory and descriptors do not grow.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from vicifast.testing import FakeCharon

from .account import AS_SPAN, BY_NUMBER, UNREPORTED, WITH_BRIDGE, WITH_SERVER, Account
from .drawing import draw
from .notes import Notes
from .traffic import Soak

_WARM = 90  # seconds of life after which memory can be judged


@dataclass
class Result:
    """The result of a run."""

    rows: list[tuple[str, ...]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def must(self, holds: bool, text: str) -> None:
        if not holds:
            self.problems.append(text)


def judge(notes: Notes) -> Result:
    result = Result()
    rows = result.rows
    accounts = [Account(kind, ledger, notes).make() for kind, ledger in notes.ledgers.items()]
    ledgers = [account.ledger for account in accounts]
    rows.append(("sent with a listener", *(f"{ledger.heard:,}" for ledger in ledgers)))
    rows.append(("sent without a listener", *(f"{ledger.unheard:,}" for ledger in ledgers)))
    rows.append(("arrived", *(f"{ledger.arrived:,}" for ledger in ledgers)))
    for cause in (BY_NUMBER, AS_SPAN, WITH_BRIDGE, WITH_SERVER, UNREPORTED):
        rows.append((cause, *(f"{account.causes[cause]:,}" for account in accounts)))
    state = notes.ledgers["state"]
    rows.append(("twice, out of order", f"{state.twice:,}, {state.disordered:,}", ""))
    for part, name in ((0.5, "50 %"), (0.9, "90 %"), (0.99, "99 %"), (1.0, "the longest")):
        rows.append((f"lag, {name}", *(f"{percentile(lags.values, part):,.3f} s" for lags in notes.lags.values())))
    for account in accounts:
        ledger = account.ledger
        result.problems += [f"{account.kind}: not reported: {text}" for text in account.unreported]
        lost = ledger.heard - ledger.arrived
        result.must(sum(account.causes.values()) == lost, f"{account.kind}: {lost} lost, and {account.causes}")
    result.must(not state.twice and not state.disordered, "state: events arrived twice or out of order")
    flat(notes, result)
    return result


def percentile(lags: Sequence[float], part: float) -> float:
    values = sorted(lags)
    return values[min(len(values) - 1, int(part * len(values)))] if values else float("nan")


def flat(notes: Notes, result: Result) -> None:
    """Compare the last process's memory and descriptors: the last third of its life with the third before."""
    life = [sample for sample in notes.process if sample[1] == notes.process[-1][1]]
    third = len(life) // 3
    before, after = life[third : 2 * third], life[2 * third :]
    if not before:
        return
    for at, name, allowed in ((2, "MB resident", 1.1), (3, "descriptors", 1.1)):
        first, last = (sorted(s[at] for s in part)[len(part) // 2] for part in (before, after))
        spread = f"{min(s[at] for s in life):,.0f} to {max(s[at] for s in life):,.0f}"
        result.rows.append((f"bridge, {name}: middle and last third", f"{first:,.0f}, {last:,.0f}", f"all: {spread}"))
        if len(life) < _WARM:  # memory allocated by the first outage is not a leak
            continue
        result.must(last <= first * allowed + 2, f"{name}: {first:.0f} in the middle third, {last:.0f} in the last")


def report(notes: Notes, result: Result, console: Console) -> None:
    table = Table(title=f"{notes.now():,.0f} seconds, {len(notes.faults)} faults")
    for column in ("", "state", "log"):
        table.add_column(column, justify="right" if column else "left")
    for row in result.rows:
        table.add_row(*row)
    console.print(table)
    faults = Counter(fault.kind for fault in notes.faults)
    console.print("faults: " + ", ".join(f"{kind} ({count})" for kind, count in faults.most_common()))
    answers = ", ".join(f"{answer} ({count:,})" for answer, count in notes.answers.most_common())
    console.print(f"requests, by the code of the answer: {answers}")


async def main(seconds: float, seed: int, plot: Path) -> int:
    console = Console()
    with tempfile.TemporaryDirectory(prefix="vicifast-soak-") as directory:
        async with FakeCharon() as charon:
            for command in ("list-sas", "list-conns", "stats"):
                charon.on(command, {})
            charon.on("version", {"daemon": "charon", "version": "6.0.4"})
            soak = Soak(Path(directory), charon, seed)
            try:
                await soak.run(seconds)
            finally:
                if soak.bridge.process is not None:
                    soak.bridge.process.kill()
                soak.server.kill()
    result = judge(soak.notes)
    report(soak.notes, result, console)
    draw(soak.notes, plot)
    console.print(f"plot: {plot}")
    for problem in result.problems:
        console.print(f"[red]{problem}")
    for fault in soak.notes.faults if result.problems else ():
        console.print(f"{fault.begin:.3f} to {fault.end:.3f} s: {fault.kind}")
    return 1 if result.problems else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--plot", type=Path, default=Path("soak.svg"))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    sys.exit(asyncio.run(main(options.seconds, options.seed, options.plot)))
