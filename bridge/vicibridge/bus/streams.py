"""Creates and checks the JetStream streams that the bridge needs, including buckets.

An existing stream or bucket belongs to its administrator. Settings that break a guarantee are logged (`conditions`);
with `provision = "reconcile"` missing settings are added, and none are removed.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

from nats.errors import Error as NatsError
from nats.js.api import DiscardPolicy, StorageType, StreamConfig
from nats.js.errors import APIError, NotFoundError

from ..config.model import NatsConfig, Provision
from ..contract.bucket_values import BUCKETS, NODE
from ..contract.subjects import stream_subjects
from .conditions import CONDITIONS, Problem, Target, fixable, problems
from .connection import NatsConnection, reason_of

_logger = logging.getLogger(__name__)

# Seconds for which JetStream recognizes duplicates: an event that was stored just before an outage, and is sent again
# after it, would otherwise be stored twice. The server uses about 100 bytes of memory for each event in that time.
_DUPLICATE_WINDOW = 3600.0
MARKER = 3600.0
"""Seconds for which servers from 2.11 on keep the marker of a deleted key, so that watchers see it."""
_EXISTS = 10058  # JetStream's error if another client has just created the stream with other settings
_OVERLAP = 10065


class Unprovisioned(NatsError):
    """A stream or bucket is missing and was not created; the text gives the reason and the fix."""


class Unsuitable(NatsError):
    """A stream or bucket acknowledges no message; the text gives the reason and the fix."""


def bucket_stream(bucket: str) -> StreamConfig:
    """Return the stream of a bucket of the mirror as the bridge creates it."""
    keys = ".".join(f"<{word}>" for word in ("node", *BUCKETS[bucket].words))
    return StreamConfig(
        name=f"KV_{bucket}",
        description=f"{keys}: {BUCKETS[bucket].description}",
        subjects=[f"$KV.{bucket}.>"],
        storage=StorageType.FILE,
        max_msgs_per_subject=1,
        discard=DiscardPolicy.NEW,
        allow_direct=True,
        allow_rollup_hdrs=True,
        deny_delete=True,
        # Servers before 2.11 ignore these.
        allow_msg_ttl=True,
        subject_delete_marker_ttl=MARKER,
    )


@lru_cache(16)
def bucket_target(bucket: str, heartbeat: float, interval: float) -> Target:
    """Return what the bridge requires of a bucket that it writes every `heartbeat` or compares every `interval`."""
    return Target(bucket_stream(bucket), refresh=heartbeat if bucket == NODE else interval)


class Checked(NamedTuple):
    """A stream that accepts messages, and the problems that it has nevertheless."""

    config: StreamConfig
    problems: list[Problem]


async def ensure(connection: NatsConnection, target: Target, provision: Provision) -> Checked:
    """Ensure that the stream of `target` exists, as `provision` allows.

    Problems are logged, each once while it lasts; if the target has a prefix, subjects that include commands are a
    problem. Raises Unprovisioned, Unsuitable, the error that JetStream reports, and TimeoutError without permission for
    the request.
    """
    try:
        present = (await _info(connection, target))["config"]
    except NotFoundError:
        present = await _create(connection, target, provision)
    if provision == "reconcile" and fixable(_parsed(present), target):
        present = await _add(connection, target, present)
    found = problems(_parsed(present), target)
    _report(connection, target.name, {each.text: _LEVELS[each.grade] for each in found if not each.blocks})
    for each in found:
        if each.blocks:
            raise Unsuitable(each.text)
    return Checked(_parsed(present), found)


@dataclass(slots=True)
class Check:
    """The last check of a stream on one connection."""

    began: float = -math.inf  # in the event loop's time
    outcome: Checked | Exception | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


async def ensure_since(connection: NatsConnection, target: Target, provision: Provision, since: float) -> Checked:
    """As `ensure`, but a check that began at `since` or later, in the event loop's time, is not repeated.

    All gateways on one connection use the same streams.
    """
    check: Check = connection.checks.setdefault(target.name, Check())
    async with check.lock:
        if check.began < since:
            began = asyncio.get_running_loop().time()
            try:
                check.outcome = await ensure(connection, target, provision)
            except (NatsError, TimeoutError) as error:
                check.outcome = error
            check.began = began
        outcome = check.outcome
    if isinstance(outcome, Exception):
        raise outcome.with_traceback(None)
    assert outcome
    return outcome


_LEVELS = {"error": logging.ERROR, "warning": logging.WARNING, "note": logging.INFO}


def _report(connection: NatsConnection, topic: str, lines: dict[str, int]) -> None:
    """Log the lines about a topic, each with its level, that the previous report did not have, on any connection."""
    before = connection.reported.get(topic, frozenset())
    connection.reported[topic] = frozenset(lines)
    for text, level in lines.items():
        if text not in before:
            _logger.log(level, "JetStream: %s", text)


async def _info(connection: NatsConnection, target: Target) -> dict[str, Any]:
    """Return what the server reports of a stream, with keys unknown to nats-py."""
    return await connection.api(f"STREAM.INFO.{target.name}")


def _parsed(config: dict[str, Any]) -> StreamConfig:
    parsed: StreamConfig = StreamConfig.from_response(copy.deepcopy(config))  # it modifies its argument
    return parsed


async def info_of(connection: NatsConnection, target: Target) -> tuple[StreamConfig, Mapping[str, Any]]:
    """Return configuration and state of a stream; raise NotFoundError, other errors of JetStream, and TimeoutError."""
    info = await _info(connection, target)
    return _parsed(info["config"]), info["state"]


def missing(target: Target) -> str:
    """Return a sentence about a missing stream that the bridge may not create."""
    hint = 'create it, or set provision = "create" in [nats] to let the bridge create it'
    return f"{target} for {', '.join(target.subjects)} does not exist: {hint}"


async def _create(connection: NatsConnection, target: Target, provision: Provision) -> dict[str, Any]:
    subjects = ", ".join(target.subjects)
    if provision == "bind":
        raise Unprovisioned(missing(target))
    try:
        reply = await connection.api(f"STREAM.CREATE.{target.name}", target.wanted.as_dict())
    except APIError as error:
        if error.err_code == _EXISTS:
            existing: dict[str, Any] = (await _info(connection, target))["config"]
            return existing
        raise Unprovisioned(f"cannot create {target}: {await _why(connection, target, error)}") from None
    if reply.get("did_create"):
        _logger.info("JetStream: created %s for %s", target, subjects)
    config: dict[str, Any] = reply["config"]
    return config


async def _add(connection: NatsConnection, target: Target, present: dict[str, Any]) -> dict[str, Any]:
    """Add missing settings one at a time, so that one that the server rejects does not prevent the others."""
    for condition in CONDITIONS:
        parsed = _parsed(present)
        if condition.add is None or not condition.problem(parsed, target):
            continue
        values = condition.add(parsed, target)
        if not values:
            continue
        former = ", ".join(f"{key} {getattr(parsed, key)}" for key in values)
        as_sent = StreamConfig(**values).as_dict()
        changed = {**present, **{key: as_sent[key] for key in values}}
        try:
            present = (await connection.api(f"STREAM.UPDATE.{target.name}", changed))["config"]
        except APIError as error:
            reason = await _why(connection, target, error)
            _report(
                connection,
                f"{target.name}.{condition.property}",
                {f"cannot change {target}: {reason}": logging.WARNING},
            )
        else:
            _logger.info("JetStream: changed %s, which had %s", target, former)
    return present


async def _why(connection: NatsConnection, target: Target, error: APIError) -> str:
    """Return why a stream cannot be created or changed; name the other streams that have its subjects."""
    if error.err_code != _OVERLAP:
        return reason_of(error)
    try:
        others = [name for name in await streams_over(connection, target.subjects) if name != target.name]
    except (NatsError, TimeoutError):  # without permission for the request
        others = []
    return overlapping(target, target.subjects, others)


def overlapping(target: Target, subjects: Sequence[str], others: Sequence[str]) -> str:
    """Return a sentence about other streams that have some of `subjects`, which `target` needs."""
    which = f"the stream {' and '.join(others)}" if others else "another stream"
    fix = f'set stream = "{others[0] if others else "its name"}" in [nats], or remove these subjects from it'
    if target.kind == "bucket":
        fix = "remove these subjects from it"
    return f"{which} has {' or '.join(subjects)}: {fix}"


async def streams_over(connection: NatsConnection, subjects: Sequence[str]) -> list[str]:
    """Return the names of the streams with subjects that overlap with any of `subjects`, in order."""
    names: dict[str, None] = {}
    for subject in subjects:
        found = (await connection.api("STREAM.NAMES", {"subject": subject}))["streams"]
        names.update(dict.fromkeys(found or ()))
    return list(names)


@dataclass(frozen=True, slots=True)
class StateStream:
    """The JetStream stream of the state class."""

    name: str
    subjects: list[str]
    max_age: float  # seconds; 0 keeps events indefinitely
    provision: Provision = "create"
    prefix: str = ""

    @property
    def config(self) -> StreamConfig:
        """The stream as the bridge creates it."""
        return StreamConfig(
            name=self.name,
            subjects=self.subjects,
            max_age=self.max_age,
            storage=StorageType.FILE,
            duplicate_window=min(_DUPLICATE_WINDOW, self.max_age or _DUPLICATE_WINDOW),  # the server requires it
        )

    async def ensure(self, connection: NatsConnection, since: float = math.inf) -> None:
        """Ensure that the stream exists, as `ensure_since` of this module does."""
        await ensure_since(connection, Target(self.config, self.prefix), self.provision, since)


def state_stream(nats: NatsConfig) -> StateStream:
    """Return the stream of the state class with its configured settings."""
    subjects, max_age = stream_subjects(nats.prefix), nats.stream_max_age_days * 86400
    return StateStream(nats.stream, subjects, max_age, nats.provision, nats.prefix)
