"""The codec in threads, in subinterpreters, and called recursively."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from generate import collecting, only_where_c_code_is_interrupted

from vicifast import (
    Decoder,
    EnvelopeWriter,
    Framer,
    Message,
    Transcoder,
    _wire,
    decode,
    encode,
    from_json,
    from_msgpack,
    packet,
    to_json,
    to_msgpack,
)
from vicifast.errors import DecodeError

ROUNDS = 300


def message_of(number: int) -> dict[str, Any]:
    """A message that shares its names with those of other numbers, and no value."""
    # As long as those of other numbers, so that only the bytes differ; shapes are cached from four keys on.
    keys = {f"key-{at}": f"{number:04}-{at}" for at in range(6)}
    return {"sas": {f"sa-{number:04}": keys | {"ts": [f"{number:04}", "ü"], "child": keys}}, f"n{number:04}": "x"}


@pytest.fixture(autouse=True)
def switching_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def in_threads(work: Callable[[int], None], count: int = 6) -> None:
    """Run `work` with the numbers of the threads, all at once; the first error is raised here."""
    errors: list[BaseException] = []
    start = threading.Barrier(count)

    def run(number: int) -> None:
        try:
            start.wait(timeout=30)
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    if errors:
        raise errors[0]


# --- threads ---


def test_threads_share_the_functions() -> None:
    def work(number: int) -> None:
        message = message_of(number)
        data = encode(message)
        shown, packed = json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode(), to_msgpack(data)
        for _ in range(ROUNDS):
            assert encode(message) == from_json(shown) == from_msgpack(packed) == data
            assert decode(data) == Message(data).to_dict() == message
            assert to_json(data) == shown
            with pytest.raises(DecodeError):
                decode(data + b"\x09")

    in_threads(work)


def test_a_decoder_for_each_thread() -> None:
    def work(number: int) -> None:
        decoder, framer = Decoder(), Framer(Decoder())
        for at in range(ROUNDS):
            message = message_of(number * ROUNDS + at)
            assert decoder.decode(encode(message)) == message
            framer.feed(packet(1, None, message))
            assert framer.packets() == [(1, None, message)]

    in_threads(work)


def test_threads_share_one_decoder() -> None:
    """Allowed, and correct, although the messages of one thread evict cache entries of another."""
    decoder, raw, transcoder = Decoder(), Decoder(values=bytes), Transcoder("json")

    def work(number: int) -> None:
        for at in range(ROUNDS):
            message = message_of(number * ROUNDS + at)
            data = encode(message)
            assert decoder.decode(data) == message
            assert raw.decode(data) == decode(data, values=bytes)
            assert transcoder.transcode(data) == to_json(data)
            with pytest.raises(DecodeError):
                decoder.decode(data[:-3])

    in_threads(work)


def test_framers_in_threads_share_their_readers() -> None:
    decoder, envelope = Decoder(), EnvelopeWriter("json", "gw", "b")
    transcoder = Transcoder("json", envelope=envelope)
    numbers: list[int] = []

    def work(number: int) -> None:
        framer = Framer(decoder, {"shared": transcoder, "own": Transcoder("json", envelope=envelope)})
        for at in range(ROUNDS):
            message = message_of(number * ROUNDS + at)
            framer.feed(packet(1, None, message) + packet(7, "shared", message) + packet(7, "own", message))
            decoded, *written = [content for _, _, content in framer.packets()]
            envelopes = [json.loads(content) for content in written]  # type: ignore[arg-type]
            assert [decoded, *(one["data"] for one in envelopes)] == [message] * 3
            numbers.extend(one["seq"] for one in envelopes)

    in_threads(work)
    assert sorted(numbers) == list(range(1, len(numbers) + 1)) and len(numbers) == envelope.seq


def test_threads_share_one_message() -> None:
    content = message_of(1)
    message = Message(encode(content))

    def work(number: int) -> None:
        for _ in range(ROUNDS):
            assert message.get("sas", "sa-0001", "key-3") == "0001-3"
            assert message.to_dict() == content

    in_threads(work)


# --- recursion ---


def decode_and_keep(decoder: Decoder) -> None:
    """Keep the decoded objects, as an object that reuses freed memory does not run the garbage collector."""
    messages = [message_of(number) for number in range(ROUNDS)]
    assert [decoder.decode(encode(message)) for message in messages] == messages


@only_where_c_code_is_interrupted
def test_a_decoder_that_is_called_while_it_decodes() -> None:
    """The garbage collector may run in the middle of a message, and with it any finalizers and callbacks."""
    decoder = Decoder()
    inner = message_of(7)
    data = encode(inner)
    called = 0

    def again() -> None:
        nonlocal called
        called += 1
        assert decoder.decode(data) == inner

    with collecting(again):
        decode_and_keep(decoder)
    assert called


@only_where_c_code_is_interrupted
def test_a_decoder_initialized_again_while_it_decodes() -> None:
    decoder: Any = Decoder()
    refused: list[RuntimeError] = []

    def initialize_again() -> None:
        try:
            decoder.__init__(values=bytes)
        except RuntimeError as error:
            refused.append(error)
        else:
            decoder.__init__()

    with collecting(initialize_again):
        decode_and_keep(decoder)
    assert refused


# --- interpreters ---

WORK = """
from vicifast import Decoder, Framer, Message, Transcoder, decode, encode, from_json, from_msgpack, packet
from vicifast import to_json, to_msgpack
from vicifast.errors import DecodeError, EncodeError

decoder, transcoder, framer = Decoder(), Transcoder("json"), Framer(Decoder())
for number in range(ROUNDS):
    message = message_of(number)
    data = encode(message)
    assert decode(data) == decoder.decode(data) == Message(data).to_dict() == message
    assert from_msgpack(to_msgpack(data)) == from_json(to_json(data)) == data
    assert transcoder.transcode(data) == to_json(data)
    framer.feed(packet(7, "log", message))
    assert framer.packets() == [(7, "log", message)]
    for error, call, wrong in ((DecodeError, decode, data[:-1]), (EncodeError, encode, {"k": None})):
        try:
            call(wrong)
        except error as raised:
            assert type(raised) is error
        else:
            raise AssertionError(call)
"""


def run_in_interpreter(own_lock: bool, code: str) -> None:
    """Run code in a new interpreter, and end that with all objects of the code alive."""
    if importlib.util.find_spec("_interpreters"):  # from 3.13 on
        interpreters = importlib.import_module("_interpreters")
        number = interpreters.create("isolated" if own_lock else "legacy")
    else:
        interpreters = importlib.import_module("_xxsubinterpreters")
        number = interpreters.create(isolated=own_lock)
    try:
        failed = interpreters.run_string(number, code)
        assert failed is None, failed.formatted
    finally:
        interpreters.destroy(number)


@pytest.mark.parametrize("own_lock", [False, True], ids=["shared lock", "own lock"])
def test_interpreters(own_lock: bool) -> None:
    """One after the other, and several at once, which run in parallel with their own locks."""
    if own_lock and sys.version_info < (3, 12):
        pytest.skip("an interpreter with its own lock needs Python 3.12")
    source = str(Path(_wire.__file__).parents[1])
    head = f"from __future__ import annotations\nimport sys\nsys.path[:0] = [{source!r}]\nROUNDS = {ROUNDS}\n"
    code = head + inspect.getsource(message_of) + WORK
    for _ in range(2):
        run_in_interpreter(own_lock, code)
    in_threads(lambda number: run_in_interpreter(own_lock, code), 3)
    exec(code, {})  # and this interpreter still works
