"""The fleet from Python: commands, events and the state of all gateways, over NATS.

    async with Fleet("nats://127.0.0.1:4222") as fleet:
        print(await fleet.node("gw1").version())
        async for sa in fleet.node("gw1").list_sas():
            print(sa)
        async for answer in fleet.everyone().stats():
            print(answer.node, answer.error or answer.response)
        async with fleet.subscribe(events=["child-updown.down"]) as events:
            async for envelope in events:
                print(envelope.node, envelope.subject, envelope.data)
        async with fleet.watch_sas() as watch:
            async for change in watch:
                print(change.key, change.value)

Methods, streams and errors are those of `vicifast.AsyncSession`, plus `BusError` for errors of the bridge or NATS.
"""

from vicifast._wire import Envelope

from ..contract.nats_settings import NatsSettings
from .discovery import Inventory, Node
from .envelopes import Completeness, MissingEvents, unpack
from .errors import BusError, Busy, Denied, JetStreamError, SlowConsumer, Unavailable
from .events import Events
from .everyone import Answer, Answers, Everyone
from .fleet import Fleet
from .session import BusSession
from .watch import Change, Watch

__all__ = [
    "Answer",
    "Answers",
    "BusError",
    "BusSession",
    "Busy",
    "Change",
    "Completeness",
    "Denied",
    "Envelope",
    "Events",
    "Everyone",
    "Fleet",
    "Inventory",
    "JetStreamError",
    "MissingEvents",
    "NatsSettings",
    "Node",
    "SlowConsumer",
    "Unavailable",
    "Watch",
    "unpack",
]
