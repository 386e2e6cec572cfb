"""What the buckets have of the keys of one node, and what has to be written there: a model without I/O.

Only what JetStream has acknowledged counts as written. A key that it refused is tried again after a while, longer each
time, and holds up no other. Only keys wait, never values: what a key has to hold is asked when it is sent, so the last
value wins, and memory is bounded by the number of keys.
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

_FIRST_DELAY, _LONGEST_DELAY = 1.0, 60.0  # seconds until a refused key is tried again
_WAITING = 1000  # keys that may wait before those are looked for that came and went meanwhile


class ValueSource(Protocol):
    """Knows what the keys of a node hold."""

    @property
    def changed(self) -> dict[BucketKey, None]:
        """The keys that may have to be written; what is sent is taken out."""

    def keys(self) -> list[BucketKey]: ...

    def value(self, key: BucketKey) -> bytes | None:
        """Return what has to be at `key`; None when there must be nothing."""

    def restore(self, key: BucketKey, data: bytes) -> bool:
        """Take over what an earlier start left at `key`; False when it has to be written or deleted."""


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
    """The keys of a node: `writes` gives what to send, and each of them ends in `stored`, `refused` or `put_back`."""

    def __init__(self, source: ValueSource) -> None:
        self.revisions: dict[BucketKey, int] = {}
        """What the buckets have acknowledged, by key."""
        self.open: set[str] = set()
        """The buckets that take writes; the keys of others wait."""
        self._source = source
        self._sent: dict[int, tuple[BucketKey, bool]] = {}  # by number; whether it deletes
        self._on_their_way: set[BucketKey] = set()
        self._again: set[BucketKey] = set()  # changed while on their way
        self._aside: defaultdict[str, dict[BucketKey, None]] = defaultdict(dict)  # of buckets that are not open
        self._present: set[BucketKey] = (
            set()
        )  # that a bucket has, or may have, with a value that it has not acknowledged
        self._refused: defaultdict[str, dict[BucketKey, _Refused]] = defaultdict(dict)
        self._due: list[tuple[float, BucketKey]] = []  # a heap of the refused keys that wait
        self._number = 0
        self._many = _WAITING
        self._comparison: Comparison | None = None

    @property
    def settled(self) -> bool:
        """Whether everything that changed is acknowledged, but for what cannot be written at present."""
        return not (self._source.changed or self._sent)

    @property
    def complete(self) -> bool:
        """Whether every key is written, but for what changed just now."""
        return not any((*self._refused.values(), *self._aside.values()))

    def unwritten(self, bucket: str) -> int:
        """Return how many keys of `bucket` are refused, or wait until it takes writes."""
        return len(self._refused[bucket]) + len(self._aside[bucket])

    def retry_in(self, now: float) -> float | None:
        """Return the seconds until a refused key is tried again; None when none waits."""
        return max(0.0, self._due[0][0] - now) if self._due else None

    def writes(self, now: float, room: int) -> Iterator[Write]:
        """Give up to `room` writes; between two of them anything may happen to the ledger."""
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
        if key in self._on_their_way:
            self._again.add(key)
            return None
        refusals = self._refused[key[0]]
        if key[0] not in self.open:
            self._aside[key[0]][key] = None
            refusals.pop(key, None)
            return None
        refused = refusals.get(key)
        if refused is not None and refused.due > now:
            return None  # the heap has it
        value = self._source.value(key)
        if value is None and refused is not None and key not in self.revisions and key not in self._present:
            del refusals[key]  # it is gone, and never was there
            return None
        self._number += 1
        self._sent[self._number] = key, value is None
        self._on_their_way.add(key)
        if self._comparison is not None:
            self._comparison.touched.add(key)
        return Write(self._number, key, value)

    def stored(self, number: int, revision: int) -> tuple[BucketKey, bool]:
        """Note an acknowledgement; return the key, and whether it was deleted."""
        key, deletes = self._settle(number)
        self._refused[key[0]].pop(key, None)
        self._present.discard(key)
        if deletes:
            self.revisions.pop(key, None)
        else:
            self.revisions[key] = revision
        return key, deletes

    def unsure(self, number: int) -> None:
        """Note that a write may have arrived, though nothing acknowledged it."""
        self._present.add(self._sent[number][0])

    def refused(self, number: int, now: float) -> BucketKey:
        """Note that JetStream did not take a write; the key is due again after a while."""
        key, _ = self._settle(number)
        self._source.changed.pop(key, None)
        known = self._refused[key[0]].get(key)
        delay = min(known.delay * 2, _LONGEST_DELAY) if known else _FIRST_DELAY
        due = now + delay * random.uniform(0.9, 1.1)
        self._refused[key[0]][key] = _Refused(due, delay)
        heapq.heappush(self._due, (due, key))
        return key

    def put_back(self, number: int) -> BucketKey:
        """Note that a write went nowhere: the key has changed as before."""
        key, _ = self._settle(number)
        self._source.changed[key] = None
        return key

    def key(self, number: int) -> BucketKey:
        """Return the key of a write that has not ended."""
        return self._sent[number][0]

    def recall(self) -> None:
        """Everything on its way may have arrived or not: it has changed once more."""
        self._comparison = None
        for number in list(self._sent):
            self.put_back(number)
        for waiting in self._aside.values():
            self._source.changed.update(waiting)
            waiting.clear()

    def reopen(self, bucket: str) -> bool:
        """Let `bucket` take writes; return whether any wait for it."""
        self.open.add(bucket)
        self._source.changed.update(self._aside.pop(bucket, {}))
        return any(key[0] == bucket for key in self._source.changed)

    def forget_gone(self) -> None:
        """Where many keys wait, forget those that came and went meanwhile: no bucket has them."""
        waiting = [self._source.changed, *self._aside.values()]
        if sum(map(len, waiting)) <= self._many:
            return
        kept = self.revisions.keys() | self._present | self._on_their_way | set(self._source.keys())
        for keys in waiting:
            for key in keys.keys() - kept:
                del keys[key]
        self._many = max(_WAITING, 2 * sum(map(len, waiting)))

    def compare(self, bucket: str, *, restore: bool) -> Comparison:
        """Begin to compare with what is really in `bucket`; to `restore` is to take over what an earlier start left."""
        self._comparison = Comparison(self, self._source, bucket, restore, set(self._on_their_way))
        return self._comparison

    def differs(self, key: BucketKey, revision: int | None) -> bool:
        """Write `key` again unless it was written as `revision` (None: it is absent); return whether that is new."""
        if revision is None:
            self.revisions.pop(key, None)
            self._present.discard(key)
        elif self.revisions.get(key) == revision:
            return False
        else:
            self._present.add(key)
        changed = self._source.changed
        if key in changed or key in self._refused[key[0]] or key in self._aside[key[0]]:
            return False
        changed[key] = None
        return True

    def end(self, comparison: Comparison) -> None:
        """Note no more keys for a comparison that has come to its end."""
        if self._comparison is comparison:
            self._comparison = None

    def _settle(self, number: int) -> tuple[BucketKey, bool]:
        key, deletes = self._sent.pop(number)
        self._on_their_way.discard(key)
        if key in self._again:
            self._again.remove(key)
            self._source.changed[key] = None
        return key, deletes


class Comparison:
    """One look at a bucket, entry by entry as it is read; writing may go on meanwhile."""

    def __init__(
        self, ledger: Ledger, source: ValueSource, bucket: str, restore: bool, touched: set[BucketKey]
    ) -> None:
        self.touched = touched
        """Keys that were on their way meanwhile: what is read of them may be older or newer than what is known."""
        self._ledger = ledger
        self._source = source
        self._bucket = bucket
        self._restore = restore
        self._listed: set[BucketKey] = set()
        self._differences = 0

    def entry(self, key: BucketKey, revision: int, value: bytes | None) -> None:
        """Take what is at `key`; None is the mark of a deletion."""
        if value is None:
            self._listed.discard(key)
            return
        if self._restore and key not in self._listed and self._source.restore(key, value):
            self._ledger.revisions[key] = revision
        self._listed.add(key)
        if key not in self.touched:
            self._differences += self._ledger.differs(key, revision)

    def finish(self) -> int:
        """Write again what is missing; return how many keys were not as they were written."""
        due = {key for key in (*self._ledger.revisions, *self._source.keys()) if key[0] == self._bucket}
        for key in due - self._listed - self.touched:
            self._differences += self._ledger.differs(key, None)
        self._ledger.end(self)
        return self._differences
