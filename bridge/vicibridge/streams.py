"""The streams of JetStream that the bridge needs, buckets included: bound to, created, or kept as configured."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from typing import Any

from nats.errors import Error as NatsError
from nats.js.api import StorageType, StreamConfig
from nats.js.errors import NotFoundError

from .config import Provision
from .link import Link

_logger = logging.getLogger(__name__)

# How long JetStream knows an event again, in seconds: one that was stored in the last moment before an outage and is
# sent again after it would be there twice otherwise. The server keeps about 100 bytes of memory for each event of that
# time.
_DUPLICATE_WINDOW = 3600.0
# What can be changed in a stream that exists; whatever else differs is its administrator's business.
_CHANGEABLE = (
    "subjects",
    "max_age",
    "duplicate_window",
    "max_bytes",
    "max_msgs_per_subject",
    "allow_direct",
    "allow_msg_ttl",
    "subject_delete_marker_ttl",
)


class Unprovisioned(NatsError):
    """A stream is missing, and the configuration says not to create it."""


async def ensure(link: Link, wanted: StreamConfig, provision: Provision) -> None:
    """See that the stream `wanted` is there, as far as `provision` goes; of a bucket it is the one named KV_<bucket>.

    Raises Unprovisioned, or what JetStream says.
    """
    jetstream, name = link.jetstream, str(wanted.name)
    try:
        present = (await link.unless_lost(jetstream.stream_info(name))).config
    except NotFoundError:
        if provision == "bind":
            hint = 'create it, or let the bridge do it with provision = "create" in [nats]'
            raise Unprovisioned(f"there is no stream {name} over {_subjects(wanted)}: {hint}") from None
        await link.unless_lost(jetstream.add_stream(wanted))
        _logger.info("JetStream: created the stream %s over %s", name, _subjects(wanted))
        return
    changes = differences(present, wanted)
    if not changes:
        return
    told = ", ".join(f"{key} {getattr(present, key)} instead of {value}" for key, value in changes.items())
    if provision == "reconcile":
        await link.unless_lost(jetstream.update_stream(present.evolve(**changes)))
        _logger.info("JetStream: changed the stream %s, which had %s", name, told)
    elif "subjects" in changes:
        _logger.warning('JetStream: the stream %s has %s; provision = "reconcile" would change it', name, told)


def differences(present: StreamConfig, wanted: StreamConfig) -> dict[str, Any]:
    """Return what has to change in `present`; what `wanted` leaves at its default is not asked for."""
    defaults = {field.name: field.default for field in dataclasses.fields(StreamConfig)}
    changes: dict[str, Any] = {}
    for key in _CHANGEABLE:
        value = getattr(wanted, key)
        if value != defaults[key] and (getattr(present, key) or 0) != (value or 0):
            changes[key] = value
    if "subjects" in changes and set(wanted.subjects or ()) <= set(present.subjects or ()):
        del changes["subjects"]  # others may keep theirs there too
    return changes


def _subjects(config: StreamConfig) -> str:
    return ", ".join(config.subjects or ())


@dataclass(frozen=True, slots=True)
class Stream:
    """The JetStream stream of the state class."""

    name: str
    subjects: list[str]
    max_age: float  # seconds; 0 is for ever
    provision: Provision = "create"

    async def ensure(self, link: Link) -> None:
        """See that it is there, as far as `provision` goes; raises what `ensure` of this module does."""
        config = StreamConfig(
            name=self.name,
            subjects=self.subjects,
            max_age=self.max_age,
            storage=StorageType.FILE,
            duplicate_window=min(_DUPLICATE_WINDOW, self.max_age or _DUPLICATE_WINDOW),  # the server's own rule
        )
        await ensure(link, config, self.provision)
