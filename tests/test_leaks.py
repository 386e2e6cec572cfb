"""Memory stays flat for any input and output, and for any number of failures.

Each kind of work runs in a separate process: first a warm-up, then three times the same number of messages. A leak
grows in each of the three, noise does not, so that the least growth counts: in blocks of Python's, and in bytes of the
process. VICIFAST_MESSAGES=1000000 makes it a million messages of each kind (minutes); by default it is a fraction, in
which a block or 70 bytes per message still show.
"""

from __future__ import annotations

import collections
import ctypes
import gc
import itertools
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vicifast import (
    Decoder,
    EnvelopeWriter,
    Framer,
    Message,
    MessageReader,
    Raw,
    Transcoder,
    decode,
    encode,
    from_json,
    from_msgpack,
    packet,
    to_json,
    to_msgpack,
)
from vicifast.errors import DecodeError, EncodeError
from vicifast.recording import Recording

MESSAGES = int(os.environ.get("VICIFAST_MESSAGES", "12000"))
WARM_UP = 4000  # messages, after which the caches are nearly full
BLOCKS = 500  # one in eight messages; the caches of three decoders still gain some
BYTES = 1 << 18

Work = Callable[[bytes], object]
KINDS: dict[str, Callable[[], Work]] = {}


def kind(make: Callable[[], Work]) -> Callable[[], Work]:
    KINDS[make.__name__.replace("_", "-")] = make
    return make


# --- operations on a message, valid or malformed ---


@kind
def functions() -> Work:
    calls = (decode, lambda data: decode(data, values=bytes, binary=("data",)), to_msgpack, to_json)
    return lambda data: [attempt(call, data) for call in calls]


@kind
def decoder() -> Work:
    readers = Decoder(), Decoder(values=bytes), Decoder(binary=("data", "version"))
    return lambda data: [attempt(reader.decode, given) for reader in readers for given in (data, bytearray(data))]


@kind
def transcoder() -> Work:
    plain, envelope = Transcoder("json", binary=("data",)), EnvelopeWriter("msgpack", "gw1", "1")
    readers = plain, Transcoder("msgpack", envelope=envelope, event="log")
    return lambda data: [attempt(reader.transcode, data) for reader in readers]


@kind
def message() -> Work:
    def read_all(data: bytes) -> None:
        message = Message(bytearray(data))
        message.to_dict()
        message.to_msgpack()
        for name, value in message.items():
            same = message[name] == message.get(name) or name in message or message.get_all(name)
            assert same and (not isinstance(value, Message) or value.get("no", "such") is None)
        assert pickle.loads(pickle.dumps(message)) == message and hash(message) and repr(message)

    return lambda data: attempt(read_all, data)


@kind
def encoding() -> Work:
    reader = Decoder()
    wrong = itertools.cycle([None, 1.5, [{}], ["\ud800"], {"n" * 256: "x"}, "v" * 65536, 10**5000, {1: 2}])

    def write(data: bytes) -> None:
        content = reader.decode(data)
        encode(content)
        packet(1, None, Message(data))
        attempt(encode, content | {"s": {"t": next(wrong)}})
        attempt(encode, collections.ChainMap(content, {"number": 10**30, "flag": True, "view": memoryview(data)}))

    return lambda data: attempt(write, data)


@kind
def other_formats() -> Work:
    def write(data: bytes) -> None:
        packed, shown = to_msgpack(data), to_json(data)
        for call, given in ((from_msgpack, packed), (from_json, shown)):
            attempt(call, given)
            attempt(call, given[: len(given) // 2])
            attempt(call, given.swapcase())

    def work(data: bytes) -> None:
        attempt(write, data)
        attempt(from_msgpack, data)
        attempt(from_json, data)

    return work


@kind
def framer() -> Work:
    framers = [Framer(Raw())]

    def work(data: bytes) -> None:
        if framers[0].error:
            framers[0] = Framer(Decoder(), {"log": Transcoder("json"), "list-sa": MessageReader()})
        stream = data if framers[0].pending > 9000 else frame(b"\1" + data) + frame(b"\7\3log" + data) + data[:9]
        with memoryview(framers[0]) as room:
            room[: len(stream) // 2] = stream[: len(stream) // 2]
        framers[0].received(len(stream) // 2)
        framers[0].feed(stream[len(stream) // 2 :])
        framers[0].packets()

    return work


@kind
def short_lived() -> Work:
    """Objects created for one message, some never used or not fully initialized."""

    def work(data: bytes) -> None:
        framer = Framer(Decoder(), {"log": Transcoder("msgpack", envelope=EnvelopeWriter("msgpack", "gw1", "1"))})
        framer.feed(frame(b"\7\3log" + data) + frame(b"\1" + data) + data)
        framer.packets()
        for wrong in (Decoder, Transcoder, MessageReader):
            with pytest.raises((TypeError, ValueError)):
                wrong("xml", values=int) if wrong is Transcoder else wrong(values=int)

    return work


@kind
def kept_errors() -> Work:
    kept: collections.deque[BaseException] = collections.deque(maxlen=50)

    def work(data: bytes) -> None:
        for call, given in (
            (decode, data[:-1]),
            (encode, {"a": {"b": None}}),
            (from_msgpack, data),
            (Message, b"\x09"),
        ):
            try:
                call(given)
            except (DecodeError, EncodeError) as error:
                kept.append(error)
                kept.append(pickle.loads(pickle.dumps(error)))

    return work


def attempt(call: Callable[[Any], object], given: object) -> None:
    try:
        call(given)
    except (DecodeError, EncodeError):
        pass


def frame(content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + content


# --- measuring, in a separate process ---


def traffic() -> Iterator[bytes]:
    """Yield indefinitely: real messages, damaged ones, and ones with new names and values."""
    rng = random.Random(1)
    paths = sorted((Path(__file__).parent / "data").glob("*.recording"))
    packets = [packet for path in paths for packet in Recording.load(path).packets("server")]
    real = [packet.message for packet in packets[::20] if packet.message and len(packet.message) < 1500]
    damaged = [damage(rng, message) for message in real for _ in range(4)]
    pattern = {f"key-00000000-{at}": f"value-00000000-{at}" for at in range(5)}
    unique = encode({"new-00000000": pattern | {"list": ["item-00000000"]}} | pattern)
    for number, (good, bad) in enumerate(zip(itertools.cycle(real), itertools.cycle(damaged))):
        yield from (good, bad, unique.replace(b"00000000", b"%08d" % number))


def damage(rng: random.Random, message: bytes) -> bytes:
    at = rng.randrange(len(message))
    return message[:at] + rng.choice([b"", b"\1", b"\5", b"\xff", rng.randbytes(3)]) + message[at + rng.randrange(3) :]


def growth(work: Work, count: int) -> tuple[int, int]:
    """The least growth in three times a third of `count` messages: blocks of Python's, bytes of the process."""
    messages = traffic()
    do(work, messages, WARM_UP)
    sizes = [size()]
    for _ in range(3):
        do(work, messages, count // 3)
        sizes.append(size())
    blocks = min(after[0] - before[0] for before, after in itertools.pairwise(sizes))
    return blocks, min(after[1] - before[1] for before, after in itertools.pairwise(sizes))


def do(work: Work, messages: Iterator[bytes], count: int) -> None:
    for data in itertools.islice(messages, count):
        work(data)


def size() -> tuple[int, int]:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return sys.getallocatedblocks(), pages * os.sysconf("SC_PAGE_SIZE")


def growth_of(name: str) -> tuple[int, int]:
    if not Path("/proc/self/statm").exists():
        pytest.skip("the size of a process is read from /proc/self/statm, which is not here")
    command = [sys.executable, __file__, name, str(MESSAGES)]
    shown = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60 + MESSAGES / 1000).stdout
    blocks, grown = map(int, shown.split())
    return blocks, grown


# --- tests ---


@pytest.mark.parametrize("name", list(KINDS))
def test_memory_is_flat(name: str) -> None:
    blocks, grown = growth_of(name)
    assert blocks < BLOCKS
    assert grown < BYTES


def leak_of_objects() -> Work:
    kept: list[bytes] = []
    return lambda data: kept.append(data + b"!")


def leak_of_memory() -> Work:
    return lambda data: ctypes.memset(allocate(100), 1, 100)


def allocate(count: int) -> int:
    ctypes.pythonapi.PyMem_RawMalloc.restype = ctypes.c_void_p
    address: int = ctypes.pythonapi.PyMem_RawMalloc(ctypes.c_size_t(count))
    return address


LEAKS = {"leak-of-objects": leak_of_objects, "leak-of-memory": leak_of_memory}


def test_leaks_are_detected() -> None:
    assert growth_of("leak-of-objects")[0] > MESSAGES // 4 > 4 * BLOCKS
    assert growth_of("leak-of-memory")[1] > BYTES


if __name__ == "__main__":
    print(*growth((KINDS | LEAKS)[sys.argv[1]](), int(sys.argv[2])))
