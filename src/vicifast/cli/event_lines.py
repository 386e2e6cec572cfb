"""Events as human-readable lines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, assert_never

from .. import _wire
from .._wire import Message
from ..results import Alert, ChildRekey, ChildUpDown, IkeRekey, IkeSa, IkeUpdate, IkeUpDown, LogLine, parse_event
from .output import escaped


def event_lines(name: str, message: Mapping[str, Any] | Message) -> list[str]:
    """An event as readable lines."""
    try:
        event = parse_event(name, message)
    except ValueError:
        return [f"{name} {escaped(_wire.to_json(_wire.encode(message)).decode())}"]
    match event:
        case LogLine():
            return log_lines(event)
        case IkeUpDown(ike, direction):
            text = f"{direction} {_ike(ike)}"
        case ChildUpDown(ike, child, direction):
            ends = " === ".join(" ".join(selectors) for selectors in (child.local_ts, child.remote_ts))
            text = f"{direction} {child.name} #{child.uniqueid} {ends} of {ike.name} #{ike.uniqueid}"
        case IkeRekey(old, new):
            text = f"{_ike(new)}, was #{old.uniqueid}"
        case ChildRekey(ike, before, after):
            text = f"{after.name} #{after.uniqueid}, was #{before.uniqueid}, of {ike.name} #{ike.uniqueid}"
        case IkeUpdate(ike):
            text = f"{_ike(ike)}, now {event.local_host} === {event.remote_host}"
        case Alert(kind, sa):
            text = kind if sa is None else f"{kind} {_ike(sa)}"
        case _:
            assert_never(event)
    extra = f" {json.dumps(event.extra)}" if event.extra and isinstance(event, Alert) else ""
    return [escaped(f"{name} {text}{extra}")]


def log_lines(line: LogLine) -> list[str]:
    """A log message as charon writes it to files."""
    thread = "" if line.thread is None else f"{line.thread:02}"
    sa = "" if line.ikesa_name is None else f"<{line.ikesa_name}|{line.ikesa_uniqueid}> "
    return [escaped(f"{thread}[{line.group}] {sa}{text}") for text in line.msg.splitlines() or [""]]


def _ike(sa: IkeSa) -> str:
    ends = f"{sa.local_host}[{sa.local_id}] === {sa.remote_host}[{sa.remote_id}]"
    return f"{sa.name} #{sa.uniqueid} {ends}"
