"""A flooding fake charon: `python -m benchmarks.bridge_source PATH EVENT COUNT RATE CORPUS`.

It confirms every registration and answers every command with an empty message. For a line on standard input it sends
COUNT events to the connection that has registered EVENT, RATE per second, in one write per hundredth of a second.
"""

from __future__ import annotations

import itertools
import marshal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from vicifast import _wire
from vicifast.recording import RequestSplitter

_CONFIRM = _wire.packet(_wire.EVENT_CONFIRM)
_REPLY = _wire.packet(_wire.CMD_RESPONSE)
_PAUSE = 0.01  # seconds between two writes


def _writes(event: str, messages: list[bytes], count: int, rate: int) -> Iterator[bytes]:
    packets = [bytes([_wire.EVENT, len(event)]) + event.encode() + message for message in messages]
    framed = [len(packet).to_bytes(4, "big") + packet for packet in packets]
    at_once = max(1, int(rate * _PAUSE))
    block = b"".join(itertools.islice(itertools.cycle(framed), at_once))
    for _ in range(count // at_once):
        yield block
    if count % at_once:
        yield b"".join(itertools.islice(itertools.cycle(framed), count % at_once))


class _Source:
    def __init__(self, event: str) -> None:
        self._event = event
        self._client: socket.socket | None = None

    def serve(self, client: socket.socket) -> None:
        splitter = RequestSplitter()
        with client:
            while data := client.recv(65536):
                for kind, name, _ in splitter.feed(data):
                    if kind == _wire.EVENT_REGISTER and name == self._event:
                        self._client = client
                    client.sendall(_REPLY if kind == _wire.CMD_REQUEST else _CONFIRM)

    def flood(self, writes: Iterator[bytes]) -> None:
        assert self._client is not None
        due = time.monotonic()
        for part in writes:
            self._client.sendall(part)
            due = max(due + _PAUSE, time.monotonic() - 1)
            time.sleep(max(0.0, due - time.monotonic()))


def main() -> None:
    path, event, count, rate, corpus = sys.argv[1:]
    messages = marshal.loads(Path(corpus).read_bytes())
    source = _Source(event)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(8)
        threading.Thread(target=_accept, args=(listener, source), daemon=True).start()
        print("ready", flush=True)
        for _ in sys.stdin:
            source.flood(_writes(event, messages, int(count), int(rate)))


def _accept(listener: socket.socket, source: _Source) -> None:
    while True:
        client, _ = listener.accept()
        threading.Thread(target=source.serve, args=(client,), daemon=True).start()


if __name__ == "__main__":
    main()
