"""Messages, hostile bytes and a hostile collector for the tests of the codec."""

from __future__ import annotations

import array
import gc
import os
import random
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from vicifast import from_json
from vicifast.errors import DecodeError, EncodeError
from vicifast.recording import Recording

SEED = int(os.environ.get("VICIFAST_SEED") or random.SystemRandom().getrandbits(32))

# Few names, so that they repeat and exercise the decoder's caches; and any legal ones.
_common = st.sampled_from(["", "a", "b", "net", "child-sas", "local_ts", "data", "0", '"', "\\", "~", " "])
names = _common | st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=20)
_texts = st.sampled_from(["", "yes", "10.0.0.0/8", "ä", "\u2028", "𝄞", "\0", "\x1f\x7f", "v" * 300, "ä" * 200])
# Not UTF-8: a stray byte, a surrogate, an overlong form, a code point too high, a character cut short.
_blobs = st.sampled_from([b"\xff", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80", b"a\xf0\x9d\x84"])
values = (_texts | st.text(max_size=20)).map(str.encode) | _blobs | st.binary(max_size=40)
_contents = values | st.lists(values, max_size=4)


def _pairs(content: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(st.tuples(names, content), max_size=5).map(tuple)


trees = _pairs(_contents | _pairs(_contents | _pairs(_contents)))
"""Trees as `reference.parse` gives them, names used twice included."""


def packed(tree: Any) -> bytes:
    """The bytes of a tree; unlike a message it can use a name twice."""
    out = bytearray()
    for name, value in tree:
        label = bytes([len(name)]) + name.encode()
        if isinstance(value, tuple):
            out += b"\x01" + label + packed(value) + b"\x02"
        elif isinstance(value, list):
            items = (b"\x05" + len(item).to_bytes(2, "big") + item for item in value)
            out += b"\x04" + label + b"".join(items) + b"\x06"
        else:
            out += b"\x03" + label + len(value).to_bytes(2, "big") + value
    return bytes(out)


def exact(data: bytes) -> array.array[int]:
    """The bytes in memory of exactly their size, so that the address sanitizer detects reads past their end.

    A bytes object has a spare NUL, and an array made of one has room to grow; its slice has neither.
    """
    return array.array("B", data)[:]


def noise(rng: random.Random) -> bytes:
    """Bytes that look a little like a message: mostly small numbers, so elements begin and lengths fit."""
    size = rng.randrange(60)
    return bytes(rng.randrange(256) if rng.random() < 0.1 else rng.randrange(8) for _ in range(size))


def mutated(rng: random.Random, data: bytes) -> bytes:
    """A message with one to three small errors."""
    wounded = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(wounded) + 1)
        wound = rng.randrange(6)
        if wound == 0:
            del wounded[at:]
        elif wound == 1:
            del wounded[at : at + rng.randint(1, 4)]
        elif wound == 2:
            wounded[at:at] = rng.randbytes(rng.randint(1, 4))
        elif wound == 3:
            wounded[at:at] = wounded[at : at + rng.randint(1, 30)]
        elif wound == 4 and at < len(wounded):
            wounded[at] ^= 1 << rng.randrange(8)
        elif at < len(wounded):
            wounded[at] = rng.randrange(8)
    return bytes(wounded)


def check_json_both_ways(data: bytes) -> bool:
    """Check that the slow path of `from_json`, which reads names with escapes, gives the same result.

    Returns False if the text does not begin with an object that has a name: there is no place for an escape.
    """
    found = re.match(rb'[ \t\r\n]*\{[ \t\r\n]*"(?=[ !#-\[\]-~].)', data, re.DOTALL)
    if not found:
        return False
    at = found.end()
    slow = _outcome(data[:at] + b"\\u%04x" % data[at] + data[at + 1 :])
    if isinstance(slow, tuple) and isinstance(slow[1], int) and slow[1] > at:
        slow = slow[0], slow[1] - 5
    assert _outcome(data) == slow, data
    return True


def _outcome(data: bytes) -> bytes | tuple[str, int | None]:
    """Return the result of `from_json`, or the text and offset of its error."""
    try:
        return from_json(exact(data))
    except DecodeError as error:
        return error.reason, error.offset
    except EncodeError as error:
        return str(error), None


only_where_c_code_is_interrupted = pytest.mark.skipif(
    sys.version_info >= (3, 12), reason="from Python 3.12 on nothing is collected within C code"
)


@contextmanager
def collecting(call: Callable[[], object]) -> Iterator[None]:
    """Run the garbage collector as often as possible, and call this each time, as finalizers and callbacks would."""
    threshold = gc.get_threshold()

    def called(phase: str, info: dict[str, int]) -> None:
        call()

    gc.callbacks.append(called)
    gc.set_threshold(1)
    try:
        yield
    finally:
        gc.callbacks.remove(called)
        gc.set_threshold(*threshold)


RECORDINGS = sorted((Path(__file__).parent / "data").rglob("*.recording"))
"""Real traffic, where it has been recorded."""


def recorded(path: Path) -> list[bytes]:
    """Every message of a recording, requests and replies."""
    recording = Recording.load(path)
    packets = [*recording.packets("client"), *recording.packets("server")]
    return [packet.message for packet in packets if packet.message is not None]
