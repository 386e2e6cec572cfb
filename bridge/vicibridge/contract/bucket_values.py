"""What lies in the buckets of the state mirror: JSON, one object per key.

    VICI_SA    <node>.<ike>.<uniqueid>   `SaValue`: an established IKE_SA, its CHILD_SAs, what went through them
    VICI_CONN  <node>.<conn>             `ConnValue`: a connection, whether it is up, how many SAs it has, the traffic
    VICI_NODE  <node>                    `NodeValue`: the bridge itself; the key goes when the bridge does

Names in keys are escaped as in subjects. Sections of charon (`sa`, `children`, `config`) have charon's keys and texts;
a text that is no UTF-8 is `{"$base64": ...}`. Times are nanoseconds since the epoch. What runs with time in a section
(`established`, `rekey-time`, `use-in` and so on) is as of `updated`: a value is not written again for that alone.

A key is absent when its last message has a header that `is_gone` knows, or no data. `Fleet.watch_nodes` and its like
do that for you. `KeyValue.get` of nats-py 2.16 returns an entry whose `value` is None for a key that has expired, such
as that of a bridge that is gone, where it raises KeyNotFoundError or KeyDeletedError for one that is absent otherwise.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any, Literal

from typing_extensions import TypedDict

SA, CONN, NODE = "VICI_SA", "VICI_CONN", "VICI_NODE"

_GONE = ("KV-Operation", "Nats-Marker-Reason")  # headers of what is no value: deleted, purged, or expired

Section = dict[str, Any]
"""A section of a VICI message: texts, lists of texts, sections."""


class Traffic(TypedDict):
    """Counters from the gateway's point of view; whole numbers up to 64 bits."""

    bytes_in: int
    packets_in: int
    bytes_out: int
    packets_out: int


class CountedValue(TypedDict):
    """The connection that counts a CHILD_SA in the IKE_SA of another connection."""

    conn: str
    before: Traffic
    """The part of its counters that is in `closed` of the connections that counted it before."""


class SaValue(TypedDict):
    """An IKE_SA that is up; the one that replaces it has a new uniqueid and key, and keeps `since` and the traffic."""

    v: Literal[1]
    node: str
    boot: str
    """The start of the bridge that wrote this."""
    ike: str
    """The name of the connection."""
    uniqueid: str
    state: str
    since: int
    """When it was established; the first one, if it was rekeyed."""
    updated: int
    sa: Section
    """What list-sas says of the IKE_SA, without its tasks and children."""
    children: dict[str, Section]
    """Its CHILD_SAs by uniqueid, as list-sas shows them; those that were rekeyed or deleted are not here."""
    counted: dict[str, CountedValue]
    """By uniqueid: the CHILD_SAs that another connection than `ike` counts, or counted for a time."""
    closed: dict[str, Traffic]
    """By name: the last counters of the CHILD_SAs that were replaced or closed."""
    totals: dict[str, Traffic]
    """By name: `closed` and the counters of `children` together; never less than before."""


class ConnValue(TypedDict):
    """A connection that is configured, or has SAs.

    With `charon.reuse_ikesa`, the default, charon creates the CHILD_SAs of a connection in an IKE_SA that another
    connection has to the same peer. So `child_sas` and the traffic count CHILD_SAs where their name is configured: a
    connection may have children that are up, and no IKE_SA. A connection that configures a child of that name itself
    counts all in its own IKE_SAs, as charon reports nothing but the name.
    """

    v: Literal[1]
    node: str
    boot: str
    conn: str
    configured: bool | None
    """False: not any more, or not by VICI, and its SAs are still up. None: not known before the next snapshot."""
    since: int
    """When the bridge first saw it, which is when `totals` began."""
    updated: int
    up: bool
    """Whether an IKE_SA of it, or a CHILD_SA that it counts, is up."""
    changed: int
    """When `up` last changed, as far as the bridge saw it; else when the bridge first saw the connection."""
    ike_sas: int
    """How many IKE_SAs of its own are up; 0 also when all its children are in those of other connections."""
    child_sas: dict[str, int]
    """How many CHILD_SAs are up, by name; 0 for a configured child without one."""
    ambiguous: list[str]
    """Children that may be up nevertheless: another connection's IKE_SA has a CHILD_SA of that name, that connection
    does not configure it, and several others do. It is counted at the connection of the IKE_SA."""
    config: Section
    """What list-conns says, or said last; empty while that is not known."""
    closed: dict[str, Traffic]
    totals: dict[str, Traffic]


class NodeValue(TypedDict):
    """A bridge that runs, written every `heartbeat` seconds.

    When `expires` is true the server removes the key after three heartbeats without one. On a server that cannot
    (before 2.11) the key stays: a bridge is gone when `updated` is older than that.
    """

    v: Literal[1]
    node: str
    boot: str
    bridge: str
    """Its version."""
    charon: Literal["up", "down"]
    charon_version: str | None
    started: int
    updated: int
    heartbeat: float
    expires: bool
    mirror: Literal["complete", "incomplete"]
    """Incomplete while JetStream does not take some of the node's keys, so that old values are there, or none."""


HEARTBEATS = 3
"""So many without a sign of life, and the bridge is taken for gone."""


def dump(value: Mapping[str, object]) -> bytes:
    """Return a value as JSON."""
    try:
        return _json(value)
    except UnicodeEncodeError:
        return _json(tagged(value))


def is_gone(headers: Mapping[str, str] | None) -> bool:
    """Whether a message of a bucket with these headers says that there is no value any more."""
    return any(name in (headers or ()) for name in _GONE)


def load(data: bytes) -> Any:
    """Return the value in `data`, the texts as `dump` got them; ValueError when it is no JSON."""
    return json.loads(data, object_hook=_untagged)


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def tagged(value: Any) -> Any:
    """Return the value with each text that is no UTF-8 as `{"$base64": ...}`."""
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
