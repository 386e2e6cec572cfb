"""`vicibridge nodes` and `vicibridge sas`."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from vicifast.cli import tables
from vicifast.cli.common import FAILED, until_interrupted
from vicifast.cli.output import escaped, results, shown
from vicifast.errors import ViciError
from vicifast.standard_output import write_bytes

from ..contract import bucket_values
from ..contract.bucket_values import HEARTBEATS, NodeValue, SaValue, is_present
from ..contract.subjects import escape
from .common import EPILOG, Reach, below_trouble, reaches, warn

if TYPE_CHECKING:
    from rich.text import Text

    from vicifast.results import IkeSa

    from ..client import Change, Fleet, Node, Watch

_REFRESH = 0.25  # seconds between updates of a live table
_LOOK = 1.0  # seconds until a live view shows what changed without a change of an SA
_AGE = re.compile("[0-9]{1,20}")


@click.command(epilog=EPILOG)
@click.option("--json", "as_json", is_flag=True, help="Write JSON, one line per gateway.")
@reaches
def nodes(reach: Reach, as_json: bool) -> None:
    """List the gateways: those with a running bridge, and those that the mirror still lists.

    The state of the latter is `gone`. Standard error says why values are unknown (?) and what is wrong with the mirror.
    The exit status is 1 if a gateway has an invalid value in the mirror, which is then ignored.
    """
    found = reach.run(lambda fleet: fleet.inventory())
    if as_json:
        for node in found.nodes:
            click.echo(json.dumps(described(node)))
    else:
        from rich.table import Table

        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("node", "state", "bridge", "charon", "version", "mirror", "commands", "running for", "seen"):
            table.add_column(column, overflow="fold")
        for node in found.nodes:
            table.add_row(*(shown("?" if value is None else value) for value in _row(node)))
        results().print(table)
        alive = sum(node.alive for node in found.nodes)
        results().print(f"{alive} of {len(found.nodes)} gateways have a running bridge")
    for line in (*found.problems, *found.invalid):
        warn(line)
    if found.invalid:
        sys.exit(FAILED)


def described(node: Node) -> dict[str, object]:
    return {
        "node": node.name,
        "state": "running" if node.alive else "gone",
        "alive": node.alive,
        "answers": node.answers,
        "bridge_version": node.bridge_version,
        "charon": node.charon,
        "charon_version": node.charon_version,
        "mirror": node.mirror,
        "gone_since": node.gone_since.isoformat() if node.gone_since else None,
        **({key: node.present[key] for key in ("boot", "started", "updated", "reasons")} if node.present else {}),
    }


def _row(node: Node) -> tuple[object, ...]:
    """Return the cells of a gateway, None for what is unknown."""
    present, commands = node.present, "yes" if node.answers else "no"
    if not node.alive:
        seen = None if node.gone_since is None else f"{_ago(int(node.gone_since.timestamp() * 1e9))} ago"
        return node.name, "gone", node.bridge_version, None, node.charon_version, "outdated", commands, "-", seen
    times = (_ago(present["started"]), f"{_ago(present['updated'])} ago") if present else (None, None)
    known = node.bridge_version, node.charon, node.charon_version, node.mirror
    return node.name, "running", *known, commands, *times


def _ago(time_ns: int) -> str:
    return tables.since(max(0, time.time_ns() - time_ns) // 1_000_000_000)


@click.command(epilog=EPILOG)
@click.option("--node", metavar="NAME", help="Show only this gateway.")
@click.option("--ike", metavar="NAME", help="Show only this connection.")
@click.option("--watch", is_flag=True, help="Show changes as they happen, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Write JSON, one line per SA or, with --watch, per change.")
@reaches
def sas(reach: Reach, node: str | None, ike: str | None, watch: bool, as_json: bool) -> None:
    """List the SAs of the fleet from the mirror in NATS.

    These are the last known SAs. Standard error, or with --watch the picture, names the gateways whose SAs may be
    outdated or absent: no bridge is running, charon is down, or the mirror is incomplete. With --json but without
    --watch, `outdated` of an SA has that reason, or null.

    Values that no bridge can have written are skipped and named; without --watch the exit status is then 1.
    """

    async def work(fleet: Fleet) -> int:
        async with fleet.watch_sas(node, ike) as mirror, _presence(fleet) as present:
            view = _View(mirror, present, node)
            if watch and as_json:
                await _write_changes(view)
            elif watch and results().is_terminal:
                await _follow(fleet, view)
            elif watch:
                await _list_changes(view)
            elif as_json:
                for value in mirror.current.values():
                    write_bytes(bucket_values.dump({**value, "outdated": view.outdated(value["node"])}) + b"\n")
            else:
                results().print(listing(mirror.current.values()))
            for line in view.lines():
                warn(line)
            return FAILED if view.invalid() else 0

    with until_interrupted():
        sys.exit(reach.run(work))


@asynccontextmanager
async def _presence(fleet: Fleet) -> AsyncIterator[Watch[NodeValue] | ViciError]:
    """Watch the gateways; yield the error if that is impossible."""
    from ..client import Denied, JetStreamError

    watch = fleet.watch_nodes()
    try:
        await watch.start()
    except (Denied, JetStreamError) as error:
        yield error
        return
    async with aclosing(watch):
        yield watch


class _View(NamedTuple):
    """The SAs of the fleet, or of the gateway `only`, and what is known of their gateways."""

    mirror: Watch[SaValue]
    present: Watch[NodeValue] | ViciError
    only: str | None

    def lines(self) -> list[str]:
        return [*self.warnings(), *self.invalid()]

    def warnings(self) -> list[str]:
        """Name the gateways whose SAs may be outdated or absent, and say why."""
        if isinstance(self.present, ViciError):
            return [f"it is unknown which SAs are current: {self.present}"]
        names = {value["node"] for value in self.mirror.current.values()}
        names |= {self.only} if self.only is not None else {value["node"] for value in self.present.current.values()}
        reasons = ((name, self.outdated(name)) for name in sorted(names))
        return [f"{name}: SAs may be outdated: {reason}" for name, reason in reasons if reason]

    def invalid(self) -> list[str]:
        """Name the values that no bridge can have written."""
        nodes = {} if isinstance(self.present, ViciError) else self.present.invalid
        return [str(error) for error in (*self.mirror.invalid.values(), *nodes.values())]

    def outdated(self, node: str) -> str | None:
        """Return why the SAs of a gateway may be outdated or absent."""
        if isinstance(self.present, ViciError):
            return f"unknown: {self.present}"
        value = self.present.current.get(escape(node))
        if value is None:
            removed = self.present.removed.get(escape(node))
            since = "" if removed is None else f" since {_clock(removed)}"
            return f"no bridge is running{since}"
        updated = datetime.fromtimestamp(value["updated"] / 1e9, UTC)
        if not is_present(value):
            return f"no bridge is running since {_clock(updated)}"
        if time.time() - updated.timestamp() > 2 * HEARTBEATS * value["heartbeat"]:
            return f"no heartbeat of its bridge since {_clock(updated)}, unless its clock differs"
        if value["charon"] == "down":
            return "its bridge has no connection to charon"
        if value["mirror"] == "incomplete":
            return f"the mirror is incomplete: {'; '.join(value['reasons']) or 'the bridge starts'}"
        return None


def _clock(moment: datetime) -> str:
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


async def _write_changes(view: _View) -> None:
    """Write each change; on standard error, at most once a second, what else has changed in the view."""
    import asyncio

    known: list[str] = []
    clock = asyncio.get_running_loop().time
    look_at = clock()
    while True:
        if clock() >= look_at:
            look_at = clock() + _LOOK
            lines = view.lines()
            for line in lines or (["all SAs are current"] if known else []):
                if line not in known:
                    warn(line)
            known = lines
        with contextlib.suppress(TimeoutError, ValueError):  # invalid values are among the lines
            async with asyncio.timeout_at(look_at):
                write_bytes(_line(await anext(view.mirror)) + b"\n")


def _line(change: Change[SaValue]) -> bytes:
    return bucket_values.dump({"key": change.key, "value": change.value})


async def _follow(fleet: Fleet, view: _View) -> None:
    from rich.console import Group
    from rich.live import Live

    with Live(console=results(), screen=True, auto_refresh=False) as live:
        while True:
            lines = view.lines()[: results().height // 2]
            rows = results().height - len(lines) - (fleet.trouble is not None)
            picture = Group(*(_line_of(line) for line in lines), listing(view.mirror.current.values()).top(rows))
            live.update(below_trouble(fleet, picture), refresh=True)
            await _pause(view.mirror)


def _line_of(text: str) -> Text:
    from rich.text import Text

    return Text(escaped(text), style="yellow", no_wrap=True, overflow="ellipsis")


async def _pause(mirror: Watch[SaValue]) -> None:
    """Wait for a change, at least the refresh interval and at most a second, as ages grow without changes."""
    import asyncio

    await asyncio.sleep(_REFRESH)
    with contextlib.suppress(TimeoutError, ValueError):
        async with asyncio.timeout(_LOOK - _REFRESH):
            await anext(mirror)


async def _list_changes(view: _View) -> None:
    """Print the whole table, and again after changes, where the screen cannot be redrawn."""
    import asyncio

    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_REFRESH):
                while True:
                    await _next_change(view.mirror)
        lines = view.lines()
        for line in lines:
            results().print(escaped(line))
        results().print(listing(view.mirror.current.values()))
        while lines == view.lines():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK):
                    await _next_change(view.mirror)
                    break


async def _next_change(mirror: Watch[SaValue]) -> None:
    with contextlib.suppress(ValueError):
        await anext(mirror)


def listing(found: Iterable[SaValue]) -> tables.Listing:
    """Return the SAs as the table of `vicifast sas`, with the node before the name."""
    ordered = sorted(found, key=lambda value: (value["node"], value["ike"], int(value["uniqueid"])))
    return tables.ike_sas([_sa(value) for value in ordered])


def _sa(value: SaValue) -> IkeSa:
    """Return the SA as list-sas would return it now."""
    from vicifast.results import IkeSa

    seconds = (time.time_ns() - value["updated"]) // 1_000_000_000
    children = {uid: _aged(child, "install-time", seconds) for uid, child in value["children"].items()}
    section = {**_aged(value["sa"], "established", seconds), "child-sas": children}
    return IkeSa.from_section(f"{value['node']}/{value['ike']}", section)


def _aged(section: Mapping[str, Any], key: str, seconds: int) -> dict[str, Any]:
    age = str(section.get(key, ""))
    return {**section, **({key: str(int(age) + max(0, seconds))} if _AGE.fullmatch(age) else {})}
