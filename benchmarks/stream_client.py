"""One client of the stream benchmark: `python -m benchmarks.stream_client CLIENT PATH COUNT` prints its times."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import sys
from collections.abc import Iterable
from typing import Any

from vicifast import _wire

from .corpus import plain
from .measure import Clock


def _digest(messages: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for message in messages:
        digest.update(json.dumps(plain(message)).encode())
    return digest.hexdigest()


def _python_vici(path: str, count: int) -> tuple[Clock, int, str]:
    import vici  # type: ignore[import-untyped]

    return _list_sas(vici, path)


def _compat(path: str, count: int) -> tuple[Clock, int, str]:
    from vicifast import compat

    return _list_sas(compat, path)


def _list_sas(vici: Any, path: str) -> tuple[Clock, int, str]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        session = vici.Session(sock)
        digest, got = _digest(session.list_sas()), 0
        with Clock() as clock:
            for _ in session.list_sas():
                got += 1
    return clock, got, digest


def _session(path: str, count: int) -> tuple[Clock, int, str]:
    import vicifast

    connect: Any = vicifast.Session
    with connect(path) as session:
        digest, got = _digest(session.stream("list-sas")), 0
        with Clock() as clock:
            for _ in session.stream("list-sas"):
                got += 1
    return clock, got, digest


async def _async_session(path: str) -> tuple[Clock, int, str]:
    from vicifast.aio import AsyncSession

    async with AsyncSession(path) as session:
        digest, got = _digest([message async for message in session.stream("list-sas")]), 0
        with Clock() as clock:
            async for _ in session.stream("list-sas"):
                got += 1
    return clock, got, digest


def _discard(path: str, count: int) -> tuple[Clock, int, str]:
    """The lower bound: the kernel's share of the others' time."""
    request = b"".join(
        _wire.packet(kind, name)
        for kind, name in (
            (_wire.EVENT_REGISTER, "list-sa"),
            (_wire.CMD_REQUEST, "list-sas"),
            (_wire.EVENT_UNREGISTER, "list-sa"),
        )
    )
    buffer = bytearray(262144)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        sock.sendall(request)
        framer, answers, size = _wire.Framer(_wire.Raw()), 0, 0
        while answers < 3:  # confirm, reply, confirm
            data = sock.recv(65536)
            size += len(data)
            framer.feed(data)
            answers += sum(kind != _wire.EVENT for kind, _, _ in framer.packets())
        with Clock() as clock:
            sock.sendall(request)
            while size > 0:
                size -= sock.recv_into(buffer)
    return clock, count, ""


def main() -> None:
    client, path, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    if client == "vicifast AsyncSession":
        clock, got, digest = asyncio.run(_async_session(path))
    else:
        runs = {
            "vicifast Session": _session,
            "vicifast compat": _compat,
            "python vici": _python_vici,
            "receive and discard": _discard,
        }
        clock, got, digest = runs[client](path, count)
    if got != count:
        raise SystemExit(f"{client} got {got} of {count} messages")
    print(json.dumps({"CPU": clock.cpu, "wall": clock.wall, "digest": digest}))


if __name__ == "__main__":
    main()
