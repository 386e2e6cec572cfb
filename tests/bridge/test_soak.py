"""The account of `make soak`: it finds an unreported loss among any reported ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from soak.account import AS_SPAN, BY_NUMBER, UNREPORTED, WITH_BRIDGE, WITH_SERVER, Account
from soak.ledger import GapReport
from soak.notes import Fault, Notes
from vicibridge.client import Envelope
from vicibridge.events.backlog import KILLED
from vicibridge.events.log_publisher import STOPPED

TOGETHER = 100  # lines per moment; here there is one moment per second


def notes(moments: int, gone: Iterable[int] = (), later_boot: int | None = None, numbered: bool = True) -> Notes:
    """Notes in which all lines arrive except `gone`, with or without numbers; `later_boot` begins another run."""
    seen, seq, boot = Notes(), 0, "b1"
    lost = set(gone)
    for number in range(1, moments * TOGETHER + 1):
        now = float((number - 1) // TOGETHER)
        seen.ledgers["log"].sent(now, True)
        if number == later_boot:
            seq, boot = 0, "b2"
        seq += numbered or number not in lost
        if number not in lost:
            seen.ledgers["log"].took(number, Envelope("gw1", boot, seq, 0, "log", {}, ""), now)
    return seen


def gap_report(**values: Any) -> GapReport:
    unknown = dict.fromkeys(("count", "first", "last")) | dict.fromkeys(("since", "until"), float("nan"))
    return GapReport(**{"kind": "log", "boot": "b1", "cause": "", **unknown, **values})


def causes(seen: Notes) -> dict[str, int]:
    return {cause: count for cause, count in Account("log", seen.ledgers["log"], seen).make().causes.items() if count}


LOST = range(301, 351)


@pytest.mark.parametrize(
    ("gap", "expected"),
    [
        ({"count": 50, "first": 301, "last": 350}, {BY_NUMBER: 50}),
        ({"count": 50, "first": 250, "last": 900}, {BY_NUMBER: 50}),
        ({"count": 40, "first": 301, "last": 340}, {BY_NUMBER: 40, UNREPORTED: 10}),
        ({"count": 49, "first": 250, "last": 900}, {UNREPORTED: 50}),  # it is unknown which 49
        ({"count": 50, "first": 301, "last": 350, "boot": "b0"}, {UNREPORTED: 50}),
        ({"count": 50, "first": 301, "last": 350, "kind": "state"}, {UNREPORTED: 50}),
        (
            {"kind": "all", "since": 2.0, "until": 5.0},
            {UNREPORTED: 50},
        ),  # they had numbers, so charon did not lose them
    ],
)
def test_numbered_lines(gap: dict[str, Any], expected: dict[str, int]) -> None:
    seen = notes(10, LOST)
    assert causes(seen) == {UNREPORTED: 50}
    seen.gaps.append(gap_report(**gap))
    assert causes(seen) == expected


def test_unnumbered_lines() -> None:
    seen = notes(10, LOST, numbered=False)
    assert causes(seen) == {UNREPORTED: 50}
    seen.gaps.append(gap_report(count=50, first=301, last=350))
    assert causes(seen) == {UNREPORTED: 50}
    seen.gaps.append(gap_report(kind="all", since=5.5, until=6.0))  # too late
    assert causes(seen) == {UNREPORTED: 50}
    seen.gaps.append(gap_report(kind="all", since=4.5, until=5.0))
    assert causes(seen) == {AS_SPAN: 50}


def test_server_killed() -> None:
    seen = notes(10, LOST)
    seen.faults.append(Fault("nats killed", 7.0, 8.0))
    assert causes(seen) == {UNREPORTED: 50}
    seen.faults.append(Fault("nats killed", 3.0, 8.0))
    assert causes(seen) == {WITH_SERVER: 50}


@pytest.mark.parametrize(
    ("gap", "expected"),
    [
        ({"cause": KILLED}, {WITH_BRIDGE: 50}),
        ({"cause": KILLED, "boot": "b0"}, {UNREPORTED: 50}),
        ({"cause": KILLED, "first": 301}, {WITH_BRIDGE: 50}),
        ({"cause": KILLED, "first": 302}, {UNREPORTED: 50}),  # the report shows that number 301 was stored
        ({"cause": STOPPED, "kind": "all", "count": 60}, {WITH_BRIDGE: 50}),
        ({"cause": STOPPED, "count": 20}, {WITH_BRIDGE: 20, UNREPORTED: 30}),
    ],
)
def test_bridge_ended(gap: dict[str, Any], expected: dict[str, int]) -> None:
    seen = notes(10, LOST, later_boot=351)
    assert causes(seen) == {UNREPORTED: 50}
    seen.gaps.append(gap_report(**gap))
    assert causes(seen) == expected


def test_first_events_of_a_run_have_numbers() -> None:
    seen = notes(10, LOST, later_boot=331)
    seen.gaps.append(gap_report(cause=KILLED))
    assert causes(seen) == {WITH_BRIDGE: 30, UNREPORTED: 20}
    seen.gaps.append(gap_report(boot="b2", count=20, first=1, last=20))
    assert causes(seen) == {WITH_BRIDGE: 30, BY_NUMBER: 20}
