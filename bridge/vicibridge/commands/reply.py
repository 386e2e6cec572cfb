"""Sends a command's reply to the requester.

A single reply is one message. A streamed reply is a message per part, then an empty message with the headers
`Status`, `Description` and `Vici-Count` (ADR-47); `Vici-Collect: true` in the request combines the parts into one list.
An error is an empty message with `Nats-Service-Error-Code` and `Nats-Service-Error`, also after parts.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..bus.connection import NatsConnection, TooLarge
from ..contract.codecs import CODECS
from ..contract.names import COUNT_HEADER, DESCRIPTION_HEADER, NODE_HEADER, PART_HEADER, STATUS_HEADER, TOO_LARGE
from .request import Options, RequestError, encode_section

_PACE = 512 * 1024  # bytes of a streamed reply between two round trips to the server


class Reply:
    """One reply of at most `max_parts` parts and `max_bytes` in total; nothing is sent after `refuse`."""

    def __init__(self, connection: NatsConnection, reply: str, node: str, *, max_parts: int, max_bytes: int) -> None:
        self.parts = 0
        self.bytes = 0
        self._connection = connection
        self._reply = reply
        self._headers = {NODE_HEADER: node}
        self._max_parts = max_parts
        self._max_bytes = max_bytes
        self._options = Options("msgpack", False, 0)
        self._collected: list[bytes] = []
        self._unpaced = 0
        self._over = False

    def begin(self, options: Options) -> None:
        """Set the options of the request."""
        self._options = options

    async def single(self, section: Mapping[str, object]) -> None:
        await self._publish(encode_section(self._options.codec, section))

    async def part(self, data: bytes) -> None:
        """Send or collect one part; raises RequestError 413 over the limits."""
        self.parts += 1
        self.bytes += len(data)
        if self.parts > self._max_parts or self.bytes > self._max_bytes:
            most = f"{self._max_parts} parts and {self._max_bytes} bytes"
            raise RequestError(TOO_LARGE, f"the reply exceeds this bridge's limit of {most}")
        if not self._options.collect:
            await self._publish(data)
        elif self.bytes > self._connection.max_payload:
            raise TooLarge
        else:
            self._collected.append(data)

    async def end(self, response: Mapping[str, object]) -> None:
        """End a stream; a response with more keys than success and errmsg is sent before, marked as such."""
        count = {COUNT_HEADER: str(self.parts)}
        if self._options.collect:
            await self._publish(CODECS[self._options.codec].join(self._collected), count)
            return
        if set(response) - {"success", "errmsg"}:
            await self._publish(encode_section(self._options.codec, response), {PART_HEADER: "response"})
        await self._publish(b"", {STATUS_HEADER: "200", DESCRIPTION_HEADER: "OK", **count})

    async def refuse(self, refusal: RequestError) -> None:
        """End the reply with an error."""
        await self._publish(b"", {**refusal.headers(), COUNT_HEADER: str(self.parts)})
        self._over = True

    async def _publish(self, payload: bytes, headers: Mapping[str, str] | None = None) -> None:
        if self._over:
            return
        await self._connection.publish(self._reply, payload, headers={**self._headers, **(headers or {})})
        self._unpaced += len(payload)
        if self._unpaced > _PACE:
            self._unpaced = 0
            await self._connection.fence(5)
