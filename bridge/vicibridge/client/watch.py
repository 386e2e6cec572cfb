"""Watches a bucket of the state mirror: its content, then its changes."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Generic, NamedTuple, Self, TypeVar, cast

import nats.js.errors
from nats.js.api import ConsumerConfig, DeliverPolicy

from vicifast._wire import Received

from ..bus.connection import NatsConnection
from ..bus.supervisor import ConnectionSupervisor
from ..contract import bucket_values
from .calls import news
from .errors import JetStreamError
from .source import Ordered, Source, stored_at

V = TypeVar("V", bound=Mapping[str, Any])


class Change(NamedTuple, Generic[V]):
    """The value of a key, None if it was deleted, and the value in the previous change of this key."""

    key: str
    value: V | None
    before: V | None


class Watch(Source, Generic[V]):
    """An async iterator of `Change`: the content of a bucket, then its changes; see `bucket_values`.

    `current` has all values by key. It is complete once the watch is entered, and unchanged while NATS is not
    connected; the changes of that time follow after the reconnect. A key that changes faster than the program reads
    yields only its last value. A value that no bridge can have written (`bucket_values.read`) is not in `current` and
    raises ValueError; the iteration may continue. Use it in `async with`, or call `aclose`.
    """

    def __init__(self, bus: ConnectionSupervisor, bucket: str, keys: str) -> None:
        super().__init__(bus, f"the watch of {bucket}")
        self.current: dict[str, V] = {}
        self.invalid: dict[str, ValueError] = {}
        """The present values that no bridge can have written, by key."""
        self.removed: dict[str, datetime] = {}
        """When keys of VICI_NODE were deleted or expired, as long as JetStream knows."""
        self._bucket = bucket
        self._stream = f"KV_{bucket}"
        self._prefix = f"$KV.{bucket}."
        self._keys = keys
        self._changed: dict[str, ValueError | None] = {}
        self._taken: dict[str, V] = {}
        self._listed: set[str] | None = None  # keys received so far, while the whole bucket is read
        self._received = 0
        self._expected: int | None = None

    async def _serve(self, connection: NatsConnection) -> None:
        self._listed, self._received, self._expected = set(), 0, None
        config = ConsumerConfig(deliver_policy=DeliverPolicy.LAST_PER_SUBJECT, filter_subject=self._prefix + self._keys)
        async with Ordered(connection, self._take) as ordered:
            try:
                info = await ordered.open(self._stream, config)
            except nats.js.errors.NotFoundError:
                raise JetStreamError(
                    f"JetStream: the bucket {self._bucket} does not exist: no bridge has created it"
                ) from None
            delivered = info.delivered.consumer_seq if info.delivered else 0
            self._expected = delivered + (info.num_pending or 0)
            self._check_complete()
            await ordered.broken()

    def _take(self, messages: list[Received]) -> None:
        for message in messages:
            self._take_one(message)
        self._received += len(messages)
        self._check_complete()
        self._news()

    def _take_one(self, message: Received) -> None:
        key = message.subject.removeprefix(self._prefix)
        if bucket_values.is_gone(message.headers):
            if self._bucket == bucket_values.NODE:  # the keys of other buckets are too many
                self.removed[key] = stored_at(message)
            self._set(key, None)
        else:
            self._read_value(key, message.data)

    def _read_value(self, key: str, data: bytes) -> None:
        if self._listed is not None:
            self._listed.add(key)
        try:
            self._set(key, cast(V, bucket_values.read(self._bucket, key, data)))
        except ValueError as error:
            self.current.pop(key, None)
            self.invalid[key] = self._changed[key] = error

    def _set(self, key: str, value: V | None) -> None:
        self.invalid.pop(key, None)
        if value is not None:
            self.removed.pop(key, None)
        if self._listed is not None and value == self.current.get(key):
            return  # known from before the reconnect
        if value is None:
            self.current.pop(key, None)
        else:
            self.current[key] = value
        self._changed[key] = None

    def _check_complete(self) -> None:
        if self._listed is None or self._expected is None or self._received < self._expected:
            return
        listed, self._listed = self._listed, None
        for key in (self.current.keys() | self.invalid.keys()) - listed:
            self._set(key, None)
        self._resumed()
        self._news()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change[V]:
        while True:
            while not self._changed:
                if self._error is not None:
                    raise self._error
                await news(self)
            key = next(iter(self._changed))
            problem = self._changed.pop(key)
            if problem is not None:
                raise problem
            before, value = self._taken.pop(key, None), self.current.get(key)
            if value is not None:
                self._taken[key] = value
            if value is not None or before is not None:
                return Change(key, value, before)
