"""Values of the mirror as a bridge would write them, for tests that need no bridge."""

from __future__ import annotations

import time
from typing import Any

from vicibridge.contract.bucket_values import ConnValue, NodeValue, SaValue, dump

BASE: dict[str, Any] = {"v": 1, "boot": "b"}


def sa(node: str = "gw1", ike: str = "a", uniqueid: str = "1", **more: Any) -> SaValue:
    return SaValue(
        **{  # type: ignore[typeddict-item]
            **BASE,
            "node": node,
            "ike": ike,
            "uniqueid": uniqueid,
            "state": "ESTABLISHED",
            "since": 1,
            "updated": time.time_ns(),
            "sa": {"uniqueid": uniqueid, "state": "ESTABLISHED"},
            "children": {},
            "counted": {},
            "closed": {},
            "totals": {},
            **more,
        }
    )


def conn(node: str = "gw1", name: str = "a", **more: Any) -> ConnValue:
    return ConnValue(
        **{  # type: ignore[typeddict-item]
            **BASE,
            "node": node,
            "conn": name,
            "configured": True,
            "since": 1,
            "updated": 1,
            "up": False,
            "changed": 1,
            "ike_sas": 0,
            "child_sas": {},
            "ambiguous": [],
            "config": {},
            "closed": {},
            "totals": {},
            **more,
        }
    )


def node(name: str = "gw1", **more: Any) -> NodeValue:
    return NodeValue(
        **{  # type: ignore[typeddict-item]
            **BASE,
            "node": name,
            "bridge": "1.0",
            "charon": "up",
            "charon_version": "6.0.1",
            "started": 1,
            "updated": time.time_ns(),
            "heartbeat": 10.0,
            "expires": True,
            "mirror": "complete",
            "reasons": [],
            **more,
        }
    )


def sa_value(*names: str, **more: Any) -> bytes:
    return dump(sa(*names, **more))


def conn_value(*names: str, **more: Any) -> bytes:
    return dump(conn(*names, **more))


def node_value(name: str = "gw1", **more: Any) -> bytes:
    return dump(node(name, **more))
