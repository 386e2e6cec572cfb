"""What a key-value bucket holds, entry by entry."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js.api import DeliverPolicy

from .link import Link
from .mirror import Key
from .values import is_gone

_TIMEOUT = 5.0  # seconds for the next entry
_INACTIVE = 300.0  # seconds after which the server forgets a listing that was broken off


class Listing:
    """What is in a bucket: `take` gets key, revision and value, None of a key that is deleted, as each entry comes.

    KeyValue.watch would gather all of it in memory first, with the marks of keys that were deleted within an hour.
    """

    def __init__(self, bucket: str, take: Callable[[Key, int, bytes | None], None]) -> None:
        self._bucket = bucket
        self._take = take
        self._moved = asyncio.Event()
        self._left = -1  # entries to come, as far as is known

    async def run(self, link: Link, node: str, *, values: bool) -> None:
        """Return when everything that is there has been taken; TimeoutError when that does not go on."""
        subscription = await link.jetstream.subscribe(
            f"$KV.{self._bucket}.{node}.>",
            stream=f"KV_{self._bucket}",
            cb=self._on_entry,
            ordered_consumer=True,
            deliver_policy=DeliverPolicy.LAST_PER_SUBJECT,
            headers_only=not values,
            inactive_threshold=_INACTIVE,
        )
        try:
            info = await subscription.consumer_info()
            if not info.num_pending and not (info.delivered and info.delivered.consumer_seq):
                self._left = 0
            while self._left:
                self._moved.clear()
                async with asyncio.timeout(_TIMEOUT):
                    await self._moved.wait()
        finally:
            with suppress(NatsError):
                await subscription.unsubscribe()

    async def _on_entry(self, message: Msg) -> None:
        metadata = message.metadata
        key = self._bucket, message.subject.removeprefix(f"$KV.{self._bucket}.")
        self._take(key, metadata.sequence.stream, None if is_gone(message.headers) else message.data)
        self._left = metadata.num_pending
        self._moved.set()
