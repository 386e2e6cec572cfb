"""Answers any command with the same stream of list-sa events: `python -m benchmarks.stream_server PATH MODE CORPUS`.

Blocking, one client at a time, every byte prepared in advance, so that a client waits as little as possible.
"""

from __future__ import annotations

import marshal
import socket
import sys
from pathlib import Path

from vicifast import _wire
from vicifast.recording import RequestSplitter

_CONFIRM = _wire.packet(_wire.EVENT_CONFIRM)
_REPLY = _wire.packet(_wire.CMD_RESPONSE)
_BLAST = 262144


def _packets(corpus: Path) -> list[tuple[bytes, bytes]]:
    """Header and body of each packet."""
    bodies = [bytes([_wire.EVENT, 7]) + b"list-sa" + message for message in marshal.loads(corpus.read_bytes())]
    return [(len(body).to_bytes(4, "big"), body) for body in bodies]


def _writes(packets: list[tuple[bytes, bytes]], mode: str) -> list[bytes]:
    if mode == "packets":
        return [part for packet in packets for part in packet]
    everything = b"".join(part for packet in packets for part in packet)
    return [everything[at : at + _BLAST] for at in range(0, len(everything), _BLAST)]


def _serve(client: socket.socket, writes: list[bytes]) -> None:
    splitter, send = RequestSplitter(), client.sendall
    while data := client.recv(65536):
        for kind, _, _ in splitter.feed(data):
            if kind != _wire.CMD_REQUEST:
                send(_CONFIRM)
                continue
            for part in writes:
                send(part)
            send(_REPLY)


def main() -> None:
    path, mode, corpus = sys.argv[1:]
    writes = _writes(_packets(Path(corpus)), mode)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(3)
        print("ready", flush=True)
        while True:
            client, _ = listener.accept()
            with client:
                _serve(client, writes)


if __name__ == "__main__":
    main()
