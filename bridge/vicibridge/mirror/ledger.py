"""Records which keys of one node the buckets have acknowledged, and which must be written: a model without I/O.

Only acknowledged writes count as written. A refused key is retried with increasing delay, and does not block other
keys. Only keys are queued, never values: the value is read when the key is sent, so the last value wins, and memory is
bounded by the number of keys.
"""

from __future__ import annotations

import heapq
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, Protocol

from .model import BucketKey

_FIRST_DELAY, _LONGEST_DELAY = 1.0, 60.0  # seconds until a refused key is retried
_WAITING = 1000  # queued keys above which those that have disappeared again are removed


class ValueSource(Protocol):
    """The values of the keys of a node."""

    @property
    def changed(self) -> dict[BucketKey, None]:
        """The keys that may have to be written; the ledger removes those that it sends."""

    def keys(self) -> list[BucketKey]: ...

    def value(self, key: BucketKey) -> bytes | None:
        """Return the value of `key`; None if the key must not exist."""

    def restore(self, key: BucketKey, data: bytes) -> bool:
        """Restore the value that an earlier run wrote to `key`; return False if the key must be written or deleted."""


class Write(NamedTuple):
    """A value to write, or a key to delete; `number` identifies the attempt."""

    number: int
    key: BucketKey
    value: bytes | None


@dataclass(slots=True)
class _Refused:
    due: float
    delay: float


class Ledger:
    """The keys of a node: `writes` yields what to send, and each write ends with `stored`, `refused` or `put_back`."""

    def __init__(self, source: ValueSource) -> None:
        self.revisions: dict[BucketKey, int] = {}
        """The acknowledged revision of each key."""
        self.open: set[str] = set()
        """The buckets that accept writes; the keys of others wait."""
        self._source = source
        self._sent: dict[int, tuple[BucketKey, bool]] = {}  # by number; True for a deletion
        self._in_flight: set[BucketKey] = set()
        self._again: set[BucketKey] = set()  # changed while in flight
        self._waiting: defaultdict[str, dict[BucketKey, None]] = defaultdict(dict)  # by bucket that is not open
        self._present: set[BucketKey] = set()  # may be in a bucket with a value that was not acknowledged
        self._refused: defaultdict[str, dict[BucketKey, _Refused]] = defaultdict(dict)
        self._due: list[tuple[float, BucketKey]] = []  # a heap of the refused keys
        self._number = 0
        self._many = _WAITING
        self._comparison: Comparison | None = None

    @property
    def settled(self) -> bool:
        """Whether every change is acknowledged, except those that cannot be written at present."""
        return not (self._source.changed or self._sent)

    @property
    def complete(self) -> bool:
        """Whether no key is refused or waits for its bucket."""
        return not any((*self._refused.values(), *self._waiting.values()))

    def unwritten(self, bucket: str) -> int:
        """Return the number of keys of `bucket` that are refused or wait for it."""
        return len(self._refused[bucket]) + len(self._waiting[bucket])

    def retry_in(self, now: float) -> float | None:
        """Return the seconds until the next retry of a refused key; None if no key was refused."""
        return max(0.0, self._due[0][0] - now) if self._due else None

    def writes(self, now: float, room: int) -> Iterator[Write]:
        """Yield up to `room` writes; the ledger may change between two of them."""
        changed = self._source.changed
        while self._due and self._due[0][0] <= now:
            key = heapq.heappop(self._due)[1]
            if key in self._refused[key[0]]:
                changed[key] = None
        while room > 0 and changed:
            for key in list(islice(changed, room)):
                if key not in changed:
                    continue
                del changed[key]
                if write := self._next(key, now):
                    room -= 1
                    yield write

    def _next(self, key: BucketKey, now: float) -> Write | None:
        if key in self._in_flight:
            self._again.add(key)
            return None
        refusals = self._refused[key[0]]
        if key[0] not in self.open:
            self._waiting[key[0]][key] = None
            refusals.pop(key, None)
            return None
        refused = refusals.get(key)
        if refused is not None and refused.due > now:
            return None  # the heap has it
        value = self._source.value(key)
        if value is None and refused is not None and key not in self.revisions and key not in self._present:
            del refusals[key]  # it has disappeared, and was never in the bucket
            return None
        self._number += 1
        self._sent[self._number] = key, value is None
        self._in_flight.add(key)
        if self._comparison is not None:
            self._comparison.touched.add(key)
        return Write(self._number, key, value)

    def stored(self, number: int, revision: int) -> tuple[BucketKey, bool]:
        """Record an acknowledgement; return the key, and whether it was deleted."""
        key, deletes = self._settle(number)
        self._refused[key[0]].pop(key, None)
        self._present.discard(key)
        if deletes:
            self.revisions.pop(key, None)
        else:
            self.revisions[key] = revision
        return key, deletes

    def unsure(self, number: int) -> None:
        """Record that a write may have arrived although it was not acknowledged."""
        self._present.add(self._sent[number][0])

    def refused(self, number: int, now: float) -> BucketKey:
        """Record a refused write and schedule a retry; return the key."""
        key, _ = self._settle(number)
        self._source.changed.pop(key, None)
        known = self._refused[key[0]].get(key)
        delay = min(known.delay * 2, _LONGEST_DELAY) if known else _FIRST_DELAY
        due = now + delay * random.uniform(0.9, 1.1)
        self._refused[key[0]][key] = _Refused(due, delay)
        heapq.heappush(self._due, (due, key))
        return key

    def put_back(self, number: int) -> BucketKey:
        """Queue the key of a write that JetStream did not receive again, and return it."""
        key, _ = self._settle(number)
        self._source.changed[key] = None
        return key

    def key(self, number: int) -> BucketKey:
        """Return the key of a write in flight."""
        return self._sent[number][0]

    def recall(self) -> None:
        """Queue all keys in flight and all waiting keys again: it is unknown which writes arrived."""
        self._comparison = None
        for number in list(self._sent):
            self.put_back(number)
        for waiting in self._waiting.values():
            self._source.changed.update(waiting)
            waiting.clear()

    def reopen(self, bucket: str) -> bool:
        """Open `bucket` for writes; return whether any keys wait for it."""
        self.open.add(bucket)
        self._source.changed.update(self._waiting.pop(bucket, {}))
        return any(key[0] == bucket for key in self._source.changed)

    def forget_gone(self) -> None:
        """If many keys wait, remove those that appeared and disappeared in the meantime: no bucket has them."""
        waiting = [self._source.changed, *self._waiting.values()]
        if sum(map(len, waiting)) <= self._many:
            return
        kept = self.revisions.keys() | self._present | self._in_flight | set(self._source.keys())
        for keys in waiting:
            for key in keys.keys() - kept:
                del keys[key]
        self._many = max(_WAITING, 2 * sum(map(len, waiting)))

    def compare(self, bucket: str, *, restore: bool) -> Comparison:
        """Begin a comparison with the content of `bucket`; with `restore`, values of an earlier run are restored."""
        self._comparison = Comparison(self, self._source, bucket, restore, set(self._in_flight))
        return self._comparison

    def differs(self, key: BucketKey, revision: int | None) -> bool:
        """Queue `key` unless its acknowledged revision is `revision` (None: absent); return whether it was added."""
        if revision is None:
            self.revisions.pop(key, None)
            self._present.discard(key)
        elif self.revisions.get(key) == revision:
            return False
        else:
            self._present.add(key)
        changed = self._source.changed
        if key in changed or key in self._refused[key[0]] or key in self._waiting[key[0]]:
            return False
        changed[key] = None
        return True

    def end(self, comparison: Comparison) -> None:
        """Stop recording keys for a comparison that has ended."""
        if self._comparison is comparison:
            self._comparison = None

    def _settle(self, number: int) -> tuple[BucketKey, bool]:
        key, deletes = self._sent.pop(number)
        self._in_flight.discard(key)
        if key in self._again:
            self._again.remove(key)
            self._source.changed[key] = None
        return key, deletes


class Comparison:
    """One comparison with a bucket, entry by entry as it is read; writes may continue meanwhile."""

    def __init__(
        self, ledger: Ledger, source: ValueSource, bucket: str, restore: bool, touched: set[BucketKey]
    ) -> None:
        self.touched = touched
        """Keys that were in flight meanwhile: their entries may be older or newer than the acknowledged revisions."""
        self._ledger = ledger
        self._source = source
        self._bucket = bucket
        self._restore = restore
        self._listed: set[BucketKey] = set()
        self._differences = 0

    def entry(self, key: BucketKey, revision: int, value: bytes | None) -> None:
        """Process the entry of `key`; a value of None is a deletion marker."""
        if value is None:
            self._listed.discard(key)
            return
        if self._restore and key not in self._listed and self._source.restore(key, value):
            self._ledger.revisions[key] = revision
        self._listed.add(key)
        if key not in self.touched:
            self._differences += self._ledger.differs(key, revision)

    def finish(self) -> int:
        """Queue the missing keys; return the number of keys that differed from what was written."""
        due = {key for key in (*self._ledger.revisions, *self._source.keys()) if key[0] == self._bucket}
        for key in due - self._listed - self.touched:
            self._differences += self._ledger.differs(key, None)
        self._ledger.end(self)
        return self._differences
