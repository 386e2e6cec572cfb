"""Service discovery (ADR-32): `nats micro ls`, `info` and `stats` are the inventory of a fleet.

nats-py's service runs the requests of an endpoint one after the other and shows exceptions to the requester, so only
its types are used here; `commands.server` serves the requests.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.micro.service import (
    EndpointInfo,
    EndpointStats,
    ServiceInfo,
    ServicePing,
    ServiceStats,
    ServiceVerb,
    control_subject,
)

from vicifast.commands import COMMANDS
from vicifast.version import VERSION

from ..bus.connection import Disconnected, NatsConnection, TooLarge
from ..bus.supervisor import ConnectionSupervisor
from ..contract.names import SERVICE
from ..contract.subjects import Subjects, command_subject, unescape
from ..events.losses import Tally
from .policy import Policy
from .session_pool import SessionPool

_logger = logging.getLogger(__name__)

DESCRIPTION = "commands for strongSwan's charon"


class Instance:
    """One instance of the service: the commands of one node that `policy` allows."""

    def __init__(self, subjects: Subjects, policy: Policy, tallies: Mapping[str, Tally], charon: SessionPool) -> None:
        self.policy = policy
        self._subjects = subjects
        self._tallies = tallies
        self._charon = charon
        self._version = VERSION
        self._started = datetime.now(UTC)
        self.id = secrets.token_hex(11)

    async def answer(self, connection: NatsConnection, verb: ServiceVerb, message: Msg) -> None:
        """Answer a discovery request, unless its reply subject is not an inbox."""
        if not self._subjects.allows_reply(message.reply) or connection.owns_inbox(message.reply):
            return
        metadata = await self._metadata()
        build = {ServiceVerb.PING: self._ping, ServiceVerb.INFO: self._info, ServiceVerb.STATS: self._stats}[verb]
        try:
            await connection.publish(message.reply, json.dumps(build(metadata)).encode())
        except (Disconnected, TooLarge):
            pass  # the requester cannot be reached

    async def _metadata(self) -> dict[str, str]:
        charon = await self._charon.version()
        return {"node": unescape(self._subjects.node), "charon": charon, "bridge": self._version}

    def _ping(self, metadata: dict[str, str]) -> dict[str, Any]:
        return ServicePing(self.id, SERVICE, self._version, metadata).to_dict()

    def _info(self, metadata: dict[str, str]) -> dict[str, Any]:
        endpoints = [
            EndpointInfo(_name(command), self._subject(command), self._subjects.node, _describe(command))
            for command in self.policy.allowed
        ]
        return ServiceInfo(SERVICE, self.id, self._version, DESCRIPTION, endpoints, metadata).to_dict()

    def _stats(self, metadata: dict[str, str]) -> dict[str, Any]:
        endpoints = [self._endpoint(command) for command in self.policy.allowed]
        return ServiceStats(self.id, SERVICE, self._version, self._started, endpoints, metadata).to_dict()

    def _endpoint(self, command: str) -> EndpointStats:
        tally = self._tallies.get(command) or Tally()
        return EndpointStats(
            name=_name(command),
            subject=self._subject(command),
            queue_group=self._subjects.node,
            num_requests=tally.requests,
            num_errors=tally.errors,
            processing_time=tally.nanoseconds,
            average_processing_time=tally.nanoseconds // max(1, tally.requests),
            last_error=tally.last_error,
        )

    def _subject(self, command: str) -> str:
        return command_subject(self._subjects.prefix, unescape(self._subjects.node), command)


class DiscoveryResponder:
    """Answers discovery requests for the instances of all nodes, which share its few subscriptions."""

    def __init__(self, bus: ConnectionSupervisor, instances: Iterable[Instance]) -> None:
        self._bus = bus
        self._instances = {instance.id: instance for instance in instances}
        self._subscriptions: list[Subscription] = []

    async def run(self) -> None:
        """Answer on every connection until cancelled."""
        await self._bus.serve(self._subscribe)

    async def stop(self) -> None:
        """Answer no more requests."""
        await unsubscribe(self._subscriptions)

    async def _subscribe(self, connection: NatsConnection) -> None:
        self._subscriptions = [
            await connection.subscribe(control_subject(verb, *whom), partial(self._answer, connection, verb))
            for verb in ServiceVerb
            for whom in ((), (SERVICE,), (SERVICE, "*"))
        ]

    async def _answer(self, connection: NatsConnection, verb: ServiceVerb, message: Msg) -> None:
        """Answer for the instance that the subject names, or for all."""
        id = message.subject.removeprefix(control_subject(verb, SERVICE)).removeprefix(".")
        whom = [self._instances[id]] if id in self._instances else []
        if id == "" or message.subject == control_subject(verb):
            whom = list(self._instances.values())
        await asyncio.gather(*(instance.answer(connection, verb, message) for instance in whom))


async def unsubscribe(subscriptions: Iterable[Subscription]) -> None:
    """End subscriptions, also if their connection is lost."""
    for subscription in subscriptions:
        try:
            await subscription.unsubscribe()
        except Exception:  # if the connection is lost, so is the subscription
            _logger.debug("unsubscribing failed", exc_info=True)


def _name(command: str) -> str:
    """Return a command as an endpoint name, which allows fewer characters."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", command) or "_"


def _describe(command: str) -> dict[str, str]:
    known = COMMANDS.get(command)
    if known is None:
        return {"danger": "unknown"}
    keys = ", ".join(f"{key.name} ({key.kind}{', required' if key.required else ''})" for key in known.keys)
    described = {"danger": str(known.danger), "keys": "a section under its name" if known.named else keys}
    if known.event:
        described["streams"] = known.event
    return described
