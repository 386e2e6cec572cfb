"""The state mirror, followed: what is in a bucket, and what changes there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Any, Generic, NamedTuple, Self, TypeVar, cast

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig, DeliverPolicy

from vicifast.errors import ConnectionClosed, ViciError

from .. import values
from ..link import reason_of
from .calls import news
from .errors import JetStreamError

V = TypeVar("V", bound=Mapping[str, Any])

HEARTBEAT = 1.0  # seconds; JetStream forgets ordered consumers when it restarts, and four without one tell


class Change(NamedTuple, Generic[V]):
    """What lies at a key now, None when nothing does any more, and what the last change of this key had."""

    key: str
    value: V | None
    before: V | None


class Watch(Generic[V]):
    """What is in a bucket, and then its changes, as an async iterator of `Change`; see `vicibridge.values`.

    `current` is all of it by key, complete once the watch is entered. A key that changes faster than its changes are
    taken comes once, with its last value. A value that cannot be read is raised as ValueError, and the iteration may
    go on. Use it in `async with`, or call `aclose`.
    """

    def __init__(self, client: Client, bucket: str, keys: str, api_timeout: float = 5.0) -> None:
        self.current: dict[str, V] = {}
        self.wake: Callable[[], None] | None = None
        self._client = client
        self._bucket = bucket
        self._prefix = f"$KV.{bucket}."
        self._keys = keys
        self._timeout = api_timeout
        self._changed: dict[str, ValueError | None] = {}
        self._taken: dict[str, V] = {}
        self._received = 0
        self._expected: int | None = None
        self._complete = asyncio.Event()
        self._error: ViciError | None = None
        self._subscription: JetStreamContext.PushSubscription | None = None

    async def start(self) -> Self:
        """Subscribe, and wait for what is there. Raises `JetStreamError` when there is no such bucket."""
        try:
            self._subscription = await self._client.jetstream(timeout=self._timeout).subscribe(
                self._prefix + self._keys,
                stream=f"KV_{self._bucket}",
                cb=self._take,
                ordered_consumer=True,
                idle_heartbeat=HEARTBEAT,
                config=ConsumerConfig(deliver_policy=DeliverPolicy.LAST_PER_SUBJECT),
                pending_msgs_limit=0,
                pending_bytes_limit=0,
            )
            info = await self._subscription.consumer_info()
            delivered = info.delivered.consumer_seq if info.delivered else 0
            self._expected = delivered + (info.num_pending or 0)
            self._check_complete()
            async with asyncio.timeout(self._timeout):
                await self._complete.wait()
        except nats.js.errors.NotFoundError:
            raise JetStreamError(f"JetStream: there is no bucket {self._bucket}: no bridge has mirrored here") from None
        except TimeoutError:
            await self.aclose()
            raise JetStreamError(f"JetStream: no answer about {self._bucket} for {self._timeout:g} seconds") from None
        except (nats.js.errors.Error, nats.errors.NoRespondersError) as error:
            raise JetStreamError(f"JetStream: {reason_of(error)}") from None
        except (nats.errors.Error, OSError) as error:
            raise ConnectionClosed(f"NATS: {reason_of(error)}") from None
        return self

    async def _take(self, message: Msg) -> None:
        key = message.subject.removeprefix(self._prefix)
        problem: ValueError | None = None
        if values.is_gone(message.headers):
            self.current.pop(key, None)
        else:
            try:
                self.current[key] = cast(V, values.load(message.data))
            except ValueError as error:
                self.current.pop(key, None)
                problem = ValueError(f"{self._bucket}: {key}: {error}")
        self._changed[key] = problem
        self._received += 1
        self._check_complete()
        if self.wake is not None:
            self.wake()

    def _check_complete(self) -> None:
        if self._expected is not None and self._received >= self._expected:
            self._complete.set()

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

    def fail(self, error: ViciError) -> None:
        """Raise `error` once all changes were taken."""
        self._error = error
        if self.wake is not None:
            self.wake()

    async def aclose(self) -> None:
        """Watch no more."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            with contextlib.suppress(nats.errors.Error, OSError):
                await subscription.unsubscribe()
        self.fail(ConnectionClosed("the watch was closed"))

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()
