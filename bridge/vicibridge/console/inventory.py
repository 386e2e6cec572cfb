"""`vicibridge nodes` and `vicibridge sas`."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import click

from vicifast._wire import Message, encode
from vicifast.cli import tables
from vicifast.cli.common import until_interrupted
from vicifast.cli.output import ReceivedMessage, results, shown
from vicifast.standard_output import write_bytes

from ..contract import bucket_values
from .common import EPILOG, Reach, below_trouble, reaches

if TYPE_CHECKING:
    from ..client import Change, Fleet, Node, Watch
    from ..contract.bucket_values import SaValue

_REFRESH = 0.25  # seconds between updates of a live table


@click.command(epilog=EPILOG)
@click.option("--json", "as_json", is_flag=True, help="Write JSON, one line per gateway.")
@reaches
def nodes(reach: Reach, as_json: bool) -> None:
    """List the gateways: those with a running bridge, and those that the mirror still lists."""
    found = reach.run(lambda fleet: fleet.nodes())
    if as_json:
        for node in found:
            click.echo(json.dumps(described(node)))
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("node", "bridge", "charon", "version", "mirror", "commands", "running for", "seen"):
        table.add_column(column, overflow="fold")
    for node in found:
        table.add_row(*map(shown, _row(node)))
    results().print(table)
    results().print(f"{sum(node.alive for node in found)} of {len(found)} gateways have a running bridge")


def described(node: Node) -> dict[str, object]:
    return {
        "node": node.name,
        "alive": node.alive,
        "answers": node.answers,
        "bridge_version": node.bridge_version,
        "charon": node.charon,
        "charon_version": node.charon_version,
        "mirror": node.mirror,
        **({key: node.present[key] for key in ("boot", "started", "updated")} if node.present else {}),
    }


def _row(node: Node) -> tuple[object, ...]:
    present = node.present
    bridge = node.bridge_version if node.alive else f"{node.bridge_version or ''} gone".strip()
    times = (_ago(present["started"]), f"{_ago(present['updated'])} ago") if present else ("", "")
    return node.name, bridge, node.charon, node.charon_version, node.mirror, "yes" if node.answers else "no", *times


def _ago(time_ns: int) -> str:
    return tables.since(max(0, time.time_ns() - time_ns) // 1_000_000_000)


@click.command(epilog=EPILOG)
@click.option("--node", metavar="NAME", help="Show only this gateway.")
@click.option("--ike", metavar="NAME", help="Show only this connection.")
@click.option("--watch", is_flag=True, help="Show changes as they happen, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Write JSON, one line per SA or, with --watch, per change.")
@reaches
def sas(reach: Reach, node: str | None, ike: str | None, watch: bool, as_json: bool) -> None:
    """List the SAs of the fleet from the mirror in NATS."""

    async def work(fleet: Fleet) -> None:
        async with fleet.watch_sas(node, ike) as mirror:
            if as_json:
                await _write(mirror, watch)
            elif watch and results().is_terminal:
                await _follow(fleet, mirror)
            elif watch:
                await _list_changes(mirror)
            else:
                results().print(listing(mirror.current.values()))

    with until_interrupted():
        reach.run(work)


async def _write(mirror: Watch[SaValue], follow: bool) -> None:
    if not follow:
        for value in mirror.current.values():
            write_bytes(bucket_values.dump(value) + b"\n")
        return
    while True:
        try:
            change = await anext(mirror)
        except ValueError as error:  # a value that is not from a bridge
            click.echo(click.style(shown(error), fg="yellow"), err=True)
        else:
            write_bytes(_line(change) + b"\n")


def _line(change: Change[SaValue]) -> bytes:
    return bucket_values.dump({"key": change.key, "value": change.value})


async def _follow(fleet: Fleet, mirror: Watch[SaValue]) -> None:
    from rich.live import Live

    with Live(console=results(), screen=True, auto_refresh=False) as live:
        while True:
            picture = listing(mirror.current.values()).top(results().height - (fleet.trouble is not None))
            live.update(below_trouble(fleet, picture), refresh=True)
            await _pause(mirror)


async def _pause(mirror: Watch[SaValue]) -> None:
    """Wait for a change, at least the refresh interval and at most a second, as ages grow without changes."""
    import asyncio

    await asyncio.sleep(_REFRESH)
    with contextlib.suppress(TimeoutError, ValueError):
        async with asyncio.timeout(1 - _REFRESH):
            await anext(mirror)


async def _list_changes(mirror: Watch[SaValue]) -> None:
    """Print the whole table, and again after changes, where the screen cannot be redrawn."""
    import asyncio

    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_REFRESH):
                while True:
                    await _next_change(mirror)
        results().print(listing(mirror.current.values()))
        await _next_change(mirror)


async def _next_change(mirror: Watch[SaValue]) -> None:
    with contextlib.suppress(ValueError):
        await anext(mirror)


def listing(found: Iterable[SaValue]) -> tables.Listing:
    """Return the SAs as the table of `vicifast sas`, with the node before the name."""
    ordered = sorted(found, key=lambda value: (value["node"], value["ike"], int(value["uniqueid"])))
    return tables.sas([ReceivedMessage(Message(encode(_message(value)))) for value in ordered])


def _message(value: SaValue) -> dict[str, Any]:
    """Return the SA as list-sas would return it now."""
    seconds = (time.time_ns() - value["updated"]) // 1_000_000_000
    children = {uid: _aged(child, "install-time", seconds) for uid, child in value["children"].items()}
    return {f"{value['node']}/{value['ike']}": {**_aged(value["sa"], "established", seconds), "child-sas": children}}


def _aged(section: Mapping[str, Any], key: str, seconds: int) -> dict[str, Any]:
    age = str(section.get(key, ""))
    return {**section, **({key: str(int(age) + max(0, seconds))} if age.isdecimal() else {})}
