"""Runs the mirror of one charon: applies events, takes snapshots, and writes the buckets.

A snapshot is taken at the start, after reconnecting to charon, after events were lost, and at an interval. It uses a
separate connection while events continue; a request on the event connection then ensures that every event raised
before the last row has been read.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterable, Callable, Mapping
from contextlib import suppress

from vicifast._wire import Message, Raw, Reader
from vicifast.aio import AsyncSession
from vicifast.errors import UnknownCommand, ViciError
from vicifast.version import VERSION

from ..bus.supervisor import ConnectionSupervisor
from ..config.model import Config, GatewayConfig, MirrorConfig
from ..contract import bucket_values
from ..contract.subjects import Subjects
from .buckets import Buckets
from .model import BucketKey, Mirror
from .reconcile import Difference, Reconciliation

_logger = logging.getLogger(__name__)

_TIMEOUT = 10.0  # seconds for each reply of charon
_LONGEST = 60.0  # seconds for a whole list
_SOON = 5.0  # seconds to the next snapshot after one that failed or found SAs in transition
_BATCH = 64  # rows between two turns of the event loop
_BEATS = 16  # times in a heartbeat at which the gateways of a bridge write their keys


class MirrorWorker:
    """Keeps the buckets equal to one charon; `report` gets each difference that a snapshot corrected."""

    def __init__(
        self,
        settings: Config,
        subjects: Subjects,
        gateway: GatewayConfig,
        boot: str,
        bus: ConnectionSupervisor,
        report: Callable[[str, Mapping[str, object]], None],
    ) -> None:
        self.mirror = Mirror(subjects, gateway.node, boot)
        own = settings.mirror
        self.buckets = Buckets(bus, self, subjects.node, own.heartbeat, own.interval, settings.nats.provision)
        self.snapshots = 0
        self.differences = 0
        self._settings = settings.mirror
        self._gateway = gateway
        self._boot = boot
        self._report = report
        self._key: BucketKey = (bucket_values.NODE, subjects.key())
        self._started = time.time_ns()
        self._session: AsyncSession[Message] | None = None
        self._charon_version: str | None = None
        self._wanted = asyncio.Event()
        self._requests: set[asyncio.Task[str | None]] = set()
        self._troubled = False
        self._stopping = False

    @property
    def changed(self) -> dict[BucketKey, None]:
        return self.mirror.changed

    def keys(self) -> list[BucketKey]:
        return [self._key, *self.mirror.keys()]

    def value(self, key: BucketKey) -> bytes | None:
        return self._presence() if key == self._key else self.mirror.value(key)

    def restore(self, key: BucketKey, data: bytes) -> bool:
        return self.mirror.restore(key, data, time.time_ns())

    def reload(self, settings: MirrorConfig) -> None:
        """Apply what may change at run time: the interval."""
        self._settings = settings
        self.buckets.interval = settings.interval

    def event(self, time_ns: int, event: str, raw: bytes) -> None:
        """Apply an event of the state class; calls are in charon's order."""
        doubted = self.mirror.doubtful
        self.mirror.event(time_ns, event, raw)
        if self.mirror.doubtful and not doubted:
            asyncio.get_running_loop().call_later(_SOON, self.lost)
        self.buckets.wake()

    def connected(self, session: AsyncSession[Message]) -> None:
        """charon is connected and its events are registered on `session`."""
        self._session = session
        self.lost()
        self._beat()

    def disconnected(self) -> None:
        """The connection to charon was lost; the mirror may be out of date."""
        self._session = None
        self._beat()

    def lost(self) -> None:
        """Request a snapshot, as events may be missing."""
        self._wanted.set()

    async def run(self) -> None:
        """Mirror until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.buckets.run())
            tasks.create_task(self._heartbeats())
            tasks.create_task(self._snapshots())
            tasks.create_task(self._comparisons())

    async def stop(self) -> None:
        """Write pending keys, and delete the key of this bridge."""
        self._stopping = True
        self._beat()
        await self.buckets.settled()

    def _beat(self) -> None:
        self.mirror.changed[self._key] = None
        self.buckets.wake()

    async def _heartbeats(self) -> None:
        wait = self._settings.heartbeat * random.uniform(0.5, 1)  # gateways that start together beat apart
        while True:
            self._beat()
            now = asyncio.get_running_loop().time()
            # Those that beat at nearly the same time share a write and a read of the connection.
            grid = self._settings.heartbeat / _BEATS
            await asyncio.sleep((now + wait) // grid * grid - now)
            wait = self._settings.heartbeat

    async def _comparisons(self) -> None:
        """Compare the buckets with the acknowledged values, as other clients may write or delete keys."""
        wait = self._settings.interval * random.uniform(0.5, 1.1)
        while True:
            await asyncio.sleep(wait)
            self.buckets.compare()
            wait = self._settings.interval * random.uniform(0.9, 1.1)

    def _presence(self) -> bytes | None:
        if self._stopping:
            return None
        return bucket_values.dump(
            bucket_values.NodeValue(
                v=1,
                node=self._gateway.node,
                boot=self._boot,
                bridge=VERSION,
                charon="down" if self._session is None else "up",
                charon_version=self._charon_version,
                started=self._started,
                updated=time.time_ns(),
                heartbeat=self._settings.heartbeat,
                expires=self.buckets.expires,
                mirror="complete" if self.buckets.complete else "incomplete",
                reasons=self.buckets.troubles(),
            )
        )

    async def _snapshots(self) -> None:
        await self.buckets.ready.wait()  # charon is compared with the values of an earlier start
        wait = self._settings.interval
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._wanted.wait()
            self._wanted.clear()
            wait = self._settings.interval * random.uniform(0.9, 1.1)
            session = self._session
            if session is None:
                continue
            try:
                if await self._snapshot(session):
                    wait = min(wait, _SOON)
            except (ViciError, OSError, TimeoutError) as error:
                if self._session is session:
                    self._trouble(error)
                    wait = min(wait, _SOON)

    async def _snapshot(self, session: AsyncSession[Message]) -> bool:
        """Take one snapshot; return whether it should be followed by another."""
        snapshot = Reconciliation(self.mirror)
        try:
            async with asyncio.timeout(_LONGEST):
                sas, conns = await self._listed()
            await self._caught_up(session)
            for rows, compare in ((conns, snapshot.conn), (sas, snapshot.sa)):
                for number, raw in enumerate(rows, 1):
                    compare(time.time_ns(), raw)
                    if not number % _BATCH:
                        await self._others(session)
        except BaseException:
            snapshot.abandon()
            raise
        differences = snapshot.finish(time.time_ns())
        self.buckets.wake()
        self.snapshots += 1
        if self._troubled:
            self._troubled = False
            _logger.info("%s: charon lists its SAs again", self._gateway.node)
        await self._report_all(differences)
        return snapshot.unsettled

    async def _listed(self) -> tuple[list[bytes], list[bytes]]:
        """Return the messages of list-sas and list-conns undecoded: thousands of dicts would take much memory."""
        readers: dict[str, Reader] = {"list-sa": Raw(), "list-conn": Raw()}
        async with AsyncSession(self._gateway.vici, timeout=_TIMEOUT, values=Message, readers=readers) as session:
            # Without noblock, which would omit SAs that charon is working on.
            return await _raw(session.stream("list-sas")), await _raw(session.stream("list-conns"))

    async def _caught_up(self, session: AsyncSession[Message]) -> None:
        """Wait until every event that charon has raised so far has been read from the event connection."""
        # charon sends the reply in order with its events. The request must not time out or be cancelled, which would
        # close the connection, so it runs in a separate task.
        if self._requests:
            raise TimeoutError("charon has not answered on the event connection yet")
        request = asyncio.create_task(_version(session))
        self._requests.add(request)
        request.add_done_callback(self._answered)
        await asyncio.wait([request], timeout=_TIMEOUT)
        if not request.done():
            raise TimeoutError(f"charon has not answered for {_TIMEOUT:g} seconds")
        known, self._charon_version = self._charon_version, request.result()
        if self._charon_version != known:
            self._beat()
        await self._others(session)

    def _answered(self, request: asyncio.Task[str | None]) -> None:
        self._requests.discard(request)
        if not request.cancelled():
            request.exception()  # the waiter may have timed out

    async def _others(self, session: AsyncSession[Message]) -> None:
        """Let the event loop run."""
        await asyncio.sleep(0)
        if self._session is not session:
            raise TimeoutError("the connection to charon was lost meanwhile")

    async def _report_all(self, differences: list[Difference]) -> None:
        self.differences += len(differences)
        if differences:
            _logger.info("%s: the mirror differed from charon in %d keys", self._gateway.node, len(differences))
        for number, difference in enumerate(differences, 1):
            plain: Mapping[str, object] = bucket_values.tagged(difference._asdict())
            self._report("resync", plain)
            if not number % _BATCH:
                await asyncio.sleep(0)

    def _trouble(self, error: Exception) -> None:
        if not self._troubled:
            self._troubled = True
            _logger.warning("%s: cannot list the SAs of charon: %s; retrying", self._gateway.node, error)


async def _raw(stream: AsyncIterable[object]) -> list[bytes]:
    return [message async for message in stream if isinstance(message, bytes)]


async def _version(session: AsyncSession[Message]) -> str | None:
    try:
        return str((await session.call("version", timeout=None)).get("version"))
    except UnknownCommand:
        return None
