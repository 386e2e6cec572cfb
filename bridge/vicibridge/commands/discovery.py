"""Service discovery (ADR-32): `nats micro ls`, `info` and `stats` are the inventory of a fleet.

nats-py's service runs the requests of an endpoint one after the other and shows exceptions to the requester, so only
its types are used here; `commands.server` serves the requests.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
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
from ..contract.names import SERVICE
from ..contract.subjects import Subjects, command_subject, unescape
from ..events.losses import Tally
from .policy import Policy
from .session_pool import SessionPool

DESCRIPTION = "commands for strongSwan's charon"


class DiscoveryResponder:
    """One instance of the service: the commands of one node that `policy` allows."""

    def __init__(self, subjects: Subjects, policy: Policy, tallies: Mapping[str, Tally], charon: SessionPool) -> None:
        self.policy = policy
        self._subjects = subjects
        self._tallies = tallies
        self._charon = charon
        self._version = VERSION
        self._started = datetime.now(UTC)
        self._id = secrets.token_hex(11)

    async def subscribe(self, connection: NatsConnection) -> list[Subscription]:
        """Answer discovery requests on this connection."""
        return [
            await connection.subscribe(control_subject(verb, *whom), partial(self._answer, connection, verb))
            for verb in ServiceVerb
            for whom in ((), (SERVICE,), (SERVICE, self._id))
        ]

    async def _answer(self, connection: NatsConnection, verb: ServiceVerb, message: Msg) -> None:
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
        return ServicePing(self._id, SERVICE, self._version, metadata).to_dict()

    def _info(self, metadata: dict[str, str]) -> dict[str, Any]:
        endpoints = [
            EndpointInfo(_name(command), self._subject(command), self._subjects.node, _describe(command))
            for command in self.policy.allowed
        ]
        return ServiceInfo(SERVICE, self._id, self._version, DESCRIPTION, endpoints, metadata).to_dict()

    def _stats(self, metadata: dict[str, str]) -> dict[str, Any]:
        endpoints = [self._endpoint(command) for command in self.policy.allowed]
        return ServiceStats(self._id, SERVICE, self._version, self._started, endpoints, metadata).to_dict()

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
