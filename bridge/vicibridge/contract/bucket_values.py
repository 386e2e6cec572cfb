"""The buckets of the state mirror, and their values: JSON, one object per key.

`BUCKETS` lists them. The key in `VICI_NODE`, of the bridge itself, is removed when the bridge is gone. Names in keys
are escaped as in subjects. Sections of charon (`sa`, `children`, `config`) have charon's keys and strings; a string
that is not valid UTF-8 is `{"$base64": ...}`. Times are nanoseconds since the epoch. Values that change with time alone
(`established`, `rekey-time`, `use-in` and so on) are as of `updated`: such a change is not written.

A key is absent if its last message has a header that `is_gone` recognizes, or no data; `Fleet.watch_nodes`,
`watch_sas` and `watch_conns` check that. For an expired key, such as that of a bridge that is gone, `KeyValue.get` of
nats-py 2.16 returns an entry whose `value` is None; for a key that is absent for another reason it raises
KeyNotFoundError or KeyDeletedError.

Other clients may write to a bucket too: `read` returns only values that have the form of a bridge's.
"""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from typing_extensions import TypedDict

from .forms import check
from .subjects import escape

SA, CONN, NODE = "VICI_SA", "VICI_CONN", "VICI_NODE"

_GONE = ("KV-Operation", "Nats-Marker-Reason")  # headers of a message without a value: deleted, purged or expired

Section = dict[str, Any]
"""A section of a VICI message: strings, lists of strings, sections."""


class Traffic(TypedDict):
    """Counters from the gateway's point of view; integers of up to 64 bits."""

    bytes_in: int
    packets_in: int
    bytes_out: int
    packets_out: int


class CountedValue(TypedDict):
    """The connection that a CHILD_SA in the IKE_SA of another connection is counted for."""

    conn: str
    before: Traffic
    """The part of its counters that is in `closed` of the connections that it was counted for before."""


class SaValue(TypedDict):
    """An IKE_SA that is up; its replacement has a new uniqueid and key, and keeps `since` and the traffic."""

    v: Literal[1]
    node: str
    boot: str
    """The run of the bridge that wrote this value."""
    ike: str
    """The name of the connection."""
    uniqueid: str
    state: str
    since: int
    """When it was established; if it was rekeyed, when the first IKE_SA was."""
    updated: int
    sa: Section
    """The IKE_SA as in list-sas, without its tasks and children."""
    children: dict[str, Section]
    """Its CHILD_SAs by uniqueid, as in list-sas, without those that were rekeyed or deleted."""
    counted: dict[str, CountedValue]
    """By uniqueid: the CHILD_SAs that are, or were for a time, counted for another connection than `ike`."""
    closed: dict[str, Traffic]
    """By name: the last counters of the CHILD_SAs that were replaced or closed."""
    totals: dict[str, Traffic]
    """By name: the sum of `closed` and the counters of `children`; never decreases."""


class ConnValue(TypedDict):
    """A connection that is configured, or has SAs.

    With `charon.reuse_ikesa`, the default, charon may create the CHILD_SAs of a connection in the IKE_SA of another
    connection to the same peer. `child_sas` and the traffic therefore count a CHILD_SA for the connection that
    configures its name: a connection may have children that are up, and no IKE_SA. If the connection of the IKE_SA
    configures a child of that name too, the CHILD_SA is counted there, because charon reports only the name.
    """

    v: Literal[1]
    node: str
    boot: str
    conn: str
    configured: bool | None
    """False: no longer configured, or not through VICI, while its SAs are still up. None: unknown until the next
    snapshot."""
    since: int
    """When the bridge first saw it, and `totals` began."""
    updated: int
    up: bool
    """Whether one of its IKE_SAs, or a CHILD_SA that is counted for it, is up."""
    changed: int
    """When the bridge last saw `up` change; before that, when the bridge first saw the connection."""
    ike_sas: int
    """The number of its own IKE_SAs that are up; 0 also if all its children are in IKE_SAs of other connections."""
    child_sas: dict[str, int]
    """The number of CHILD_SAs that are up, by name; 0 for a configured child without a CHILD_SA."""
    ambiguous: list[str]
    """Children that may be up although they are not counted here: another connection's IKE_SA has a CHILD_SA of that
    name, that connection does not configure it, and several others do. It is counted for the connection of the
    IKE_SA."""
    config: Section
    """The last known configuration as in list-conns; empty if unknown."""
    closed: dict[str, Traffic]
    totals: dict[str, Traffic]


class NodeValue(TypedDict):
    """A running bridge, written every `heartbeat` seconds.

    If `expires` is true, the server removes the key after three missed heartbeats. A server that cannot expire keys
    (before 2.11) keeps it: the bridge is gone if `updated` is older than three heartbeats.
    """

    v: Literal[1]
    node: str
    boot: str
    bridge: str
    """The version of the bridge."""
    charon: Literal["up", "down"]
    charon_version: str | None
    started: int
    updated: int
    heartbeat: float
    expires: bool
    mirror: Literal["complete", "incomplete"]
    """Incomplete while JetStream rejects or drops some of the node's keys, whose values are then outdated or absent."""
    reasons: list[str]
    """Why the mirror is incomplete, one sentence per bucket."""


class BucketSpec(NamedTuple):
    """One bucket: a key is the name of the node and a token for each of `words`; `value` is the type of its values."""

    name: str
    words: tuple[str, ...]
    value: type
    description: str


_BUCKETS = (
    BucketSpec(NODE, (), NodeValue, "Bridges that run: JSON with charon (up, down), versions, updated, heartbeat"),
    BucketSpec(
        CONN,
        ("conn",),
        ConnValue,
        "Connections: JSON with configured, ike_sas and child_sas (how many are up), config, totals",
    ),
    BucketSpec(
        SA,
        ("ike", "uniqueid"),
        SaValue,
        "IKE_SAs that are up: JSON with state, since, sa, children, closed, totals",
    ),
)
BUCKETS: Mapping[str, BucketSpec] = MappingProxyType({bucket.name: bucket for bucket in _BUCKETS})
"""Every bucket, by name."""
HEARTBEATS = 3
"""The number of missed heartbeats after which a bridge counts as gone."""


def dump(value: Mapping[str, object]) -> bytes:
    """Return a value as UTF-8 JSON."""
    try:
        return _json(value)
    except UnicodeEncodeError:
        return _json(tagged(value))


def is_gone(headers: Mapping[str, str] | None) -> bool:
    """Whether a bucket's message with these headers marks its key as absent."""
    return any(name in (headers or ()) for name in _GONE)


def is_present(value: NodeValue) -> bool:
    """Whether a value of VICI_NODE shows a running bridge."""
    # A server that expires keys has removed those of stopped bridges, however the clocks differ.
    return value["expires"] or time.time_ns() - value["updated"] < HEARTBEATS * value["heartbeat"] * 1e9


def load(data: bytes) -> Any:
    """Return the value that `dump` wrote; raise ValueError if `data` is not JSON."""
    try:
        return json.loads(data, object_hook=_untagged)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None


def read(bucket: str, key: str, data: bytes) -> Any:
    """Return the `SaValue`, `ConnValue` or `NodeValue` at a key, which other clients may have written too.

    Raises ValueError, which names bucket, key and reason, unless it has that form and belongs to the key.
    """
    try:
        value = load(data)
        check(value, BUCKETS[bucket].value)
        names = [value[word] for word in ("node", *BUCKETS[bucket].words)]
        if key != ".".join(map(escape, names)):
            raise ValueError(f"it belongs to another key: {'.'.join(map(escape, names))}")
        if bucket == SA and not _NUMBER.fullmatch(value["uniqueid"]):
            raise ValueError("uniqueid is not a number")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{bucket}: {key}: not a value of a bridge: {error}") from None
    return value


_NUMBER = re.compile("[0-9]{1,20}")


_COMPACT = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def _json(value: object) -> bytes:
    return _COMPACT.encode(value).encode()


def tagged(value: Any) -> Any:
    """Return the value with each string that is not valid UTF-8 as `{"$base64": ...}`."""
    if isinstance(value, Mapping):
        return {_raw(key).decode("utf-8", "replace"): tagged(item) for key, item in value.items()}
    if isinstance(value, list):
        return [tagged(item) for item in value]
    if not isinstance(value, str):
        return value
    try:
        return _raw(value).decode()
    except UnicodeDecodeError:
        return {"$base64": base64.b64encode(_raw(value)).decode()}


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _untagged(value: dict[str, Any]) -> Any:
    tagged = value.get("$base64") if len(value) == 1 else None
    return (
        base64.b64decode(tagged, validate=True).decode("utf-8", "surrogateescape") if isinstance(tagged, str) else value
    )
