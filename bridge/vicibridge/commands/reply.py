"""The way back to who asked.

A single reply is one message. A streamed one is a message for each part, then an empty message with the headers
`Status`, `Description` and `Vici-Count` (ADR-47); `Vici-Collect: true` in the request gathers the parts into one list.
An error is an empty message with `Nats-Service-Error-Code` and `Nats-Service-Error`, whether parts went before or not.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..bus.connection import Link, TooLarge
from ..contract.names import COUNT_HEADER, DESCRIPTION_HEADER, NODE_HEADER, PART_HEADER, STATUS_HEADER, TOO_LARGE
from .request import Options, RequestError, encode_list, encode_section

_PACE = 512 * 1024  # bytes of a streamed reply between two round trips to the server


class Reply:
    """One answer, at most `max_parts` parts of `max_bytes` together; what comes after `refuse` is dropped."""

    def __init__(self, link: Link, reply: str, node: str, *, max_parts: int, max_bytes: int) -> None:
        self.parts = 0
        self.bytes = 0
        self._link = link
        self._reply = reply
        self._headers = {NODE_HEADER: node}
        self._max_parts = max_parts
        self._max_bytes = max_bytes
        self._options = Options("msgpack", False, 0)
        self._collected: list[bytes] = []
        self._unpaced = 0
        self._over = False

    def begin(self, options: Options) -> None:
        """Answer as the request wants it."""
        self._options = options

    async def single(self, section: Mapping[str, object]) -> None:
        await self._publish(encode_section(self._options.codec, section))

    async def part(self, data: bytes) -> None:
        """Send, or gather, one part; RequestError 413 when there are too many."""
        self.parts += 1
        self.bytes += len(data)
        if self.parts > self._max_parts or self.bytes > self._max_bytes:
            most = f"{self._max_parts} parts and {self._max_bytes} bytes"
            raise RequestError(TOO_LARGE, f"the reply has more than {most}, the most that this bridge sends")
        if not self._options.collect:
            await self._publish(data)
        elif self.bytes > self._link.max_payload:
            raise TooLarge
        else:
            self._collected.append(data)

    async def end(self, response: Mapping[str, object]) -> None:
        """End a stream. A response that says more than success goes before the end, marked as such."""
        count = {COUNT_HEADER: str(self.parts)}
        if self._options.collect:
            await self._publish(encode_list(self._options.codec, self._collected), count)
            return
        if set(response) - {"success", "errmsg"}:
            await self._publish(encode_section(self._options.codec, response), {PART_HEADER: "response"})
        await self._publish(b"", {STATUS_HEADER: "200", DESCRIPTION_HEADER: "OK", **count})

    async def refuse(self, refusal: RequestError) -> None:
        """End with an error."""
        await self._publish(b"", {**refusal.headers(), COUNT_HEADER: str(self.parts)})
        self._over = True

    async def _publish(self, payload: bytes, headers: Mapping[str, str] | None = None) -> None:
        if self._over:
            return
        await self._link.publish(self._reply, payload, headers={**self._headers, **(headers or {})})
        self._unpaced += len(payload)
        if self._unpaced > _PACE:
            self._unpaced = 0
            await self._link.fence(5)
