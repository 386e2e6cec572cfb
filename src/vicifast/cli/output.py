"""Output formats: encoded messages for programs, text and tables for terminals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import click

from .. import _wire
from .._wire import Message
from ..standard_output import write_bytes

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


@cache
def results() -> Console:
    """Return the console of standard output, for tables; importing rich takes as long as a whole command without it."""
    return _console(stderr=False)


@cache
def notes() -> Console:
    """Return the console of standard error, for notes and progress."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    return Console(stderr=stderr, markup=False, highlight=False, emoji=False)


class ReceivedMessage(NamedTuple):
    """A message from charon: an event, or a reply when `event` is None."""

    message: Message
    event: str | None = None


class Format(NamedTuple):
    """Writes one message; `named` adds the event name, for output that mixes several events."""

    help: str
    write: Callable[[ReceivedMessage, bool], bytes]


def _json(received: ReceivedMessage, named: bool) -> bytes:
    if named:
        import json

        name = json.dumps(received.event).encode()
        return b'{"event":%s,"message":%s}\n' % (name, received.message.to_json())
    return received.message.to_json() + b"\n"


def _msgpack(received: ReceivedMessage, named: bool) -> bytes:
    if named:
        name = (received.event or "").encode()
        head = b"\x82\xa5event\xd9" + bytes([len(name)]) + name + b"\xa7message"  # a map of 2, name as str 8
        return head + received.message.to_msgpack()
    return received.message.to_msgpack()


def _raw(received: ReceivedMessage, named: bool) -> bytes:
    kind = _wire.CMD_RESPONSE if received.event is None else _wire.EVENT
    return _wire.packet(kind, received.event, received.message)


FORMATS: dict[str, Format] = {
    "json": Format("Write JSON, one line per message.", _json),
    "msgpack": Format("Write concatenated msgpack messages.", _msgpack),
    "raw": Format("Write VICI packets as charon sent them.", _raw),
}


class Output:
    """Writes messages in the chosen format, or as readable text when `form` is None."""

    def __init__(self, form: str | None) -> None:
        self._format: Format | None = None if form is None else FORMATS[form]

    @property
    def for_people(self) -> bool:
        return self._format is None

    def message(self, received: ReceivedMessage, named: bool = False) -> None:
        """Write one message and flush."""
        if self._format is None:
            for line in lines(received.message.to_dict()):
                self.text(line)
        else:
            write_bytes(self._format.write(received, named))

    def text(self, line: str) -> None:
        """Write a line, not wrapped at the width of the terminal."""
        click.echo(line)

    def show(self, what: RenderableType) -> None:
        """Write a table, or text wrapped at the width of the terminal."""
        results().print(what, crop=False)


def shown(value: object) -> str:
    """A value as readable text: `escaped`, or the length and first bytes of one that is not UTF-8."""
    if isinstance(value, list | tuple):
        return ", ".join(map(shown, value))
    data = (
        value if isinstance(value, bytes) else ("" if value is None else str(value)).encode("utf-8", "surrogateescape")
    )
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return f"<{len(data)} bytes: {data[:16].hex()}{'...' if len(data) > 16 else ''}>"
    return escaped(text)


def escaped(text: str) -> str:
    """A line with bytes that are not UTF-8 and terminal control characters escaped, so that the rest stays readable."""
    if text.isprintable():
        return text
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def lines(section: Mapping[str, object], indent: str = "") -> Iterator[str]:
    """A message as indented lines."""
    for key, value in section.items():
        name = indent + (shown(key) or '""')
        if isinstance(value, Mapping):
            yield f"{name}:"
            yield from lines(value, indent + "  ")
        else:
            yield f"{name}: {shown(value)}".rstrip()
