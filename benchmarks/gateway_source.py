"""Many fake charons in one process: `python -m benchmarks.gateway_source DIRECTORY COUNT`.

Charon number N listens at DIRECTORY/N. Each confirms every registration and answers every command with an empty
message; it prints a line when all listen, and runs until it is killed.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from vicifast import _wire
from vicifast.recording import RequestSplitter

_CONFIRM = _wire.packet(_wire.EVENT_CONFIRM)
_REPLY = _wire.packet(_wire.CMD_RESPONSE)


class _Charon(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._splitter = RequestSplitter()

    def data_received(self, data: bytes) -> None:
        requests = self._splitter.feed(data)
        self._transport.write(b"".join(_REPLY if kind == _wire.CMD_REQUEST else _CONFIRM for kind, _, _ in requests))


async def _serve(directory: Path, count: int) -> None:
    loop = asyncio.get_running_loop()
    for number in range(count):
        await loop.create_unix_server(_Charon, directory / str(number))
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]), int(sys.argv[2])))
