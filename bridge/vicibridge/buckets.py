"""The key-value buckets of the mirror: made when missing, and kept as the mirror says.

Only keys wait, never values: what a key has to hold is asked when it is sent, so the last value wins however long NATS
was away, and memory is bounded by the number of keys that there are. Values go straight to the stream of the bucket, a
window of them at a time, each acknowledged. On every new link the buckets are listed once, and what is not as we left
it is written anew.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Protocol

from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from .bus import Bus
from .config import Provision
from .link import Disconnected, Link, TooLarge, reason_of
from .listing import Listing
from .mirror import Key
from .streams import MARKER, bucket_stream, ensure
from .values import CONN, HEARTBEATS, NODE, SA

_logger = logging.getLogger(__name__)

_ACK_TIMEOUT = 5.0
_RETRY = 2.0  # seconds until what JetStream did not take is tried again
_BATCH = 64  # keys between two looks at what else is to do
_WAITING = 1000  # keys that may wait before those are looked for that came and went while NATS was away


class Source(Protocol):
    """Who knows what the keys of a node hold."""

    @property
    def changed(self) -> dict[Key, None]:
        """The keys that may have to be written; what is sent is taken out."""

    def keys(self) -> list[Key]: ...

    def value(self, key: Key) -> bytes | None:
        """Return what has to be at `key`; None when there must be nothing."""

    def restore(self, key: Key, data: bytes) -> bool:
        """Take over what an earlier start left at `key`; False when it has to be written or deleted."""


class Buckets:
    """Keeps the keys of one node as `source` says; `wake` after something has changed there."""

    WINDOW = 256  # values on their way

    def __init__(self, bus: Bus, source: Source, node: str, heartbeat: float, provision: Provision) -> None:
        self.ready = asyncio.Event()
        """Set once what earlier starts have left is taken over; nothing is written before."""
        self.written = 0
        self._bus = bus
        self._source = source
        self._node = node
        self._heartbeat = heartbeat
        self._provision: Provision = provision
        self._expires: dict[str, bool] = {}
        self._sent: dict[str, tuple[Key, bool]] = {}  # by number, the last token of the reply; whether it deletes
        self._revisions: dict[Key, int] = {}
        self._deleted: dict[Key, tuple[float, int]] = {}  # when, and the revision of the mark
        self._number = 0
        self._many = _WAITING
        self._refused = ""
        self._troubled = False
        self._wake = asyncio.Event()
        self._settled = asyncio.Event()

    @property
    def expires(self) -> bool:
        """Whether the server removes the key of a bridge that is gone."""
        return self._expires.get(NODE, False)

    def wake(self) -> None:
        self._wake.set()
        if len(self._source.changed) > self._many and not self._bus.connected:
            self._forget_gone()

    async def settled(self) -> None:
        """Wait until everything that changed is acknowledged."""
        while self._source.changed or self._sent:
            self._settled.clear()
            await self._settled.wait()

    async def run(self) -> None:
        """Write until cancelled, over as many links as it takes."""
        await self._bus.serve(self._serve)

    async def _serve(self, link: Link) -> None:
        inbox = link.new_inbox()
        link.on_lost(self._wake.set)
        await link.subscribe(f"{inbox}.*", self._on_ack)
        while True:
            try:
                await self._prepare(link)
                await self._write(link, inbox)
            except (NatsError, TimeoutError) as error:
                self._trouble(reason_of(error))
            finally:
                self._again()
            await link.unless_lost(asyncio.sleep(_RETRY))

    async def _prepare(self, link: Link) -> None:
        """See that the buckets are there, and hold them against what we left in them."""
        for bucket in (NODE, CONN, SA):
            await self._ensure(link, bucket)
            if bucket != NODE:
                await link.unless_lost(self._compare(link, bucket))
        self.ready.set()

    async def _ensure(self, link: Link, bucket: str) -> None:
        config = await ensure(link, bucket_stream(bucket), self._provision)
        self._expires[bucket] = bool(config.allow_msg_ttl)

    async def _compare(self, link: Link, bucket: str) -> None:
        """Restore what an earlier start left; later, find what is not the revision that was acknowledged to us."""
        first = not self.ready.is_set()
        changed = self._source.changed
        listed: set[Key] = set()

        def take(key: Key, revision: int, value: bytes | None) -> None:
            if value is None:
                self._note_deleted(key, revision)
                return
            listed.add(key)
            if first and self._source.restore(key, value):
                self._revisions[key] = revision
            if self._revisions.get(key) != revision:
                changed[key] = None

        await Listing(bucket, take).run(link, self._node, values=first)
        changed.update((key, None) for key in self._source.keys() if key[0] == bucket and key not in listed)

    def _note_deleted(self, key: Key, revision: int) -> None:
        self._revisions.pop(key, None)
        if not self._expires.get(key[0]):
            self._deleted[key] = (asyncio.get_running_loop().time(), revision)

    async def _sweep(self, link: Link) -> None:
        """Remove old marks of deleted keys from servers that do not do so themselves."""
        now = asyncio.get_running_loop().time()
        due = [key for key, (when, _) in self._deleted.items() if now - when > MARKER]
        for key in due[:_BATCH]:
            _, revision = self._deleted.pop(key)
            purge = link.jetstream.purge_stream(f"KV_{key[0]}", subject=f"$KV.{key[0]}.{key[1]}", seq=revision + 1)
            await link.unless_lost(purge)

    async def _write(self, link: Link, inbox: str) -> None:
        while not self._refused:
            self._wake.clear()
            await self._send(link, inbox)
            await self._sweep(link)
            if not self._source.changed and not self._sent:
                self._settled.set()
            try:
                async with asyncio.timeout(_ACK_TIMEOUT if self._sent else None):
                    await self._wake.wait()
            except TimeoutError:
                raise TimeoutError(f"no acknowledgement within {_ACK_TIMEOUT:g} seconds") from None
            if not link.alive:
                raise Disconnected(await link.lost())
        reason, self._refused = self._refused, ""
        raise NatsError(reason)

    async def _send(self, link: Link, inbox: str) -> None:
        """Send what has changed, as far as the window is open; a key that is on its way waits."""
        changed, on_their_way = self._source.changed, {key for key, _ in self._sent.values()}
        due = [key for key in changed if key not in on_their_way]
        for count, key in enumerate(due[: self.WINDOW - len(self._sent)], 1):
            del changed[key]
            self._number += 1
            number = str(self._number)
            value = self._source.value(key)
            self._sent[number] = (key, value is None)
            headers = self._headers(key[0], value is None)
            try:
                await link.publish(f"$KV.{key[0]}.{key[1]}", value or b"", f"{inbox}.{number}", headers)
            except TooLarge as error:
                del self._sent[number]
                _logger.warning("%s: the value of %s is too large for NATS: %s", *key, error)
            if not count % _BATCH:
                await asyncio.sleep(0)

    def _headers(self, bucket: str, delete: bool) -> dict[str, str] | None:
        headers = {}
        if delete:
            headers = {"KV-Operation": "PURGE", "Nats-Rollup": "sub"}
            if self._expires.get(bucket):
                headers["Nats-TTL"] = f"{MARKER:.0f}s"
        elif bucket == NODE and self.expires:
            headers["Nats-TTL"] = f"{max(1.0, HEARTBEATS * self._heartbeat):.0f}s"
        return headers or None

    async def _on_ack(self, message: Msg) -> None:
        sent = self._sent.pop(message.subject.rpartition(".")[2], None)
        if sent is None:
            return
        key, deleted = sent
        try:
            revision = int(json.loads(message.data)["seq"])
        except (ValueError, KeyError, TypeError):
            self._source.changed[key] = None
            self._refused = _reason(message)
        else:
            self.written += 1
            self._revisions[key] = revision
            self._deleted.pop(key, None)
            if deleted:
                self._note_deleted(key, revision)
            if self._troubled:
                self._troubled = False
                _logger.info("JetStream: takes the mirror again")
        self._wake.set()

    def _forget_gone(self) -> None:
        """Forget the keys that are no more; what the buckets have of them is found on the next link."""
        changed = self._source.changed
        for key in changed.keys() - self._revisions.keys() - set(self._source.keys()):
            del changed[key]
        self._many = max(_WAITING, 2 * len(changed))

    def _again(self) -> None:
        """Everything on its way may have arrived or not: it is to be sent once more."""
        self._source.changed.update((key, None) for key, _ in self._sent.values())
        self._sent.clear()
        self._refused = ""

    def _trouble(self, reason: str) -> None:
        if not self._troubled:
            self._troubled = True
            _logger.warning("JetStream: the mirror cannot be written: %s; trying again", reason)


def _reason(message: Msg) -> str:
    if message.headers and message.headers.get("Status") == "503":
        return "no bucket takes it, or JetStream is off"
    try:
        return str(json.loads(message.data)["error"]["description"])
    except (ValueError, KeyError, TypeError):
        return "an answer that is no acknowledgement"
