"""An Internet host without a key: sends the first message of IKE to the charon on the right of a lab."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .lab import Lab

_ADDRESS = "10.99.0.2"
_GROUP = 18  # of Diffie-Hellman, MODP-8192


async def fail(lab: Lab, count: int, *, port: int = 15500, rate: float = 500.0) -> None:
    """Begin `count` negotiations, `rate` a second, with a proposal that no connection of the lab has."""
    await asyncio.to_thread(lab.left.namespace.run, sys.executable, __file__, str(port), str(count), str(1 / rate))


def packet() -> bytes:
    """Return an IKE_SA_INIT request of IKEv2."""
    key_length = struct.pack(">HH", 0x800E, 128)
    transforms = _transform(1, 12, key_length) + _transform(2, 5) + _transform(3, 12) + _transform(4, _GROUP)
    proposal = struct.pack(">BxHBBBB", 0, 8 + len(transforms), 1, 1, 0, 4) + transforms
    exchange = struct.pack(">Hxx", _GROUP) + os.urandom(32)
    payloads = _payload(34, proposal) + _payload(40, exchange) + _payload(0, os.urandom(32))
    return os.urandom(8) + bytes(8) + struct.pack(">BBBBII", 33, 0x20, 34, 0x08, 0, 28 + len(payloads)) + payloads


def _transform(kind: int, number: int, attribute: bytes = b"") -> bytes:
    last = kind == 4
    return struct.pack(">BxHBxH", 0 if last else 3, 8 + len(attribute), kind, number) + attribute


def _payload(following: int, body: bytes) -> bytes:
    return struct.pack(">BxH", following, 4 + len(body)) + body


def main(port: int, count: int, pause: float) -> None:
    """Send `count` requests to charon, from this network namespace."""
    marker = b"" if port == 500 else bytes(4)  # which charon expects on every other port
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _ in range(count):
            sock.sendto(marker + packet(), (_ADDRESS, port))
            time.sleep(pause)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
