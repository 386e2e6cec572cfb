"""Counters of CHILD_SAs, and their sums by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from ..contract.bucket_values import Section, Traffic

Sums: TypeAlias = dict[str, Traffic]

NOTHING = Traffic(bytes_in=0, packets_in=0, bytes_out=0, packets_out=0)
_MOST = 2**64 - 1


def traffic_of(child: Section) -> Traffic:
    """Return the counters in a section of a CHILD_SA; missing or invalid values count as 0."""
    return Traffic(
        bytes_in=number(child.get("bytes-in")),
        packets_in=number(child.get("packets-in")),
        bytes_out=number(child.get("bytes-out")),
        packets_out=number(child.get("packets-out")),
    )


def number(text: object) -> int:
    """Return the number in a value of charon, at most 64 bits; an invalid value counts as 0."""
    return min(_MOST, int(text)) if isinstance(text, str) and text.isdecimal() and len(text) <= 20 else 0


def checked(sums: Sums) -> Sums:
    """Check sums that another client may have written; raises ValueError, TypeError or KeyError if invalid."""
    for name in sums:
        name.encode("utf-8", "surrogateescape")
    return {name: counters(each) for name, each in sums.items()}


def counters(value: Traffic) -> Traffic:
    """Check counters that another client may have written; raises ValueError, TypeError or KeyError if invalid."""
    return Traffic(
        bytes_in=whole(value["bytes_in"]),
        packets_in=whole(value["packets_in"]),
        bytes_out=whole(value["bytes_out"]),
        packets_out=whole(value["packets_out"]),
    )


def whole(value: object) -> int:
    """Return a number of 64 bits; raises ValueError for anything else."""
    if not isinstance(value, int) or not 0 <= value <= _MOST:
        raise ValueError(f"{value!r} is not a counter")
    return value


def plus(one: Traffic, other: Traffic) -> Traffic:
    """Return the sum, capped at 64 bits, the maximum of msgpack."""
    return Traffic(
        bytes_in=min(_MOST, one["bytes_in"] + other["bytes_in"]),
        packets_in=min(_MOST, one["packets_in"] + other["packets_in"]),
        bytes_out=min(_MOST, one["bytes_out"] + other["bytes_out"]),
        packets_out=min(_MOST, one["packets_out"] + other["packets_out"]),
    )


def minus(one: Traffic, other: Traffic) -> Traffic:
    """Return `one` minus `other`, at least 0."""
    return Traffic(
        bytes_in=max(0, one["bytes_in"] - other["bytes_in"]),
        packets_in=max(0, one["packets_in"] - other["packets_in"]),
        bytes_out=max(0, one["bytes_out"] - other["bytes_out"]),
        packets_out=max(0, one["packets_out"] - other["packets_out"]),
    )


def add(sums: Sums, name: str, more: Traffic) -> None:
    sums[name] = plus(sums[name], more) if name in sums else more


def add_all(sums: Sums, more: Mapping[str, Traffic]) -> None:
    for name, each in more.items():
        add(sums, name, each)


def together(one: Mapping[str, Traffic], other: Mapping[str, Traffic]) -> Sums:
    sums = dict(one)
    add_all(sums, other)
    return sums
