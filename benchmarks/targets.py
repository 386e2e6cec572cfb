"""The performance targets and their verdicts."""

from __future__ import annotations

from typing import NamedTuple

from .measure import Table
from .start import COMMANDS, FLEET


class Target(NamedTuple):
    """`ours` must be `at_least` times better than `peer`, or without a peer take `at_most`."""

    what: str
    table: str
    case: str
    ours: str
    peer: str = ""
    at_least: float = 0.0
    at_most: float = 0.0
    unit: str = "ms"


class Verdict(NamedTuple):
    """`value` is None if a side was not measured."""

    target: Target
    value: float | None
    reached: bool


TARGETS = [
    Target("decode, dropped", "decode-drop", "uniform", "vicifast Decoder", "python vici", 22),
    Target("decode, dropped", "decode-drop", "uniform", "vicifast Decoder", "msgspec.msgpack", 2),
    Target("encode", "encode", "uniform", "vicifast encode", "python vici", 30),
    Target("encode", "encode", "uniform", "vicifast encode", "ormsgpack", 1.6),
    Target("VICI to msgpack", "to-msgpack", "uniform", "vicifast Transcoder", "python vici, msgpack", 140),
    Target("five fields", "lazy", "uniform", "vicifast Message", "python vici", 45),
    Target("list-sas, blocking", "stream", "packets, CPU", "vicifast Session", "python vici", 15),
    Target("list-sas, asyncio", "stream", "packets, CPU", "vicifast AsyncSession", "python vici", 10),
    Target("list-sas of a real charon", "charon", "CPU", "vicifast Session", "python vici", 5),
    Target("list-sas of a real charon", "charon", "CPU", "vicifast AsyncSession", "python vici", 5),
    Target("bridge, log", "bridge-log", "CPU", "vicibridge, msgpack", "python vici, msgpack, nats-py", 15),
    Target("bridge, log, 150,000/s", "bridge-log", "wall", "vicibridge, msgpack", at_most=1e6 / 150_000, unit="µs"),
    Target("bridge, state", "bridge-state", "CPU", "vicibridge, msgpack", "python vici, msgpack, nats-py", 20),
    Target(
        *("bridge, state, 60,000/s", "bridge-state-flood", "wall", "vicibridge, msgpack"),
        at_most=1e6 / 60_000,
        unit="µs",
    ),
    *(
        Target(f"subscriber, {way}", f"subscribe-{way}", "CPU", "vicibridge, batch", "nats-py, msgpack", 5)
        for way in ("state", "log", "kept", "durable")
    ),
    Target("memory of a bridge", "gateways-memory", "one gateway", "vicibridge", at_most=38, unit="MB"),
    Target("memory of a gateway", "gateways-memory", "each further gateway", "vicibridge", at_most=0.4, unit="MB"),
    Target("600 gateways present", "gateways-present", "wall", "vicibridge", at_most=8, unit="s"),
    Target("import", "import", "CPU", "vicifast", at_most=25),
    *(Target("start", "start-vicifast", case, "vicifast", at_most=60) for case in COMMANDS),
    *(Target("start", "start-vicibridge", case, "vicibridge", at_most=120) for case in FLEET),
]


def judge(tables: list[Table]) -> list[Verdict]:
    """A verdict for each target whose table was measured."""
    by_name = {table.name: table for table in tables}
    return [_verdict(target, by_name[target.table]) for target in TARGETS if target.table in by_name]


def _verdict(target: Target, table: Table) -> Verdict:
    if target.peer:
        value = table.ratio(target.peer, target.ours, target.case)
        return Verdict(target, value, value is not None and value >= target.at_least)
    cell = table.rows.get(target.ours, {}).get(target.case)
    return Verdict(target, cell and cell.minimum, cell is not None and cell.minimum <= target.at_most)
