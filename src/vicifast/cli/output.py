"""The formats of output: packets for programs, text and tables for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from rich.console import Console, RenderableType

from .. import _wire
from .._wire import Message


class Packet(NamedTuple):
    """A message from charon, and the event it came with; without one it is a reply."""

    message: Message
    event: str | None = None


@dataclass(frozen=True)
class Format:
    """How to write a packet; `write` gets `named` when events of several names come, which must be told apart."""

    help: str
    write: Callable[[Packet, bool], bytes]


def _json(packet: Packet, named: bool) -> bytes:
    if named:
        name = json.dumps(packet.event).encode()
        return b'{"event":%s,"message":%s}\n' % (name, packet.message.to_json())
    return packet.message.to_json() + b"\n"


def _msgpack(packet: Packet, named: bool) -> bytes:
    if named:
        name = (packet.event or "").encode()
        head = b"\x82\xa5event\xd9" + bytes([len(name)]) + name + b"\xa7message"  # a map of 2, name as str 8
        return head + packet.message.to_msgpack()
    return packet.message.to_msgpack()


def _raw(packet: Packet, named: bool) -> bytes:
    kind = _wire.CMD_RESPONSE if packet.event is None else _wire.EVENT
    return _wire.packet(kind, packet.event, packet.message)


FORMATS: dict[str, Format] = {
    "json": Format("Write JSON, a line for each message.", _json),
    "msgpack": Format("Write msgpack, one message after the other.", _msgpack),
    "raw": Format("Write the packets of VICI as charon sent them.", _raw),
}


class Output:
    """Writes packets in the chosen format; `form` is None when people read."""

    def __init__(self, form: str | None, console: Console) -> None:
        self._format: Format | None = None if form is None else FORMATS[form]
        self.console = console

    @property
    def for_people(self) -> bool:
        return self._format is None

    def packet(self, packet: Packet, named: bool = False) -> None:
        """Write one packet at once."""
        if self._format is None:
            for line in lines(packet.message.to_dict()):
                self.text(line)
        else:
            stream = sys.stdout.buffer
            stream.write(self._format.write(packet, named))
            stream.flush()

    def text(self, *line: str) -> None:
        """Write a line for people, not broken at the width of the terminal."""
        self.console.print(*line, soft_wrap=True)

    def show(self, what: RenderableType) -> None:
        """Write a table, or text broken at the width of the terminal."""
        self.console.print(what, crop=False)


def shown(value: object) -> str:
    """A value as people can read it: bytes by their length and beginning, what could steer a terminal escaped."""
    if isinstance(value, list | tuple):
        return ", ".join(map(shown, value))
    data = (
        value if isinstance(value, bytes) else ("" if value is None else str(value)).encode("utf-8", "surrogateescape")
    )
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return f"<{len(data)} bytes: {data[:16].hex()}{'...' if len(data) > 16 else ''}>"
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def lines(section: Mapping[str, object], indent: str = "") -> Iterator[str]:
    """A message as indented lines."""
    for key, value in section.items():
        name = indent + (shown(key) or '""')
        if isinstance(value, Mapping):
            yield f"{name}:"
            yield from lines(value, indent + "  ")
        else:
            yield f"{name}: {shown(value)}".rstrip()
