"""Checks JetStream and charon for `vicibridge check --nats --charon`; changes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nats.errors import Error as NatsError
from nats.js.errors import NotFoundError

from vicifast.aio import AsyncSession
from vicifast.commands import EVENTS, NO_IKEV1, release
from vicifast.errors import ViciError

from ..bus.conditions import CAPTURED, Problem, Target, problems, uncovered
from ..bus.connection import NatsConnection, reason_of
from ..bus.streams import bucket_target, info_of, missing, overlapping, state_stream, streams_over
from ..bus.supervisor import ConnectionSupervisor, Refused
from ..config.model import Config
from ..contract.bucket_values import BUCKETS
from ..contract.nats_settings import hide

_TIMEOUT = 5.0  # seconds for each reply of charon
_CLOSE = 2.0  # seconds to close the connection to NATS
_NEARLY_FULL = 0.9  # share of an account's storage


async def inspect_charons(settings: Config) -> list[Problem]:
    """Connect to each charon; return the features that its version lacks for the bridge and its connections."""
    return [problem for gateway in settings.gateway for problem in await _inspect_charon(gateway.node, gateway.vici)]


async def _inspect_charon(node: str, address: str) -> list[Problem]:
    try:
        async with AsyncSession(address, timeout=_TIMEOUT) as session:
            version = str((await session.call("version"))["version"])
            listed = [item async for message in session.stream("list-conns") for item in message.items()]
    except ViciError as error:
        return [Problem("error", f"{node}: {error}")]
    found = [
        Problem("note", f"{node}: strongSwan {version} has no event {event.name}; it needs {event.since}")
        for event in EVENTS.values()
        if event.standalone and release(version) < release(event.since)
    ]
    old = [name for name, conn in listed if isinstance(conn, dict) and conn.get("version") == "IKEv1"]
    if old and release(version) >= NO_IKEV1:
        text = f"strongSwan {version} has no IKEv1 unless it was built with it, which these connections need"
        found.append(Problem("warning", f"{node}: {text}: {', '.join(old)}"))
    return found


async def inspect(settings: Config) -> list[Problem]:
    """Connect to NATS; return every problem of JetStream that breaks a guarantee of the bridge."""
    bus = ConnectionSupervisor(settings.nats.settings(), "vicibridge check")
    try:
        await bus.connect(1)
    except Refused as refused:
        where = ", ".join(map(hide, settings.nats.urls))
        hint = "" if settings.nats.servers else "; the bridge runs this server itself: check while it does"
        return [Problem("error", f"cannot connect to NATS at {where}: {refused}{hint}")]
    try:
        return await _inspect(bus.current, settings)
    finally:
        await bus.close(_CLOSE)


async def _inspect(connection: NatsConnection, settings: Config) -> list[Problem]:
    try:
        account = await connection.api("INFO")
    except TimeoutError:
        account = None
    except NatsError as error:
        return [Problem("error", f"JetStream cannot be used: {reason_of(error)}")]
    found = [] if account else [_unasked("INFO", "the limits of the account")]
    nats = settings.nats
    targets = [Target(state_stream(nats).config, nats.prefix)]
    if settings.mirror.enabled:
        targets += [bucket_target(bucket, settings.mirror.heartbeat, settings.mirror.interval) for bucket in BUCKETS]
    absent = []
    for target in targets:
        try:
            present, state = await info_of(connection, target)
        except NotFoundError:
            absent.append(target)
            if nats.provision == "bind":
                found.append(Problem("error", missing(target)))
            found += await _others(connection, target, target.subjects)
        except TimeoutError:
            found.append(_unasked(f"STREAM.INFO.{target.name}", str(target)))
        else:
            found += problems(present, target)
            found += _read(target, state, _limits_of(account)["limits"]["max_consumers"]) if account else []
            found += await _others(connection, target, uncovered(present, target))
    found += await _capturing(connection, targets[0])
    if account and nats.provision != "bind":
        found += _creating(_limits_of(account), absent)
    return found + (_filling(_limits_of(account)) if account else [])


async def _others(connection: NatsConnection, target: Target, subjects: Sequence[str]) -> list[Problem]:
    """Return problems of other streams that have subjects of `target`."""
    try:
        others = [name for name in await streams_over(connection, subjects) if name != target.name]
    except TimeoutError:
        return [_unasked("STREAM.NAMES", f"streams that take the subjects of {target}")]
    text = f"{target} cannot take its subjects: {overlapping(target, subjects, others)}"
    return [Problem("error", text)] if others else []


async def _capturing(connection: NatsConnection, target: Target) -> list[Problem]:
    """Return problems of other streams that capture requests."""
    commands = f"{target.prefix}.*.cmd.*"
    try:
        others = [name for name in await streams_over(connection, [commands]) if name != target.name]
    except TimeoutError:
        return [_unasked("STREAM.NAMES", "streams that capture requests")]
    text = "the stream {} captures requests ({}): {}; remove these subjects from it"
    return [Problem("warning", text.format(name, commands, CAPTURED)) for name in others]


def _limits_of(account: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the usage and limits of an account; those for streams without replicas, if it has tiers."""
    tiers: Mapping[str, Mapping[str, Any]] = account.get("tiers") or {}
    return tiers.get("R1", account)


def _creating(account: Mapping[str, Any], absent: Sequence[Target]) -> list[Problem]:
    """Return problems that keep the bridge from creating missing streams."""
    limits, texts = account["limits"], []
    names = ", ".join(target.name for target in absent)
    if absent and 0 < limits["max_streams"] < account["streams"] + len(absent):
        use = f"max_streams = {limits['max_streams']} of the account, of which {account['streams']} are in use"
        texts.append(f"{use}, leaves no room for {names}: raise it to {account['streams'] + len(absent)} or more")
    if absent and limits["max_bytes_required"]:
        texts.append(f"the account requires max_bytes (max_bytes_required): create {names} manually with it")
    if absent and limits["max_storage"] == 0:
        texts.append(f"the account has no storage for {names}: raise its max_file")
    return [Problem("error", text) for text in texts]


def _filling(account: Mapping[str, Any]) -> list[Problem]:
    """Return a problem if the storage of the account is nearly full."""
    limit, used = account["limits"]["max_storage"], max(account["storage"], account.get("reserved_storage", 0))
    if not 0 < limit * _NEARLY_FULL <= used:
        return []
    text = f"{used} of {limit} bytes of the account's storage are in use"
    hint = "when all are, JetStream refuses events and changes of the mirror; raise its max_file"
    return [Problem("warning", f"{text}: {hint}")]


def _read(target: Target, state: Mapping[str, Any], limit: int) -> list[Problem]:
    """Return a problem if a stream has the maximum number of consumers that the account allows."""
    count = state["consumer_count"]
    if not 0 < limit <= count:
        return []
    text = f"{target} has {count} consumers, as many as max_consumers of the account allows"
    return [Problem("warning", f"{text}: JetStream refuses further readers; raise it, or delete consumers not in use")]


def _unasked(endpoint: str, about: str) -> Problem:
    text = f"JetStream does not answer about {about}: let this user publish to $JS.API.{endpoint}"
    return Problem("warning", text)
