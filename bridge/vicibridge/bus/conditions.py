"""Settings of existing streams and buckets that break a guarantee of the bridge, and how to fix them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig

from vicifast import _wire

from ..contract.subjects import covered, overlap

Grade = Literal["error", "warning", "note"]
"""error: the bridge does not work; warning: a guarantee does not hold; note: a limit that may be intended."""

_LARGEST = _wire.MAX_PACKET + 64 * 1024  # bytes: the largest message of charon and its envelope


@dataclass(frozen=True, slots=True)
class Problem:
    """A guarantee of the bridge that does not hold; `text` names the cause, the consequence and the fix.

    With `blocks`, JetStream acknowledges no message published there; with `drops`, it does not keep what it has
    acknowledged.
    """

    grade: Grade
    text: str
    blocks: bool = False
    drops: bool = False


@dataclass(frozen=True, slots=True)
class Target:
    """A stream that the bridge requires: `wanted` as the bridge creates it, and `prefix` of the bridge's subjects.

    `refresh` is the number of seconds within which the bridge writes a value again that has vanished from a bucket; 0
    if unknown.
    """

    wanted: StreamConfig
    prefix: str = ""
    refresh: float = 0

    @property
    def name(self) -> str:
        return str(self.wanted.name)

    @property
    def subjects(self) -> list[str]:
        return self.wanted.subjects or []

    @property
    def kind(self) -> Literal["stream", "bucket"]:
        return "bucket" if self.name.startswith("KV_") else "stream"

    def __str__(self) -> str:
        return f"the {self.kind} {self.name.removeprefix('KV_')}"


Find = Callable[[StreamConfig, Target], str]
Add = Callable[[StreamConfig, Target], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Condition:
    """One setting of a stream or bucket that breaks a guarantee.

    `find` returns the problem as the predicate of a sentence about the stream, or "" if there is none. `fix` is a
    command or an instruction. `add` returns the settings that `provision = "reconcile"` changes, which never make the
    stream keep or accept less than now. With `final`, nothing but a new stream helps: reconcile changes nothing.
    """

    property: str
    of: Literal["stream", "bucket", "both"]
    grade: Grade
    find: Find
    breaks: str
    fix: str
    add: Add | None = None
    blocks: bool = False
    drops: bool = False
    final: bool = False

    def problem(self, present: StreamConfig, target: Target) -> Problem | None:
        """Return the problem of a stream by this condition, if any."""
        wrong = self.find(present, target) if self.of in ("both", target.kind) else ""
        if not wrong:
            return None
        facts = {
            "name": target.name,
            "subjects": ",".join(_apart(present, target)),
            "age": _duration(target.wanted.max_age or 0),
            "window": _duration(target.wanted.duplicate_window),
        }
        text = f"{target} {wrong}: {self.breaks}; {self.fix.format(**facts)}"
        return Problem(self.grade, text, self.blocks, self.drops)


def problems(present: StreamConfig, target: Target) -> list[Problem]:
    """Return the problems of a stream or bucket; only the blocking and final ones if there are any."""
    found = [(each, problem) for each in CONDITIONS if (problem := each.problem(present, target))]
    decisive = [problem for condition, problem in found if condition.blocks or condition.final]
    return decisive or [problem for _, problem in found]


def fixable(present: StreamConfig, target: Target) -> bool:
    """Return whether other settings can make a stream or bucket usable."""
    return not any(condition.final and condition.problem(present, target) for condition in CONDITIONS)


def _apart(present: StreamConfig, target: Target) -> list[str]:
    """Return the subjects that a stream needs, and those of its own that overlap neither with these nor with commands.

    If the stream has subjects of the log, all of the log is included.
    """
    log, commands = f"{target.prefix}.*.log.>", f"{target.prefix}.*.cmd.*"
    has = present.subjects or []
    needed = [*target.subjects, *([log] if target.prefix and any(overlap(log, subject) for subject in has) else [])]
    return [*needed, *(one for one in has if not any(overlap(one, other) for other in (*needed, commands)))]


def _is(text: str, **properties: object) -> Find:
    return lambda present, _: text if all(getattr(present, key) == value for key, value in properties.items()) else ""


def _number(key: str, below: int = 0) -> Find:
    """Find a property that is greater than 0, and less than `below` if that is given."""

    def find(present: StreamConfig, _: Target) -> str:
        value = getattr(present, key) or 0
        return f"has {key} = {value}" if value > 0 and (not below or value < below) else ""

    return find


def _limit(discard: DiscardPolicy) -> Find:
    """Find a limit at which a stream rejects messages (new) or deletes the oldest (old)."""

    def find(present: StreamConfig, _: Target) -> str:
        limits = [f"{key} = {value}" for key in ("max_bytes", "max_msgs") if (value := getattr(present, key) or 0) > 0]
        return (
            f"has {' and '.join(limits)} with discard = {discard.value}"
            if limits and present.discard == discard
            else ""
        )

    return find


def _short_age(present: StreamConfig, target: Target) -> str:
    age, wanted = present.max_age or 0, target.wanted.max_age or 0
    return f"has max_age = {_duration(age)}" if age and (not wanted or age < wanted) else ""


def _long_age(present: StreamConfig, target: Target) -> str:
    age = present.max_age or 0
    return f"has max_age = {_duration(age)}" if age > target.refresh else ""


def _vanishes(present: StreamConfig, target: Target) -> str:
    age = present.max_age or 0
    refresh = f"the {_duration(target.refresh)} after which the bridge writes a missing value again"
    return f"has max_age = {_duration(age)}, not more than {refresh}" if 0 < age <= target.refresh else ""


def _short_window(present: StreamConfig, target: Target) -> str:
    window = present.duplicate_window or 0
    return f"has duplicate_window = {_duration(window)}" if window < target.wanted.duplicate_window else ""


def uncovered(present: StreamConfig, target: Target) -> list[str]:
    """Return the subjects of `target` that a stream does not cover completely."""
    return [subject for subject in target.subjects if not covered(subject, present.subjects or ())]


def _lacks_subjects(present: StreamConfig, target: Target) -> str:
    missing = uncovered(present, target) if not present.mirror else []
    return f"lacks the subjects {', '.join(missing)}" if missing else ""


def _add_subjects(present: StreamConfig, target: Target) -> Mapping[str, Any]:
    """Add the missing subjects and remove those that they cover; nothing if they would overlap with other subjects."""
    missing = uncovered(present, target)
    kept = [subject for subject in present.subjects or () if not covered(subject, missing)]
    apart = not any(overlap(one, other) for one in kept for other in missing)
    return {"subjects": [*kept, *missing]} if apart else {}


def _captures_commands(present: StreamConfig, target: Target) -> str:
    commands = f"{target.prefix}.*.cmd.*"
    capturing = [subject for subject in present.subjects or () if target.prefix and overlap(subject, commands)]
    return f"captures requests ({', '.join(capturing)})" if capturing else ""


def _transforms(present: StreamConfig, target: Target) -> str:
    transform = present.subject_transform
    if not transform or not any(overlap(transform.src or ">", subject) for subject in target.subjects):
        return ""
    return f"has a subject_transform to {transform.dest}"


def _no_rollups(present: StreamConfig, _: Target) -> str:
    return "" if present.allow_rollup_hdrs or present.deny_purge else "has no allow_rollup_hdrs"


def _no_expiry(present: StreamConfig, _: Target) -> str:
    # Servers that can expire messages (2.11 and later) report their API level here.
    supported = "_nats.level" in (present.metadata or {}) and not present.deny_purge  # which excludes markers
    return "has no allow_msg_ttl" if supported and not present.allow_msg_ttl else ""


def _no_markers(present: StreamConfig, _: Target) -> str:
    expiring = present.allow_msg_ttl and not present.deny_purge
    return "has no subject_delete_marker_ttl" if expiring and not present.subject_delete_marker_ttl else ""


def _sets(**values: object) -> Add:
    return lambda _, target: values


def _as_wanted(*keys: str) -> Add:
    return lambda _, target: {key: getattr(target.wanted, key) for key in keys}


def _duration(seconds: float) -> str:
    """Return a duration in the notation of the `nats` command."""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size and not seconds % size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:g}s"


_EDIT = "run nats stream edit {name} "
CAPTURED = "JetStream replies to requests before the bridge, stores their secrets, and hides that no bridge is running"
"""The consequence of a stream that captures requests."""
_RECREATE = "delete it, then create it again or let the bridge create it, because this setting cannot be changed"

# fmt: off
CONDITIONS = (
    Condition(
        "no_ack", "both", "error", _is("has no_ack", no_ack=True),
        "JetStream acknowledges nothing, so nothing counts as stored",
        _EDIT + "--ack", _sets(no_ack=False), blocks=True,
    ),
    Condition(
        "sealed", "both", "error", _is("is sealed", sealed=True),
        "JetStream rejects every message", _RECREATE, blocks=True, final=True,
    ),
    Condition(
        "mirror", "both", "error", lambda present, _: f"is a mirror of {present.mirror.name}" if present.mirror else "",
        "a mirror only copies another stream and accepts no messages from the bridge",
        "delete it, then create it again or let the bridge create it", final=True,
    ),
    Condition(
        "allow_msg_counter", "both", "error", _is("has allow_msg_counter", allow_msg_counter=True),
        "JetStream rejects every message that is not an increment", _RECREATE, blocks=True, final=True,
    ),
    Condition(
        "subjects", "both", "error", _lacks_subjects,
        "messages of the bridge on these subjects are not stored", _EDIT + "--subjects='{subjects}'", _add_subjects,
    ),
    Condition(
        "subjects of requests", "stream", "warning", _captures_commands,
        CAPTURED,
        _EDIT + "--subjects='{subjects}'",
    ),
    Condition(
        "subject_transform", "both", "error", _transforms,
        "messages of the bridge are stored under other subjects, where no reader looks for them",
        _EDIT + "--no-transform", drops=True,
    ),
    Condition(
        "retention = interest", "both", "error", _is("has retention = interest", retention=RetentionPolicy.INTEREST),
        "JetStream acknowledges and drops messages in which no consumer is interested",
        _EDIT + "--retention=limits", _sets(retention=RetentionPolicy.LIMITS), drops=True,
    ),
    Condition(
        "retention = workqueue", "stream", "warning",
        _is("has retention = workqueue", retention=RetentionPolicy.WORK_QUEUE),
        "each event goes to one consumer only, and subscriptions with a start are rejected", _RECREATE,
    ),
    Condition(
        "retention = workqueue", "bucket", "error",
        _is("has retention = workqueue", retention=RetentionPolicy.WORK_QUEUE),
        "JetStream rejects every watcher of the mirror", _RECREATE,
    ),
    Condition(
        "discard_new_per_subject", "stream", "error", _is("has discard_new_per_subject", discard_new_per_subject=True),
        "JetStream rejects an event if its subject already has max_msgs_per_subject events",
        _EDIT + "--no-discard-per-subject --max-msgs-per-subject=-1",
        _sets(discard_new_per_subject=False, max_msgs_per_subject=-1),
    ),
    Condition(
        "discard_new_per_subject", "bucket", "error", _is("has discard_new_per_subject", discard_new_per_subject=True),
        "JetStream rejects changes of existing keys",
        _EDIT + "--no-discard-per-subject", _sets(discard_new_per_subject=False),
    ),
    Condition(
        "max_msgs_per_subject", "stream", "warning", _number("max_msgs_per_subject"),
        "older events of the same tunnel are deleted before stream_max_age_days",
        _EDIT + "--max-msgs-per-subject=-1", _sets(max_msgs_per_subject=-1),
    ),
    Condition(
        "max_msgs_per_subject", "bucket", "warning",
        lambda present, _: "" if present.max_msgs_per_subject > 0 else "has no max_msgs_per_subject",
        "every value is kept, so the bucket grows without limit", _EDIT + "--max-msgs-per-subject=1",
    ),
    Condition(
        "max_age", "stream", "warning", _short_age,
        "events are deleted before stream_max_age_days",
        _EDIT + "--max-age={age}, or lower stream_max_age_days", _as_wanted("max_age"),
    ),
    Condition(
        "max_age, interval", "bucket", "error", _vanishes,
        "current values are absent from the mirror most of the time",
        _EDIT + "--max-age=0s", _sets(max_age=0), drops=True,
    ),
    Condition(
        "max_age", "bucket", "warning", _long_age,
        "current values are removed from the mirror until the bridge next compares it",
        _EDIT + "--max-age=0s", _sets(max_age=0),
    ),
    Condition(
        "max_bytes, max_msgs, discard = old", "stream", "note", _limit(DiscardPolicy.OLD),
        "if it is full, the oldest events are deleted before stream_max_age_days",
        _EDIT + "--max-bytes=-1 --max-msgs=-1, unless this is intended",
    ),
    Condition(
        "max_bytes, max_msgs, discard = new", "stream", "warning", _limit(DiscardPolicy.NEW),
        "if it is full, JetStream rejects events: they stay in the spool, and the oldest are lost if that is full",
        _EDIT + "--discard=old",
    ),
    Condition(
        "max_bytes, max_msgs, discard = old", "bucket", "warning", _limit(DiscardPolicy.OLD),
        "if it is full, keys are removed from the mirror",
        _EDIT + "--max-bytes=-1 --max-msgs=-1 --discard=new", _sets(discard=DiscardPolicy.NEW),
    ),
    Condition(
        "max_bytes, max_msgs, discard = new", "bucket", "warning", _limit(DiscardPolicy.NEW),
        "if it is full, JetStream rejects new keys and larger values, and the mirror is incomplete",
        _EDIT + "--max-bytes=-1 --max-msgs=-1",
    ),
    Condition(
        "max_msg_size", "both", "warning", _number("max_msg_size", below=_LARGEST),
        "JetStream rejects larger messages, and charon's messages have up to 512 KiB", _EDIT + "--max-msg-size=-1",
    ),
    Condition(
        "max_consumers", "both", "warning", _number("max_consumers"),
        "JetStream rejects further readers", _EDIT + "--max-consumers=0",
    ),
    Condition(
        "duplicate_window", "stream", "warning", _short_window,
        "an event that is sent again after a longer outage is stored twice",
        _EDIT + "--dupe-window={window}", _as_wanted("duplicate_window"),
    ),
    Condition(
        "storage = memory", "stream", "warning", _is("has storage = memory", storage=StorageType.MEMORY),
        "acknowledged events are lost when the server restarts", _RECREATE,
    ),
    Condition(
        "storage = memory", "bucket", "warning", _is("has storage = memory", storage=StorageType.MEMORY),
        "the mirror is lost when the server restarts, until a bridge writes it again", _RECREATE,
    ),
    Condition(
        "deny_purge", "bucket", "error", _is("has deny_purge", deny_purge=True),
        "JetStream rejects deletions of keys, so closed SAs stay in the mirror", _RECREATE,
    ),
    Condition(
        "allow_rollup_hdrs", "bucket", "error", _no_rollups,
        "JetStream rejects deletions of keys, so closed SAs stay in the mirror",
        _EDIT + "--allow-rollup", _sets(allow_rollup_hdrs=True),
    ),
    Condition(
        "allow_direct", "bucket", "note",
        lambda present, _: "" if present.allow_direct else "has no allow_direct",
        "the bridge reads the bucket with a consumer, which is slower and needs permission to create and delete one",
        _EDIT + "--allow-direct", _sets(allow_direct=True),
    ),
    Condition(
        "allow_msg_ttl", "bucket", "warning", _no_expiry,
        "the key of a bridge that is gone does not expire",
        _EDIT + "--allow-msg-ttl --subject-del-markers-ttl=1h",
        _as_wanted("allow_msg_ttl", "subject_delete_marker_ttl"),
    ),
    Condition(
        "subject_delete_marker_ttl", "bucket", "warning", _no_markers,
        "watchers of the mirror are not notified when the key of a bridge expires",
        _EDIT + "--subject-del-markers-ttl=1h", _as_wanted("subject_delete_marker_ttl"),
    ),
)
# fmt: on
"""Every condition, in the order in which reconcile fixes them."""
