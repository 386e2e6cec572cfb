"""The other side of NATS: subscriptions that measure delays, and consumers that count the stored messages."""

from __future__ import annotations

import asyncio
import time

import nats
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, StreamConfig
from vicibridge.client import Envelope, unpack

from .ledger import gap_report
from .notes import REQUESTS, Notes

# The second stores the log. A line may arrive there or at the subscription: the subscription misses lines while it is
# disconnected, and a server that stops ends its streams first, and forwards messages for a moment longer.
STREAMS = ("VICI", "SOAK")
_KEPT = 1024 * 1024 * 1024  # bytes


class Observer:
    """A client that subscribes, sends requests, and reads the streams to their end."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes
        self._positions = dict.fromkeys(STREAMS, 0)
        self.client = Client()

    async def connect(self, url: str) -> None:
        async def ignore(error: Exception) -> None:
            """The server is broken on purpose."""

        await self.client.connect(url, max_reconnect_attempts=-1, error_cb=ignore)
        await self.client.jetstream().add_stream(StreamConfig(STREAMS[1], subjects=["vici.*.log.>"], max_bytes=_KEPT))
        for callback, subject in ((self._on_state, "vici.*.event.>"), (self._on_log, "vici.*.log.>")):
            await self.client.subscribe(subject, cb=callback, pending_msgs_limit=10**6)

    async def _on_state(self, message: Msg) -> None:
        self._clock("state", unpack(message))

    async def _on_log(self, message: Msg) -> None:
        envelopes = unpack(message)
        self._clock("log", envelopes)
        self._take(envelopes, time.time() - self._notes.began)

    def _clock(self, kind: str, envelopes: list[Envelope]) -> None:
        now = time.time()
        self._notes.lags[kind].add(now - self._notes.began, now - float(envelopes[0].data["sent"]))

    async def read(self, stream: str) -> None:
        """Read a stream until cancelled, across reconnects."""
        while True:
            try:
                await self._read(stream)
            except (nats.errors.Error, OSError, TimeoutError):
                await asyncio.sleep(0.1)

    async def _read(self, stream: str) -> None:
        start = self._positions[stream] + 1
        config = ConsumerConfig(
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=start,
            ack_policy=AckPolicy.NONE,
            inactive_threshold=30,
            mem_storage=True,
        )
        subscription = await self.client.jetstream().pull_subscribe("", stream=stream, config=config)
        try:
            while True:
                for message in await subscription.fetch(256, timeout=2):
                    metadata = message.metadata
                    if metadata.sequence.stream > self._positions[stream]:
                        self._positions[stream] = metadata.sequence.stream
                        self._take(unpack(message), metadata.timestamp.timestamp() - self._notes.began)
        finally:
            await subscription.unsubscribe()

    def _take(self, envelopes: list[Envelope], now: float) -> None:
        for envelope in envelopes:
            ledger = self._notes.ledgers[envelope.kind]
            if envelope.event in ("log", "ike-updown"):
                ledger.took(int(envelope.data["number"]), envelope, now)
                continue
            ledger.other(envelope)
            if envelope.event == "gap":
                self._notes.gaps.append(gap_report(envelope, self._notes.began))

    async def read_all(self) -> None:
        """Wait until `read` has reached the end of the streams; nothing may be published meanwhile."""
        for stream in self._positions:
            last = (await self.client.jetstream().stream_info(stream)).state.last_seq
            async with asyncio.timeout(120):
                while self._positions[stream] < last:
                    await asyncio.sleep(0.1)

    async def ask(self) -> None:
        """Send requests to charon continuously; during a fault a reply may be missing, which is recorded."""
        answers = self._notes.answers
        while True:
            await asyncio.sleep(1 / REQUESTS)
            try:
                reply = await self.client.request("vici.gw1.cmd.version", b"{}", timeout=2)
                answers[(reply.headers or {}).get("Nats-Service-Error-Code", "200")] += 1
            except nats.errors.NoRespondersError:
                answers["no responders"] += 1
            except (nats.errors.Error, OSError, TimeoutError):
                answers["none"] += 1
