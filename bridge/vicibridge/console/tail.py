"""`vicibridge tail`."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

import click

from vicifast.cli.common import until_interrupted
from vicifast.cli.output import escaped, shown
from vicifast.errors import ViciError

from ..contract import bucket_values
from ..contract.subjects import kind_of
from .common import EPILOG, Reach, reaches, warn

if TYPE_CHECKING:
    from ..client import Envelope, Events, Fleet, MissingEvents

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_COLOURS = {"alert": "red", "gap": "red", "status": "yellow", "resync": "yellow", "audit": "magenta"}
_COLOURS |= {"up": "green", "down": "red", "failed": "yellow"}


class Filter(NamedTuple):
    """Which envelopes to show."""

    groups: tuple[str, ...]
    level: int | None
    pattern: re.Pattern[str] | None

    def lines(self, envelope: Envelope) -> list[str]:
        """Return the lines of an envelope that pass the filter."""
        if envelope.event == "log":
            if self.groups and str(envelope.data.get("group", "")).upper() not in self.groups:
                return []
            if self.level is not None and level_of(envelope) > self.level:
                return []
        lines = text_of(envelope)
        return [line for line in lines if self.pattern.search(line)] if self.pattern else lines


def level_of(envelope: Envelope) -> int:
    """Return the level of a log line, 0 if it has none."""
    level = envelope.data.get("level")
    return int(level) if isinstance(level, str) and re.fullmatch("-?[0-9]", level) else 0


def text_of(envelope: Envelope) -> list[str]:
    """Return an envelope as human-readable lines."""
    from vicifast.cli.event_lines import event_lines

    with contextlib.suppress(ViciError):  # a bridge's own events have numbers and null as well
        return event_lines(envelope.event, envelope.data)
    return [escaped(f"{envelope.event} {bucket_values.dump(envelope.data).decode()}")]


def coloured(envelope: Envelope, lines: Sequence[str]) -> str:
    """Return lines of an envelope with its time, node and colours."""
    clock = datetime.fromtimestamp(envelope.time // 1_000_000 / 1000).strftime("%H:%M:%S.%f")[:-3]
    head = f"{click.style(clock, dim=True)} {click.style(shown(envelope.node), fg='cyan')} "
    if envelope.event == "log":
        return "".join(f"{head}{click.style(line, dim=True)}\n" for line in lines)
    colour = _COLOURS.get(envelope.event) or _COLOURS.get(kind_of(envelope.event, envelope.subject))
    return "".join(f"{head}{click.style(line, fg=colour)}\n" for line in lines)


def parse_since(ctx: click.Context, param: click.Parameter, value: str | None) -> datetime | None:
    if value is None:
        return None
    found = re.fullmatch(r"(\d+)([smhd])", value)
    if found:
        return datetime.now(UTC) - timedelta(**{_UNITS[found[2]]: int(found[1])})
    try:
        return datetime.fromisoformat(value).astimezone(UTC)
    except ValueError:
        raise click.BadParameter(
            f"{value!r} is neither an age like 90s, 10m, 2h or 7d nor a time like 2026-01-31T12:00"
        ) from None


def parse_pattern(ctx: click.Context, param: click.Parameter, value: str | None) -> re.Pattern[str] | None:
    try:
        return None if value is None else re.compile(value)
    except re.error as error:
        raise click.BadParameter(f"invalid regular expression: {error}") from None


@click.command(epilog=EPILOG)
@click.option("--node", "nodes", multiple=True, metavar="NAME", help="Show only this gateway.")
@click.option(
    "--event",
    "events",
    multiple=True,
    metavar="NAME",
    help="Show only this event, such as ike-updown, child-updown.down or gap.",
)
@click.option("--ike", metavar="NAME", help="Show only events of this connection, without the log.")
@click.option("--group", "groups", multiple=True, metavar="GROUP", help="Show only this log group, such as IKE.")
@click.option("--level", type=click.IntRange(-1, 4), help="Show log lines up to this level.")
@click.option("--pattern", callback=parse_pattern, metavar="REGEX", help="Show only lines that match.")
@click.option("--since", callback=parse_since, metavar="TIME", help="Start with stored events from then (10m, 2h).")
@click.option("--count", type=click.IntRange(1), help="Stop after this number of envelopes.")
@click.option("--json", "as_json", is_flag=True, help="Write JSON, one line per envelope.")
@reaches
def tail(
    reach: Reach,
    nodes: tuple[str, ...],
    events: tuple[str, ...],
    ike: str | None,
    groups: tuple[str, ...],
    level: int | None,
    pattern: re.Pattern[str] | None,
    since: datetime | None,
    count: int | None,
    as_json: bool,
) -> None:
    """Show the fleet's events and log as they happen, until Ctrl-C.

    --since reads events from JetStream, which does not store the log. Lost events, found by their sequence numbers, are
    reported on standard error.

    \b
    vicibridge tail --event child-updown --event ike-updown.failed
    vicibridge tail --node gw1 --event log --group IKE --level 1 --pattern 'retransmit|timeout'
    vicibridge tail --since 2h --ike site-001 --json
    """
    if since is not None and "log" in events:
        raise click.UsageError("--since cannot be used with --event log: JetStream does not store the log")
    wanted = Filter(tuple(group.upper() for group in groups), level, pattern)
    if not events and ike is None:
        events = ("log",) if groups or level is not None else ()

    async def follow(fleet: Fleet) -> None:
        log = since is None and not events and ike is None
        try:
            subscription = fleet.subscribe(nodes=nodes, events=events, ike=ike, log=log, start=since)
        except ValueError as error:
            raise click.UsageError(str(error)) from None
        async with subscription as source:
            await write(source, wanted, count, as_json, whole=not events and ike is None)

    with until_interrupted():
        reach.run(follow)


async def write(source: Events, wanted: Filter, count: int | None, as_json: bool, whole: bool) -> None:
    """Write envelopes, at most `count`; report missing state events if `whole`, that is, if all of them are read."""
    from ..client import Completeness

    check = Completeness()
    missing: set[MissingEvents] = set()
    async for batch in batches(source):
        text = ""
        for envelope in batch:
            if whole and envelope.kind == "state":
                check.add(envelope)
            lines = wanted.lines(envelope)
            if not lines:
                continue
            text += bucket_values.dump(envelope.to_dict()).decode() + "\n" if as_json else coloured(envelope, lines)
            if count is not None and (count := count - 1) == 0:
                break
        click.echo(text, nl=False)
        for gap in set(check.gaps()) - missing:
            warn(str(gap))
            missing.add(gap)
        if count == 0:
            return


async def batches(source: Events) -> AsyncIterator[list[Envelope]]:
    """Yield the envelopes that arrived; report invalid payloads and dropped messages on standard error."""
    from ..client import SlowConsumer

    while True:
        try:
            yield await source.batch()
        except (SlowConsumer, ValueError) as error:
            warn(str(error))
