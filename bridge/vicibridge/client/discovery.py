"""Lists the gateways with NATS service discovery (ADR-32), which every bridge answers, and the mirror."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterator, Mapping, Set
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar

from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js.api import StreamConfig
from nats.js.errors import NotFoundError

from vicifast.errors import ViciError

from ..bus.bucket_reader import BucketReader, Entry
from ..bus.conditions import Target, problems
from ..bus.connection import NatsConnection, reason_of
from ..contract.bucket_values import BUCKETS, NODE, NodeValue, is_gone, is_present, read
from ..contract.names import SERVICE
from ..contract.subjects import name_of
from .calls import Calls, is_no_responders, news


@dataclass(frozen=True, slots=True)
class Node:
    """A gateway and its bridge: `present` is its value in the mirror's bucket of nodes, `answers` to service discovery.

    `alive` is whether either shows that the bridge runs. Otherwise `gone_since` is when its key in that bucket was
    removed or last written; JetStream forgets a removal after an hour. Unknown values are None.
    """

    name: str
    answers: bool
    present: NodeValue | None
    bridge_version: str | None = None
    charon_version: str | None = None
    removed: datetime | None = None

    @property
    def alive(self) -> bool:
        return self.answers or (self.present is not None and is_present(self.present))

    @property
    def gone_since(self) -> datetime | None:
        if self.alive or self.present is None:
            return None if self.alive else self.removed
        return datetime.fromtimestamp(self.present["updated"] / 1e9, UTC)

    @property
    def charon(self) -> str | None:
        """`up` or `down`."""
        return self.present["charon"] if self.present else None

    @property
    def mirror(self) -> str | None:
        """`complete` or `incomplete`."""
        return self.present["mirror"] if self.present else None


class Inventory(NamedTuple):
    """The gateways, sorted by name; `problems` say what is unknown or wrong and why, `invalid` which values are."""

    nodes: list[Node]
    problems: list[str]
    invalid: list[str]


async def alive(calls: Calls, connection: NatsConnection) -> set[str]:
    """Return the names of the gateways whose bridge runs, as far as this user may read."""
    answers, (present, _, _, _) = await _both(calls, _present(connection))
    return {node.name for node in _nodes(answers, present, {}, set()) if node.alive}


async def take_inventory(calls: Calls, connection: NatsConnection, stream: str) -> Inventory:
    """Ask all bridges, read the bucket of nodes, and look into the other buckets and the stream of the events."""

    async def look() -> tuple[_Present, list[_Look]]:
        names = (stream, *(f"KV_{bucket}" for bucket in BUCKETS))
        looking = asyncio.gather(*(_look(connection, _target(name)) for name in names))
        try:
            return await _present(connection), await looking
        finally:
            looking.cancel()

    answers, ((present, removed, problem, invalid), looks) = await _both(calls, look())
    problems = [problem] if problem else [text for one in looks for text in one.problems]
    if any(one.blocked for one in looks[1:2]):  # a key in a sealed bucket does not expire
        present = {name: NodeValue(**{**value, "expires": False}) for name, value in present.items()}
    blocked = [str(one.target) for one in looks[1:] if one.blocked]
    if blocked:
        present = {name: NodeValue(**{**value, "mirror": "incomplete"}) for name, value in present.items()}
    listed: set[str] = set()
    for one in looks[2:]:
        listed |= await _with_values(connection, one, answers.keys() | present.keys() | listed)
    nodes = _nodes(answers, present, removed, listed)
    return Inventory(nodes, [*dict.fromkeys(problems), *_unknown(nodes, bool(problem))], invalid)


_T = TypeVar("_T")
_Answers = Mapping[str, Mapping[str, Any]]
# The values by node, when those without a value were removed, why the bucket cannot be read, and the invalid values.
_Present = tuple[dict[str, NodeValue], dict[str, datetime], str, list[str]]


async def _both(calls: Calls, reading: Coroutine[Any, Any, _T]) -> tuple[_Answers, _T]:
    """Ask all bridges while `reading`; return the metadata of those that answer, by node, and the result."""
    asking = asyncio.create_task(Discovery("PING").run(calls))
    try:
        result = await reading
        return {one["node"]: one for one in await asking}, result
    finally:
        asking.cancel()


def _nodes(
    answers: _Answers, present: Mapping[str, NodeValue], removed: Mapping[str, datetime], listed: set[str]
) -> list[Node]:
    return [
        Node(
            name,
            name in answers,
            present.get(name),
            answers.get(name, {}).get("bridge") or (present[name]["bridge"] if name in present else None),
            answers.get(name, {}).get("charon") or (present[name]["charon_version"] if name in present else None),
            removed.get(name),
        )
        for name in sorted(answers.keys() | present.keys() | listed)
    ]


def _unknown(nodes: list[Node], unread: bool) -> Iterator[str]:
    """Say what is wrong with the mirror of each node, and why values of it are unknown."""
    if gone := ", ".join(node.name for node in nodes if not node.alive):
        yield f"gone: {gone}: no bridge is running; the mirror has their last known state"
    for node in nodes:
        if node.present is not None and node.present["reasons"]:
            yield f"{node.name}: the mirror is incomplete: {'; '.join(node.present['reasons'])}"
        if node.answers and node.present is None and not unread:
            yield f"{node.name}: the bridge has no key in {NODE}: its mirror is disabled, or it cannot write there"


async def _present(connection: NatsConnection) -> _Present:
    values: dict[str, NodeValue] = {}
    invalid: dict[str, str] = {}
    removed: dict[str, datetime] = {}

    async def take(page: list[Entry]) -> None:
        for entry in page:
            for known in (values, invalid, removed):
                known.pop(entry.key, None)
            if entry.removed is not None:
                removed[entry.key] = entry.removed
            elif entry.value is not None:
                try:
                    values[entry.key] = read(NODE, entry.key, entry.value)
                except ValueError as error:
                    invalid[entry.key] = str(error)

    problem = ""
    try:
        async with BucketReader(connection) as reader:
            await reader.read(NODE, ">", take, history=False, values=True)
    except (NatsError, TimeoutError) as error:
        problem = _unread(_target(f"KV_{NODE}"), f"DIRECT.GET.KV_{NODE}", error)
    named = {name: when for key, when in removed.items() if (name := name_of(key)) is not None}
    return {value["node"]: value for value in values.values()}, named, problem, list(invalid.values())


@dataclass(frozen=True, slots=True)
class _Look:
    """What JetStream says about a stream or bucket."""

    target: Target
    problems: list[str]
    blocked: bool = False
    direct: bool = False
    keys: Mapping[str, list[str]] = field(default_factory=dict)
    """The keys of each node, including those that were removed."""


async def _look(connection: NatsConnection, target: Target) -> _Look:
    config, keys = target.wanted, defaultdict[str, list[str]](list)
    more, offset = True, 0
    try:
        while more:
            wanted = {"subjects_filter": ">", "offset": offset} if target.kind == "bucket" else None
            info = await connection.api(f"STREAM.INFO.{target.name}", wanted)
            config = StreamConfig.from_response(info["config"])
            subjects = info["state"].get("subjects") or {}
            for subject in subjects:
                key = subject.removeprefix(f"$KV.{target.name.removeprefix('KV_')}.")
                if (name := name_of(key.partition(".")[0])) is not None:
                    keys[name].append(key)
            offset += len(subjects)
            more = bool(subjects) and offset < info.get("total", 0)
    except NotFoundError as error:
        if target.kind == "stream":
            return _Look(target, [])  # with [nats] stream, the bridges may use another
        return _Look(target, [_unread(target, "", error)])
    except (NatsError, TimeoutError) as error:
        return _Look(target, [_unread(target, f"STREAM.INFO.{target.name}", error)])
    found = [problem.text for problem in problems(config, target) if problem.blocks]
    return _Look(target, found, bool(found), bool(config.allow_direct), keys)


async def _with_values(connection: NatsConnection, look: _Look, known: Set[str]) -> set[str]:
    """Return the nodes besides `known` that have a value in a bucket."""
    bucket, found = look.target.name.removeprefix("KV_"), set()
    for name in look.keys.keys() - known:
        for key in look.keys[name]:
            asking = connection.jetstream.get_last_msg(look.target.name, f"$KV.{bucket}.{key}", direct=look.direct)
            with contextlib.suppress(NatsError, TimeoutError, ValueError):  # ValueError: of another program
                message = await connection.unless_lost(asking)
                if not is_gone(message.headers) and read(bucket, key, message.data or b""):
                    found.add(name)
                    break
    return found


def _target(name: str) -> Target:
    return Target(StreamConfig(name=name))  # what blocks a stream does not depend on the wanted settings


def _unread(target: Target, endpoint: str, error: Exception) -> str:
    if isinstance(error, NotFoundError):
        return f"{target} does not exist: no bridge with a mirror has created it"
    reason = f"no answer: let this user publish to $JS.API.{endpoint}"
    return f"{target} cannot be read: {reason if isinstance(error, TimeoutError) else reason_of(error)}"


_FIRST = 1.0  # seconds to wait for the first reply; NATS reports missing bridges at once
_NEXT = 0.25  # seconds to wait for each further reply


class Discovery:
    """Collects the replies of all service instances."""

    def __init__(self, what: str) -> None:
        self.subject = f"$SRV.{what}.{SERVICE}"
        self.found: list[Mapping[str, Any]] = []
        self.wake: Callable[[], None] | None = None
        self._ended = False
        self._error: ViciError | None = None

    async def run(self, calls: Calls) -> list[Mapping[str, Any]]:
        """Send the request and return the metadata in the replies when no more arrive."""
        leave = calls.begin(self, b"", {}, _FIRST)
        try:
            while not self._ended:
                async with asyncio.timeout(_NEXT if self.found else _FIRST):
                    await news(self)
        except TimeoutError:
            pass
        finally:
            leave()
        if self._error is not None:
            raise self._error
        return self.found

    def take(self, message: Msg) -> None:
        if is_no_responders(message):
            self._ended = True
        elif (instance := _instance(message.data)) is not None:
            self.found.append(instance)
        else:
            return  # such as an acknowledgement of JetStream, if a stream captures the request
        if self.wake is not None:
            self.wake()

    def fail(self, error: ViciError) -> None:
        self._error = error
        self._ended = True
        if self.wake is not None:
            self.wake()


def _instance(answer: bytes) -> Mapping[str, Any] | None:
    """Return the metadata in the reply of a bridge; None if the payload is something else."""
    try:
        reply = json.loads(answer)
    except (ValueError, RecursionError):
        return None
    if not isinstance(reply, dict) or reply.get("name") != SERVICE:
        return None
    metadata = reply.get("metadata")
    return metadata if isinstance(metadata, dict) and _is_named(metadata) else None


def _is_named(metadata: dict[str, object]) -> bool:
    return "node" in metadata and all(isinstance(value, str) for value in metadata.values())
