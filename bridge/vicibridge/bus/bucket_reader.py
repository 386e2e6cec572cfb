"""Reads the entries of a key-value bucket by batched direct gets, which leave nothing behind in JetStream.

Servers before 2.11 and buckets without `allow_direct` do not support these, and for a bucket with a history they would
return all of it. In these cases a temporary consumer lists the bucket.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime
from typing import NamedTuple, Self, TypeAlias

from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js.api import DeliverPolicy
from nats.js.errors import APIError

from ..contract.bucket_values import is_gone
from .connection import NatsConnection

_TIMEOUT = 5.0  # seconds for the next entry
_PAGE = 500  # entries
_PAGE_BYTES = 4 * 1024 * 1024


class Entry(NamedTuple):
    """The last message of a key; `value` is None if that is a deletion marker, which was written at `removed`."""

    key: str
    revision: int
    value: bytes | None
    removed: datetime | None = None


Take: TypeAlias = Callable[[list[Entry]], Awaitable[None]]


class _Unsupported(Exception):
    """Batched direct gets are not available."""


class BucketReader:
    """Reads buckets over one connection, one at a time, in an `async with`."""

    def __init__(self, connection: NatsConnection) -> None:
        self._connection = connection
        self._inbox = connection.new_inbox()
        self._page = 0
        self._replies: list[Msg] = []
        self._moved = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._subscription = await self._connection.subscribe_directly(f"{self._inbox}.*", self._on_reply)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        with suppress(NatsError, OSError):  # the connection may have ended
            await self._subscription.unsubscribe()

    async def read(self, bucket: str, keys: str, take: Take, *, history: bool, values: bool) -> None:
        """Call `take` with pages of the last entries of `keys`; one that changes meanwhile may occur twice.

        Set `history` if the bucket may keep more than the last value of a key. Without `values`, values may be empty.
        Raises TimeoutError if the server stops responding, or the error that JetStream reports.
        """
        try:
            if history:
                raise _Unsupported
            await self._read_directly(bucket, keys, take)
        except _Unsupported:
            await self._read_by_consumer(bucket, keys, take, values)

    async def _read_directly(self, bucket: str, keys: str, take: Take) -> None:
        # next_by_subj instead of multi_last, which is limited to 1024 keys: the bucket has only one entry of each key.
        start, more = 1, True
        while more:
            wanted = {"seq": start, "next_by_subj": f"$KV.{bucket}.{keys}", "batch": _PAGE, "max_bytes": _PAGE_BYTES}
            page, more = await self._get(bucket, json.dumps(wanted).encode())
            if page:
                start = page[-1].revision + 1
                await take(page)

    async def _get(self, bucket: str, wanted: bytes) -> tuple[list[Entry], bool]:
        """Return the entries of one page, and whether more follow."""
        self._page += 1
        self._replies.clear()
        await self._connection.publish(f"$JS.API.DIRECT.GET.KV_{bucket}", wanted, f"{self._inbox}.{self._page}")
        status = ""
        while not status:
            self._moved.clear()
            await self._connection.unless_lost(asyncio.wait_for(self._moved.wait(), _TIMEOUT))
            end = self._replies[-1].headers or {}
            status = end.get("Status", "")
            if not status and "Nats-Num-Pending" not in end:
                raise _Unsupported
        if status == "503":
            raise _Unsupported
        try:
            if status not in ("204", "404"):
                raise APIError(code=int(status), description=end.get("Description"))
            entries = [_entry(bucket, message) for message in self._replies[:-1]]
        except (KeyError, ValueError):
            raise NatsError("unexpected reply to a direct get: a client other than JetStream answered") from None
        return entries, bool(entries) and end.get("Nats-Num-Pending") != "0"

    def _on_reply(self, message: Msg) -> None:
        if message.subject == f"{self._inbox}.{self._page}":  # others belong to a page that was given up
            self._replies.append(message)
            self._moved.set()

    async def _read_by_consumer(self, bucket: str, keys: str, take: Take, values: bool) -> None:
        entries: list[Entry] = []
        left = -1  # entries that follow; -1 if unknown

        async def on_entry(message: Msg) -> None:
            nonlocal left
            metadata, key = message.metadata, _key(bucket, message.subject)
            gone = is_gone(message.headers)
            value = (None, metadata.timestamp) if gone else (message.data, None)
            entries.append(Entry(key, metadata.sequence.stream, *value))
            left = metadata.num_pending
            self._moved.set()

        jetstream, stream = self._connection.jetstream, f"KV_{bucket}"
        subscription = await self._connection.unless_lost(
            jetstream.subscribe(
                f"$KV.{bucket}.{keys}",
                stream=stream,
                cb=on_entry,
                ordered_consumer=True,
                deliver_policy=DeliverPolicy.LAST_PER_SUBJECT,
                headers_only=not values,
            )
        )
        info = await self._connection.unless_lost(subscription.consumer_info())
        try:
            if not info.num_pending and not (info.delivered and info.delivered.consumer_seq):
                left = 0
            while left or entries:
                if not entries:
                    self._moved.clear()
                    await self._connection.unless_lost(asyncio.wait_for(self._moved.wait(), _TIMEOUT))
                page, entries[:] = list(entries), []
                await take(page)
        finally:
            # If the connection is lost, the server deletes the consumer after five seconds.
            with suppress(NatsError):
                await subscription.unsubscribe()
                await self._connection.publish(f"$JS.API.CONSUMER.DELETE.{stream}.{info.name}", b"")


def _entry(bucket: str, message: Msg) -> Entry:
    headers = message.headers or {}
    key, revision = _key(bucket, headers["Nats-Subject"]), int(headers["Nats-Sequence"])
    if is_gone(headers):
        return Entry(key, revision, None, datetime.fromisoformat(headers["Nats-Time-Stamp"]))
    return Entry(key, revision, message.data)


def _key(bucket: str, subject: str) -> str:
    return subject.removeprefix(f"$KV.{bucket}.")
