"""The slow, obvious codec that the fast one is compared with.

It is written from the protocol, not from the codec. `parse` gives a tree that hides nothing: a section is a
tuple of (name, value) pairs with duplicates kept, a list is a list of bytes, a value is bytes. The other
functions convert such a tree, or a message, to the documented result of the library.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeAlias

MAX_PACKET, MAX_NAME, MAX_VALUE, MAX_DEPTH = 524288, 255, 65535, 64
SECTION_START, SECTION_END, KEY_VALUE, LIST_START, LIST_ITEM, LIST_END = 1, 2, 3, 4, 5, 6
CMD_RESPONSE, CMD_UNKNOWN, EVENT_CONFIRM, EVENT_UNKNOWN, EVENT = 1, 2, 5, 6, 7

Tree = tuple[tuple[str, Any], ...]


class Malformed(Exception):
    """Not a VICI message; a correct DecodeError has an offset in `first..last`.

    It is one number where the place is unambiguous: a wrong element, nesting too deep, an early end.
    """

    def __init__(self, first: int, last: int) -> None:
        super().__init__(f"offset {first}..{last}")
        self.first, self.last = first, last


def _take(data: bytes, at: int, width: int) -> tuple[bytes, int]:
    """The bytes behind a big-endian length of `width` bytes at `at`, and where they end."""
    start = at + width
    end = start + int.from_bytes(data[at:start], "big")
    if start > len(data) or end > len(data):
        raise Malformed(at, len(data))
    return data[start:end], end


def _name(data: bytes, at: int) -> tuple[str, int]:
    raw, end = _take(data, at, 1)
    if any(byte < 0x20 or byte > 0x7E for byte in raw):
        raise Malformed(at, min(end + 2, len(data)))  # the following value may be truncated as well
    return raw.decode("ascii"), end


def parse(data: bytes) -> Tree:
    """The whole tree of a message; raises Malformed."""
    if len(data) > MAX_PACKET:
        raise Malformed(0, len(data))
    sections: list[tuple[str, list[tuple[str, Any]]]] = [("", [])]
    items: list[bytes] | None = None
    at = 0
    while at < len(data):
        kind, here, at = data[at], at, at + 1
        content = sections[-1][1]
        if items is not None:
            if kind == LIST_ITEM:
                value, at = _take(data, at, 2)
                items.append(value)
            elif kind == LIST_END:
                items = None
            else:
                raise Malformed(here, here)
        elif kind == SECTION_START:
            if len(sections) > MAX_DEPTH:
                raise Malformed(here, here)
            name, at = _name(data, at)
            sections.append((name, []))
        elif kind == SECTION_END and len(sections) > 1:
            name = sections.pop()[0]
            sections[-1][1].append((name, tuple(content)))
        elif kind == KEY_VALUE:
            name, at = _name(data, at)
            value, at = _take(data, at, 2)
            content.append((name, value))
        elif kind == LIST_START:
            name, at = _name(data, at)
            items = []
            content.append((name, items))
        else:
            raise Malformed(here, here)
    if items is not None or len(sections) > 1:
        raise Malformed(len(data), len(data))
    return tuple(sections[0][1])


def _convert(tree: Tree, text: Any, blob: Any, binary: Collection[str]) -> dict[str, Any]:
    message: dict[str, Any] = {}
    for name, value in tree:
        scalar = blob if name in binary else text
        if isinstance(value, tuple):
            message[name] = _convert(value, text, blob, ())
        else:
            message[name] = [scalar(item) for item in value] if isinstance(value, list) else scalar(value)
    return message


def plain(tree: Tree, values: type = str, binary: Collection[str] = ()) -> dict[str, Any]:
    """Return the result of `decode`."""

    def text(value: bytes) -> str | bytes:
        return value if values is bytes else value.decode("utf-8", "surrogateescape")

    return _convert(tree, text, bytes, binary)


def to_json(tree: Tree, binary: Collection[str] = ()) -> bytes:
    """Return the result of `to_json` for a section without duplicate names."""

    def blob(value: bytes) -> dict[str, str]:
        return {"$base64": base64.b64encode(value).decode("ascii")}

    def text(value: bytes) -> Any:
        found = text_or_bytes(value)
        return found if isinstance(found, str) else blob(found)

    shown = _convert(tree, text, blob, binary)
    return json.dumps(shown, ensure_ascii=False, separators=(",", ":")).encode()


def to_msgpack(tree: Tree, binary: Collection[str] = ()) -> bytes:
    """Return the result of `to_msgpack`, including duplicates."""
    import msgpack  # not at the top: the tests of the codec run without it

    return _pack(msgpack.Packer(use_bin_type=True), tree, binary)


def _pack(packer: Any, tree: Tree, binary: Collection[str]) -> bytes:
    packed = [packer.pack_map_header(len(tree))]
    for name, value in tree:
        scalar = bytes if name in binary else text_or_bytes
        packed.append(packer.pack(name))
        if isinstance(value, tuple):
            packed.append(_pack(packer, value, ()))
        elif isinstance(value, list):
            packed.append(packer.pack([scalar(item) for item in value]))
        else:
            packed.append(packer.pack(scalar(value)))
    return b"".join(packed)


def text_or_bytes(value: bytes) -> str | bytes:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value


def has_duplicates(tree: Tree) -> bool:
    names = [name for name, _ in tree]
    inside = (has_duplicates(value) for _, value in tree if isinstance(value, tuple))
    return len(set(names)) < len(names) or any(inside)


def encode(message: Mapping[str, Any]) -> bytes:
    """The bytes of a valid message; checks nothing."""
    out = b""
    for key, value in message.items():
        name = bytes([len(key)]) + key.encode("ascii")
        if isinstance(value, Mapping):
            out += b"\x01" + name + encode(value) + b"\x02"
        elif isinstance(value, list | tuple):
            out += b"\x04" + name + b"".join(b"\x05" + _scalar(item) for item in value) + b"\x06"
        else:
            out += b"\x03" + name + _scalar(value)
    return out


def _scalar(value: Any) -> bytes:
    if isinstance(value, bool):
        value = "yes" if value else "no"
    elif isinstance(value, int):
        value = str(value)
    raw = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else bytes(value)
    return len(raw).to_bytes(2, "big") + raw


def outline(tree: Tree, keys: Collection[str], level: int = 0) -> Tree:
    """Return the outline of a tree whose sections are at the level below `level`."""
    kept: list[tuple[str, Any]] = []
    for name, value in tree:
        if isinstance(value, tuple) and level < 3:
            named = level == 2 and any(key == "name" and isinstance(own, bytes) for key, own in value)
            kept.append(("" if named else name, outline(value, keys, level + 1)))
        elif isinstance(value, bytes) and (name == "name" if level == 3 else level < 3 and name in keys):
            kept.append((name, value))
    return tuple(kept)


def packets(stream: bytes) -> tuple[list[tuple[int, str | None, bytes | None]], bool]:
    """Return the packets that a daemon sent, messages as bytes, and whether a violation follows them."""
    found: list[tuple[int, str | None, bytes | None]] = []
    at = 0
    while len(stream) - at >= 4:
        length = int.from_bytes(stream[at : at + 4], "big")
        if not 0 < length <= MAX_PACKET:
            return found, True
        content = stream[at + 4 : at + 4 + length]
        if len(content) < length:
            return found, False
        at += 4 + length
        kind, rest = content[0], content[1:]
        if kind == CMD_RESPONSE:
            found.append((kind, None, rest))
        elif kind in (CMD_UNKNOWN, EVENT_CONFIRM, EVENT_UNKNOWN) and not rest:
            found.append((kind, None, None))
        elif kind == EVENT and (named := _event(rest)):
            found.append((kind, *named))
        else:
            return found, True
    return found, False


def _event(rest: bytes) -> tuple[str, bytes] | None:
    """Name and message of an event."""
    if not rest or len(rest) <= rest[0]:
        return None
    name, message = rest[1 : 1 + rest[0]], rest[1 + rest[0] :]
    return (name.decode(), message) if all(0x20 <= byte <= 0x7E for byte in name) else None


# --- NATS ---

_MSG = re.compile(
    rb"MSG (?P<inbox>[!-~]+)\.(?P<number>0|[1-9]\d{0,18}) (?P<sid>0|[1-9]\d{0,18}) (?P<size>0|[1-9]\d{0,18})\r\n"
)
_STORED = re.compile(
    rb'\{"stream":"[^"\\\x00-\x1f]+"(?:,"domain":"[^"\\\x00-\x1f]*")?,"seq":([1-9]\d{0,18})(,"duplicate": true)?\}'
)
_SUBJECT = re.compile(r"(?!.*\.\.)(?!\.)(?!.*(?<![^.])[*>](?![^.]))[!-~]+(?<!\.)")
_HEADERS = re.compile(rb"([!-9;-~]+: [^\x00-\x1f\x7f]*\r\n)*")


def published(reply: str, subject: str, payload: bytes, headers: bytes) -> bytes:
    """Return a message as a client sends it."""
    if not headers:
        return f"PUB {subject} {reply} {len(payload)}\r\n".encode() + payload + b"\r\n"
    head = b"NATS/1.0\r\n" + headers + b"\r\n"
    return f"HPUB {subject} {reply} {len(head)} {len(head + payload)}\r\n".encode() + head + payload + b"\r\n"


def can_be_published(subject: str, headers: bytes) -> bool:
    """Whether these are a subject without wildcards and whole lines of headers."""
    return bool(_SUBJECT.fullmatch(subject) and _HEADERS.fullmatch(headers))


def acknowledged(data: bytes, watched: Mapping[int, str]) -> tuple[int, dict[int, dict[int, int]]]:
    """Return the size of the acknowledgements at the beginning of what a server sent, and them by subscription."""
    used, found = 0, dict[int, dict[int, int]]()
    while line := _MSG.match(data, used):
        end = line.end() + int(line["size"])
        answer = _STORED.fullmatch(data[line.end() : end])
        sid = int(line["sid"])
        if data[end : end + 2] != b"\r\n" or not answer or watched.get(sid, "").encode() != line["inbox"]:
            break
        found.setdefault(sid, {})[int(line["number"])] = int(answer[1])
        used = end + 2
    return used, found


_LINES = (
    re.compile(rb"MSG ([!-~]+) (0|[1-9]\d{0,18}) (?:([!-~]+) )?()(0|[1-9]\d{0,18})\r\n"),
    re.compile(rb"HMSG ([!-~]+) (0|[1-9]\d{0,18}) (?:([!-~]+) )?(0|[1-9]\d{0,18}) (0|[1-9]\d{0,18})\r\n"),
)
Delivered: TypeAlias = tuple[str, str, bytes, dict[str, str] | None]


def delivered(data: bytes, watched: Iterable[int]) -> tuple[int, bool, list[tuple[int, list[Delivered]]]]:
    """Return the size of the messages at the beginning of what a server sent, whether one is cut, and them."""
    used, found = 0, list[tuple[int, list[Delivered]]]()
    while line := _LINES[0].match(data, used) or _LINES[1].match(data, used):
        sid, head, size = int(line[2]), int(line[4] or 0), int(line[5])
        end = line.end() + size
        if sid not in watched or head > size or size >= 2**31 - 1:
            break
        if len(data) < end + 2:
            return used, True, found
        headers, payload = data[line.end() : line.end() + head], data[line.end() + head : end]
        lines = headers[10:-2]
        if head and (head > 16384 or headers != b"NATS/1.0\r\n" + lines + b"\r\n" or not _HEADERS.fullmatch(lines)):
            break
        if data[end : end + 2] != b"\r\n":
            break
        pairs = [one.partition(b": ") for one in lines.split(b"\r\n")[:-1]]
        named = {name.decode(): value.strip().decode("utf-8", "replace") for name, _, value in pairs}
        message = line[1].decode(), (line[3] or b"").decode(), payload, named if head else None
        if not found or found[-1][0] != sid:
            found.append((sid, []))
        found[-1][1].append(message)
        used = end + 2
    return used, False, found
