"""The key-value buckets of the mirror: creates missing ones and writes the values of the mirror to them.

Values are published directly to the stream of the bucket, at most a window of them unacknowledged; `Ledger` records
which are acknowledged. The contents of the buckets are compared with it on every new connection and after `compare`. A
bucket that rejects writes does not block the others, and is checked again at increasing intervals.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field

from nats.errors import Error as NatsError

from ..bus.acked_publisher import AckedPublisher, Meaning, Refusal
from ..bus.bucket_reader import BucketReader, Entry
from ..bus.conditions import problems
from ..bus.connection import NatsConnection, TooLarge, reason_of
from ..bus.hardened_client import Acks
from ..bus.streams import MARKER, Unsuitable, bucket_target, ensure_since, info_of
from ..bus.supervisor import ConnectionSupervisor
from ..config.model import Provision
from ..contract.bucket_values import BUCKETS, HEARTBEATS, NODE
from .ledger import Ledger, ValueSource
from .model import BucketKey

_logger = logging.getLogger(__name__)

_ACK_TIMEOUT = 5.0
_SILENCE = Refusal(0, 0, Meaning.OTHER, f"no acknowledgement within {_ACK_TIMEOUT:g} seconds")
_RECENT = 30.0  # seconds for which the gateways on a connection share a check
_RETRY, _LONGEST_RETRY = 1.0, 30.0  # seconds until a bucket that rejects writes is checked again
_BATCH = 64  # keys between two turns of the event loop


@dataclass(slots=True)
class _Bucket:
    """The state of one bucket."""

    name: str
    delay: float  # seconds from the next failed check to the one after it
    restored: bool  # the values of earlier runs have been read
    expires: bool = False  # whether the server removes expired keys
    trouble: str = "JetStream has not answered yet"  # why it rejects writes
    seen: bool = False  # whether the last check found it writable
    refusal: str = ""  # why it last refused a key
    drops: str = ""  # why it does not keep what it acknowledges
    check_at: float = 0.0  # when to check that it exists, and its content
    doubted: float = -math.inf  # when it last rejected a write or a check: an earlier check does not count
    logged: set[str] = field(default_factory=set)  # the present problems that were logged


class Buckets:
    """Writes the values of `source` to the keys of one node; call `wake` after a change of `source`."""

    WINDOW = 256  # unacknowledged values

    def __init__(
        self,
        bus: ConnectionSupervisor,
        source: ValueSource,
        node: str,
        heartbeat: float,
        interval: float,
        provision: Provision,
    ) -> None:
        self.interval = interval
        """Seconds between comparisons."""
        self.ready = asyncio.Event()
        """Set once the values of earlier runs have been read; SAs and connections are written only after that."""
        self.written = 0
        self.refusals: Counter[str] = Counter()
        """Writes that JetStream refused or did not acknowledge, by bucket."""
        self._bus = bus
        self._source = source
        self._node = node
        self._heartbeat = heartbeat
        self._provision: Provision = provision
        self._ledger = Ledger(source)
        self._publisher = AckedPublisher(self.WINDOW, _ACK_TIMEOUT, self._settle, self._refused)
        self._buckets = {name: _Bucket(name, _RETRY, restored=name == NODE) for name in BUCKETS}
        self._deleted: dict[BucketKey, tuple[float, int]] = {}  # the time, and the revision of the marker
        self._announced = False  # the last published state: whether the mirror is complete
        self._wake = asyncio.Event()
        self._settled = asyncio.Event()

    @property
    def expires(self) -> bool:
        """Whether the server removes the key of a bridge that no longer runs."""
        return self._buckets[NODE].expires

    @property
    def complete(self) -> bool:
        """Whether the buckets accept every key and keep it."""
        return self._ledger.complete and not any(bucket.trouble or bucket.drops for bucket in self._buckets.values())

    def keys(self) -> Counter[str]:
        """Return the number of acknowledged keys, by bucket."""
        return Counter(bucket for bucket, _ in self._ledger.revisions)

    def unwritten(self) -> dict[str, int]:
        """Return the number of keys that are refused or wait for their bucket, by bucket."""
        return {name: self._ledger.unwritten(name) for name in self._buckets}

    def troubles(self) -> list[str]:
        """Return why the mirror is incomplete, one sentence per bucket; empty if it is complete."""
        troubles = []
        for bucket in self._buckets.values():
            if bucket.trouble:
                troubles.append(f"{bucket.name}: {bucket.trouble}")
            elif refused := self._ledger.unwritten(bucket.name):
                troubles.append(f"{bucket.name}: keys refused: {refused}: {bucket.refusal}")
            elif bucket.drops:
                troubles.append(f"{bucket.name}: {bucket.drops}")
        return troubles

    def wake(self) -> None:
        self._wake.set()
        self._ledger.forget_gone()

    def compare(self) -> None:
        """Request a comparison with the content of the buckets."""
        for bucket in self._buckets.values():
            bucket.check_at = 0.0
        self._wake.set()

    async def settled(self) -> None:
        """Wait until every change is acknowledged, except those that the buckets reject."""
        while not self._ledger.settled:
            self._settled.clear()
            await self._settled.wait()

    async def run(self) -> None:
        """Write until cancelled, on successive connections."""
        await self._bus.serve(self._serve)

    async def _serve(self, connection: NatsConnection) -> None:
        await self._publisher.open(connection)
        connection.on_lost(self._wake.set)
        self.compare()
        try:
            async with BucketReader(connection) as reader:
                while connection.alive:
                    await self._step(connection, reader)
        finally:
            self._publisher.forget()
            self._ledger.recall()

    async def _step(self, connection: NatsConnection, reader: BucketReader) -> None:
        """Do the work that is due, then wait for more."""
        self._wake.clear()
        self._give_up_late()
        now = self._now()
        for bucket in self._buckets.values():
            if now >= bucket.check_at:
                await self._check(connection, reader, bucket)
        self._open()
        await self._send(connection)
        await self._sweep(connection)
        self._announce()
        await self._pause()

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    async def _pause(self) -> None:
        """Wait for a change or the next due time."""
        if self._ledger.settled:
            self._settled.set()
        while not self._wake.is_set() and (wait := self._idle()) > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(None if wait == math.inf else wait):
                    await self._wake.wait()

    def _idle(self) -> float:
        """Return the seconds until the next due time."""
        now = self._now()
        wait = min([bucket.check_at for bucket in self._buckets.values()]) - now
        for other in (self._publisher.wait(now), self._ledger.retry_in(now)):
            if other is not None and other < wait:
                wait = other
        return wait

    async def _check(self, connection: NatsConnection, reader: BucketReader, bucket: _Bucket) -> None:
        """Check that a bucket exists, and compare its content with the acknowledged writes."""
        bucket.check_at = math.inf
        target, unsuitable = bucket_target(bucket.name, self._heartbeat, self.interval), ""
        since = max(bucket.doubted, self._now() - min(_RECENT, self.interval / 2))
        try:
            try:
                config, found = await ensure_since(connection, target, self._provision, since)
            except Unsuitable as error:  # it can still be read
                unsuitable = reason_of(error)
                config, _ = await info_of(connection, target)
                found = problems(config, target)
            bucket.drops = "; ".join(problem.text for problem in found if problem.drops)
            bucket.expires = bool(config.allow_msg_ttl)
            if bucket.name != NODE:
                await self._compare(connection, reader, bucket, history=config.max_msgs_per_subject != 1)
        except (NatsError, TimeoutError) as error:
            self._shut(bucket, reason_of(error))
        else:
            bucket.seen = not unsuitable
            if unsuitable:
                self._shut(bucket, unsuitable)

    async def _compare(
        self, connection: NatsConnection, reader: BucketReader, bucket: _Bucket, *, history: bool
    ) -> None:
        """Restore the values of an earlier run; in later calls, rewrite keys that differ from acknowledged writes."""
        comparison = self._ledger.compare(bucket.name, restore=not bucket.restored)

        async def take(page: list[Entry]) -> None:
            for count, entry in enumerate(page, 1):
                key = bucket.name, entry.key
                if entry.value is None:
                    self._note_deleted(bucket, key, entry.revision)
                comparison.entry(key, entry.revision, entry.value)
                if not count % _BATCH:
                    await asyncio.sleep(0)
            await self._send(connection)

        await reader.read(bucket.name, f"{self._node}.>", take, history=history, values=not bucket.restored)
        differences = comparison.finish()
        if differences and bucket.restored:
            _logger.info(
                "%s: %s: %d keys differed from what was written; rewriting them", self._node, bucket.name, differences
            )
        bucket.restored = True

    def _open(self) -> None:
        """Open the buckets that a check found writable."""
        if len(self._ledger.open) == len(self._buckets):
            return
        if all(bucket.restored for bucket in self._buckets.values()):
            self.ready.set()
        for bucket in self._buckets.values():
            if not bucket.seen or bucket.name in self._ledger.open:
                continue
            if (bucket.name == NODE or self.ready.is_set()) and not self._ledger.reopen(bucket.name):
                bucket.trouble = ""  # otherwise the first acknowledgement clears it

    def _shut(self, bucket: _Bucket, reason: str) -> None:
        """Stop writing to a bucket until it has been checked again."""
        bucket.seen = False
        bucket.trouble, bucket.doubted = reason, self._now()
        bucket.check_at = self._now() + bucket.delay
        bucket.delay = min(bucket.delay * 2, _LONGEST_RETRY)
        self._ledger.open.discard(bucket.name)
        if reason not in bucket.logged:
            bucket.logged.add(reason)
            _logger.warning("JetStream: the bucket %s is not writable: %s; retrying", bucket.name, reason)

    def _note_deleted(self, bucket: _Bucket, key: BucketKey, revision: int) -> None:
        if not bucket.expires:
            self._deleted[key] = (self._now(), revision)

    async def _sweep(self, connection: NatsConnection) -> None:
        """Remove old markers of deleted keys on servers that do not do so themselves."""
        now = self._now()
        due = [key for key, (when, _) in self._deleted.items() if now - when > MARKER]
        for key in due[:_BATCH]:
            _, revision = self._deleted.pop(key)
            purge = connection.jetstream.purge_stream(
                f"KV_{key[0]}", subject=f"$KV.{key[0]}.{key[1]}", seq=revision + 1
            )
            try:
                await connection.unless_lost(purge)
            except NatsError as error:
                self._deleted[key] = (now, revision)
                _logger.warning(
                    "JetStream: cannot remove markers of deleted keys from %s: %s", key[0], reason_of(error)
                )
                return

    async def _send(self, connection: NatsConnection) -> None:
        """Send changed keys, as far as the window allows."""
        if (room := self._publisher.room) < self.WINDOW // 4:  # acknowledgements make room for a larger block
            return
        for count, write in enumerate(self._ledger.writes(self._now(), room), 1):
            bucket = self._buckets[write.key[0]]
            headers = self._headers(bucket, write.value is None)
            try:
                self._publisher.publish(write.number, f"$KV.{'.'.join(write.key)}", write.value or b"", headers)
            except TooLarge as error:
                self._refuse(write.number, Refusal(0, 0, Meaning.TOO_LARGE, f"too large for NATS: {error}"))
            if not count % _BATCH:
                self._publisher.flush()
                await asyncio.sleep(0)
        self._publisher.flush()

    def _headers(self, bucket: _Bucket, delete: bool) -> bytes:
        lines = b"KV-Operation: PURGE\r\nNats-Rollup: sub\r\n" if delete else b""
        if bucket.expires and (delete or bucket.name == NODE):
            seconds = MARKER if delete else max(1.0, HEARTBEATS * self._heartbeat)
            lines += b"Nats-TTL: %.0fs\r\n" % seconds
        return lines

    def _settle(self, acks: Acks) -> None:
        for number, revision in acks.items():
            self._stored(number, revision)
        if not self._ledger.settled or self._news:
            self._wake.set()
        else:  # as after most heartbeats: another step would find nothing to do
            self._settled.set()

    def _refused(self, number: int, refusal: Refusal) -> None:
        self._refuse(number, refusal)
        self._wake.set()

    def _stored(self, number: int, revision: int) -> None:
        key, deleted = self._ledger.stored(number, revision)
        bucket = self._buckets[key[0]]
        self.written += 1
        self._deleted.pop(key, None)
        if deleted:
            self._note_deleted(bucket, key, revision)
        if bucket.name in self._ledger.open:
            bucket.trouble, bucket.delay = "", _RETRY

    def _refuse(self, number: int, refusal: Refusal) -> None:
        bucket = self._buckets[self._ledger.key(number)[0]]
        self.refusals[bucket.name] += 1
        bucket.doubted = self._now()
        if refusal.meaning is Meaning.MISSING:
            self._ledger.put_back(number)
            if bucket.name in self._ledger.open:
                self._shut(bucket, refusal.sentence)
            return
        _, key = self._ledger.refused(number, self._now())
        bucket.refusal = refusal.sentence
        if bucket.name in self._ledger.open:
            bucket.trouble = ""  # only this key is refused
        if refusal.meaning.name not in bucket.logged:
            bucket.logged.add(refusal.meaning.name)
            _logger.warning("JetStream: %s: %s was refused: %s; retrying", bucket.name, key, refusal.sentence)

    def _give_up_late(self) -> None:
        """Schedule writes that were not acknowledged in time for a retry, and check their buckets at once."""
        for number in self._publisher.late(self._now()):
            bucket = self._buckets[self._ledger.key(number)[0]]
            bucket.check_at = min(bucket.check_at, self._now())
            self._ledger.unsure(number)
            self._refuse(number, _SILENCE)

    @property
    def _news(self) -> bool:
        """Whether `_announce` may have something to do."""
        return self.complete != self._announced or any([bucket.logged for bucket in self._buckets.values()])

    def _announce(self) -> None:
        """If the mirror has become complete or incomplete, log that and write it to the key of the node."""
        for bucket in self._buckets.values():
            if bucket.logged and not bucket.trouble and not self._ledger.unwritten(bucket.name):
                bucket.logged.clear()
                _logger.info("JetStream: the bucket %s accepts all writes again", bucket.name)
        complete = self.complete
        if complete != self._announced:
            self._announced = complete
            self._source.changed[NODE, self._node] = None
            self._wake.set()
