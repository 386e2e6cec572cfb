"""The seeds of the fuzzer: real traffic in every form of input. Run as a program, it writes them to a directory."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

from generate import RECORDINGS, recorded

from vicifast import EnvelopeWriter, Transcoder, to_json, to_msgpack
from vicifast.recording import Recording

REGRESSIONS = sorted((Path(__file__).parent / "regressions").glob("*.input"))
"""Inputs that once went wrong; their names say how."""

LONGEST = 2048  # short inputs make a fast fuzzer
PER_RECORDING = 12  # recordings repeat themselves


def seeds() -> Iterator[bytes]:
    """Inputs of `checks.check`."""
    for path in RECORDINGS:
        messages = recorded(path)
        for message in [message for message in messages if len(message) <= LONGEST][
            :: len(messages) // PER_RECORDING + 1
        ]:
            yield b"m" + message
            yield b"p" + to_msgpack(message)
            yield b"j" + to_json(message)
            for format in ("msgpack", "json"):
                transcoder = Transcoder(format, envelope=EnvelopeWriter(format, "gw", "b"), event="ike-updown")
                yield b"e" + transcoder.transcode(message) + transcoder.transcode(b"")
        stream = Recording.load(path).stream("server")
        yield b"s\0\0" + stream[:LONGEST]
        yield b"s\1\1" + stream[: LONGEST // 4]
    yield from (b"M" + part for part in (b"r\3\1k\0\1v", b"s\3\0\0\0", b"l\5\0\0", b"r\1\0\2"))
    ack = b'MSG _INBOX.a.12 3 34\r\n{"stream":"VICI","domain":"hub","seq":9,"duplicate": true}\r\n'
    ack = ack.replace(b"34", b"%d" % (len(ack) - 24))
    yield b"a\x20" + ack + ack.replace(b"a.12 3", b"b.13 4") + b"PING\r\n"
    head = b"NATS/1.0\r\nNats-Msg-Id: gw1.1.2\r\nA: \xc3\xa4\r\n\r\n"
    message = b"HMSG vici.gw1.event.x 3 _INBOX.a %d %d\r\n" % (len(head), len(head) + 3) + head + b"abc\r\n"
    yield b"d\x50" + message + b"MSG s 4 0\r\n\r\n" + message.replace(b"x 3", b"x 4") + b"PING\r\n"
    yield b"bvici.gw1.event.a=2E.up\0Nats-Msg-Id: gw1.1.2\r\nA: \xc3\xa4\r\n\0payload"
    yield b"ba.*\0\0x"
    for path in REGRESSIONS:
        yield path.read_bytes()


if __name__ == "__main__":
    for seed in seeds():
        (Path(sys.argv[1]) / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
