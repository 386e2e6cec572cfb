"""The streams of JetStream that the bridge needs, buckets included: created, bound to, kept as the bridge needs them.

A stream or bucket that is there already is its administrator's. What about it breaks a promise is logged
(`conditions`); with `provision = "reconcile"` what is missing is added, and nothing is taken away.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nats.errors import Error as NatsError
from nats.js.api import DiscardPolicy, StorageType, StreamConfig
from nats.js.errors import APIError, NotFoundError

from ..config.model import NatsConfig, Provision
from ..contract.bucket_values import CONN, NODE, SA
from ..contract.subjects import stream_subjects
from .conditions import CONDITIONS, Target, problems
from .connection import Link, reason_of

_logger = logging.getLogger(__name__)

# How long JetStream knows an event again, in seconds: one that was stored in the last moment before an outage and is
# sent again after it would be there twice otherwise. The server keeps about 100 bytes of memory for each event of that
# time.
_DUPLICATE_WINDOW = 3600.0
MARKER = 3600.0
"""Seconds that a server from 2.11 on keeps the mark that a key was deleted; watchers must see it."""
_EXISTS = 10058  # JetStream's error of a stream that somebody else has just created, with other settings
_OVERLAP = 10065

_DESCRIPTIONS = {
    SA: "IKE_SAs that are up, <node>.<ike>.<uniqueid>: JSON with state, since, sa, children, closed, totals",
    CONN: "Connections, <node>.<conn>: JSON with configured, ike_sas and child_sas (how many are up), config, totals",
    NODE: "Bridges that run, <node>: JSON with charon (up, down), versions, updated, heartbeat",
}


class Unprovisioned(NatsError):
    """A stream or bucket is missing and was not created; the text says why, and what to do."""


class Unsuitable(NatsError):
    """A stream or bucket acknowledges nothing of what is published there; the text says why, and what to do."""


def bucket_stream(bucket: str) -> StreamConfig:
    """Return the stream of a bucket of the mirror as the bridge creates it."""
    return StreamConfig(
        name=f"KV_{bucket}",
        description=_DESCRIPTIONS[bucket],
        subjects=[f"$KV.{bucket}.>"],
        storage=StorageType.FILE,
        max_msgs_per_subject=1,
        discard=DiscardPolicy.NEW,
        allow_direct=True,
        allow_rollup_hdrs=True,
        deny_delete=True,
        # Servers before 2.11 do not know these, and leave them out.
        allow_msg_ttl=True,
        subject_delete_marker_ttl=MARKER,
    )


async def ensure(link: Link, wanted: StreamConfig, provision: Provision, prefix: str = "") -> StreamConfig:
    """See that the stream `wanted` is there, as far as `provision` goes, and return what it is like.

    Problems are logged, each once as long as it lasts; with `prefix`, subjects that include commands are one. Raises
    Unprovisioned, Unsuitable, what JetStream says, and TimeoutError when this user may not ask.
    """
    target = Target(wanted, prefix)
    try:
        present = await _config(link, target)
    except NotFoundError:
        present = await _create(link, target, provision)
    if provision == "reconcile":
        present = await _add(link, target, present)
    found = problems(_parsed(present), target)
    _report(link, target.name, {each.text: _LEVELS[each.grade] for each in found if not each.blocks})
    for each in found:
        if each.blocks:
            raise Unsuitable(each.text)
    return _parsed(present)


_LEVELS = {"error": logging.ERROR, "warning": logging.WARNING, "note": logging.INFO}


def _report(link: Link, topic: str, lines: dict[str, int]) -> None:
    """Log those lines about a topic, each with its level, that the report before did not have, on whatever link."""
    before = link.reported.get(topic, frozenset())
    link.reported[topic] = frozenset(lines)
    for text, level in lines.items():
        if text not in before:
            _logger.log(level, "JetStream: %s", text)


async def _config(link: Link, target: Target) -> dict[str, Any]:
    """Return the configuration of a stream as the server has it, with what nats-py does not know."""
    config: dict[str, Any] = (await link.api(f"STREAM.INFO.{target.name}"))["config"]
    return config


def _parsed(config: dict[str, Any]) -> StreamConfig:
    parsed: StreamConfig = StreamConfig.from_response(copy.deepcopy(config))  # which changes what it is given
    return parsed


async def config_of(link: Link, target: Target) -> StreamConfig:
    """Return what a stream is like; raises NotFoundError, what else JetStream says, and TimeoutError."""
    return _parsed(await _config(link, target))


def missing(target: Target) -> str:
    """Return a sentence about a stream that is not there, and that the bridge may not create."""
    hint = 'create it, or let the bridge do it with provision = "create" in [nats]'
    return f"there is no {str(target).removeprefix('the ')} over {', '.join(target.subjects)}: {hint}"


async def _create(link: Link, target: Target, provision: Provision) -> dict[str, Any]:
    subjects = ", ".join(target.subjects)
    if provision == "bind":
        raise Unprovisioned(missing(target))
    try:
        answer = await link.api(f"STREAM.CREATE.{target.name}", target.wanted.as_dict())
    except APIError as error:
        if error.err_code == _EXISTS:
            return await _config(link, target)
        raise Unprovisioned(f"cannot create {target}: {await _why(link, target, error)}") from None
    if answer.get("did_create"):
        _logger.info("JetStream: created %s over %s", target, subjects)
    config: dict[str, Any] = answer["config"]
    return config


async def _add(link: Link, target: Target, present: dict[str, Any]) -> dict[str, Any]:
    """Add what is missing, one thing after the other, so that what the server refuses does not hold up the rest."""
    for condition in CONDITIONS:
        parsed = _parsed(present)
        if condition.add is None or not condition.problem(parsed, target):
            continue
        values = condition.add(parsed, target)
        if not values:
            continue
        told = ", ".join(f"{key} {getattr(parsed, key)}" for key in values)
        as_sent = StreamConfig(**values).as_dict()
        changed = {**present, **{key: as_sent[key] for key in values}}
        try:
            present = (await link.api(f"STREAM.UPDATE.{target.name}", changed))["config"]
        except APIError as error:
            reason = await _why(link, target, error)
            _report(link, f"{target.name}.{condition.property}", {f"cannot change {target}: {reason}": logging.WARNING})
        else:
            _logger.info("JetStream: changed %s, which had %s", target, told)
    return present


async def _why(link: Link, target: Target, error: APIError) -> str:
    """Return why a stream cannot be created or changed; of subjects that others take, name these."""
    if error.err_code != _OVERLAP:
        return reason_of(error)
    try:
        others = [name for name in await streams_over(link, target.subjects) if name != target.name]
    except (NatsError, TimeoutError):  # this user may not ask
        others = []
    return overlapping(target, target.subjects, others)


def overlapping(target: Target, subjects: Sequence[str], others: Sequence[str]) -> str:
    """Return a sentence about streams of other names that take some of `subjects`, which `target` needs."""
    which = f"the stream {' and '.join(others)}" if others else "another stream"
    mend = f'set stream = "{others[0] if others else "its name"}" in [nats], or take these subjects from it'
    if target.kind == "bucket":
        mend = "take these subjects from it"
    return f"{which} takes {' or '.join(subjects)}: {mend}"


async def streams_over(link: Link, subjects: Sequence[str]) -> list[str]:
    """Return the names of the streams whose subjects overlap with any of `subjects`, in order."""
    names: dict[str, None] = {}
    for subject in subjects:
        found = (await link.api("STREAM.NAMES", {"subject": subject}))["streams"]
        names.update(dict.fromkeys(found or ()))
    return list(names)


@dataclass(frozen=True, slots=True)
class StateStream:
    """The JetStream stream of the state class."""

    name: str
    subjects: list[str]
    max_age: float  # seconds; 0 is for ever
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
            duplicate_window=min(_DUPLICATE_WINDOW, self.max_age or _DUPLICATE_WINDOW),  # the server's own rule
        )

    async def ensure(self, link: Link) -> None:
        """See that it is there, as far as `provision` goes; raises what `ensure` of this module does."""
        await ensure(link, self.config, self.provision, self.prefix)


def state_stream(nats: NatsConfig) -> StateStream:
    """Return the stream of the state class as the configuration wants it."""
    subjects, max_age = stream_subjects(nats.prefix), nats.stream_max_age_days * 86400
    return StateStream(nats.stream, subjects, max_age, nats.provision, nats.prefix)
