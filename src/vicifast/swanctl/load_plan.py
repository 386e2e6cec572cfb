"""The requests that load a configuration, computed without a socket, and the report of their results."""

from __future__ import annotations

from collections.abc import Awaitable, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias, TypeVar, get_args

from .._wire import Message
from ..commands import COMMANDS, NO_IKEV1, release
from ..errors import CommandError, EncodeError, UnknownCommand, ViciError

T = TypeVar("T")

Part: TypeAlias = Literal["credentials", "authorities", "pools", "connections"]
PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True, slots=True)
class Step:
    """One request: `what` describes the item it loads, `name` is the daemon's name of the item.

    A `problem` is the reason that nothing can be sent; `skipped` likewise, but is not a failure. A step without a
    `command` only reports an omission. The repr contains no secret.
    """

    what: str
    command: str
    message: Mapping[str, object] = field(repr=False, default_factory=dict)
    name: str = ""
    problem: str = ""
    skipped: str = ""

    @property
    def unread(self) -> bool:
        """Whether the item could not be read."""
        return bool(self.command and (self.problem or self.skipped))


@dataclass(slots=True)
class Report:
    """The items that were loaded and unloaded, and the others with the reason; one line of text each, without secrets.

    `kept` are items that are not in the plan but stay loaded, because another item of their kind could not be read.
    `skipped` are items omitted on purpose. `incomplete` is true if an authority, a pool or a connection was not loaded:
    the failures reflected in swanctl's exit status.
    """

    loaded: list[str] = field(default_factory=list)
    unloaded: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    incomplete: bool = False


_Reply: TypeAlias = Mapping[str, Any]
_Asking: TypeAlias = Generator[Step, _Reply, T]


class BlockingCaller(Protocol):
    """A blocking session whose messages are dicts of text."""

    def call(self, command: str, message: Mapping[str, object] | None = None) -> _Reply: ...


class AsyncCaller(Protocol):
    """An asyncio session whose messages are dicts of text."""

    def call(self, command: str, message: Mapping[str, object] | None = None) -> Awaitable[_Reply]: ...


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of named item: the command that lists the names, and the key of the list (None: each is a section)."""

    name: str
    query: str
    key: str | None
    unload: str
    argument: str  # of the command that unloads


_KEYS = _Kind("private key", "get-keys", "keys", "unload-key", "id")
_SHARED = _Kind("shared secret", "get-shared", "keys", "unload-shared", "id")
_SECTIONS: dict[Part, _Kind] = {
    "authorities": _Kind("authority", "get-authorities", "authorities", "unload-authority", "name"),
    "pools": _Kind("pool", "get-pools", None, "unload-pool", "name"),
    "connections": _Kind("connection", "get-conns", "conns", "unload-conn", "name"),
}


@dataclass(frozen=True, slots=True)
class Plan:
    """A configuration ready to load, with every file read and every key opened; created by `vicifast.swanctl`.

    Only `parts` are loaded and unloaded.
    """

    credentials: tuple[Step, ...] = ()
    authorities: tuple[Step, ...] = ()
    pools: tuple[Step, ...] = ()
    connections: tuple[Step, ...] = ()
    parts: frozenset[Part] = frozenset(PARTS)

    def load(self, session: BlockingCaller, *, clear: bool = False) -> Report:
        """Load everything through a blocking session, and unload items that are not in the plan.

        The report lists items that the daemon refused. `clear` first removes all credentials, including certificates,
        which are otherwise never unloaded; it has no effect if a credential could not be read, or if `parts` does not
        include credentials. Raises the errors of the session's `call` if the connection fails.
        """
        steps = self.steps(clear=clear)
        try:
            step = next(steps)
            while True:
                try:
                    reply = session.call(step.command, step.message)
                except ViciError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(reply)
        except StopIteration as end:
            report: Report = end.value
            return report

    async def load_async(self, session: AsyncCaller, *, clear: bool = False) -> Report:
        """Like `load`, through an asyncio session."""
        steps = self.steps(clear=clear)
        try:
            step = next(steps)
            while True:
                try:
                    reply = await session.call(step.command, step.message)
                except ViciError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(reply)
        except StopIteration as end:
            report: Report = end.value
            return report

    def steps(self, *, clear: bool = False) -> Generator[Step, Mapping[str, Any], Report]:
        """Generate the requests: send each reply into the generator, or throw the error of the request.

        As in swanctl, later parts are not loaded if an authority or a pool cannot be loaded.
        """
        report = Report()
        if "credentials" in self.parts:
            yield from self._load_credentials(report, clear)
        left: list[Part] = [part for part in PARTS if part in _SECTIONS and part in self.parts]
        while left and not report.incomplete:
            part = left.pop(0)
            yield from _replace(_SECTIONS[part], getattr(self, part), report)
        if left:
            report.failed.append(f"{' and '.join(left)}: not loaded, because {part} failed")
        return report

    def warnings(self, version: str) -> list[str]:
        """Items that a daemon of this version loads without an error but may be unable to use, one line each."""
        if release(version) < NO_IKEV1:
            return []
        loads = [step for step in self.connections if step.command and not step.unread]
        versions = {step.name: _ike_version(step.message[step.name]) for step in loads}
        texts = {
            1: "has no IKEv1 unless it was built with it, but these connections need it",
            0: "uses connections without a version for IKEv2 only, unless it was built with IKEv1",
        }
        named = {text: [name for name, own in versions.items() if own == ike] for ike, text in texts.items()}
        return [f"strongSwan {version} {text}: {', '.join(names)}" for text, names in named.items() if names]

    def _load_credentials(self, report: Report, clear: bool) -> _Asking[None]:
        if clear and any(step.unread for step in self.credentials):
            report.kept.append("all credentials: not every credential could be read")
        elif clear:
            yield from _send(Step("all credentials", "clear-creds"), report, "clearing all credentials")
        keys = yield from _listed(_KEYS, report)
        shared = yield from _listed(_SHARED, report)
        all_keys = all_shared = True
        for step in self.credentials:
            reply = yield from _load(step, report)
            if step.command in ("load-key", "load-token"):
                all_keys &= reply is not None
                keys.pop(str((reply or {}).get("id")), None)
            elif step.command == "load-shared":
                all_shared &= not step.unread
                shared.pop(step.name, None)
        yield from _unload(_KEYS, keys, all_keys, report)
        yield from _unload(_SHARED, shared, all_shared, report)


def _replace(kind: _Kind, steps: Iterable[Step], report: Report) -> _Asking[None]:
    """Load all items, and unload all others that the daemon has."""
    known = yield from _listed(kind, report)
    readable = True
    for step in steps:
        known.pop(step.name, None)
        readable &= not step.unread
        loaded = yield from _load(step, report)
        report.incomplete |= loaded is None and not step.skipped
    yield from _unload(kind, known, readable, report)


def _ike_version(connection: object) -> int:
    """Return 1 or 2, or 0 for either; without a version, options that only IKEv1 has imply 1."""
    assert isinstance(connection, Mapping | Message)
    items = [(key.lower(), value) for key, value in connection.items()]
    values = dict(items)
    if (version := str(values.get("version", "0"))) != "0":
        return 1 if version == "1" else 2
    rounds = [
        value for key, value in items if key.startswith(("local", "remote")) and isinstance(value, Mapping | Message)
    ]
    xauth = any(str(value).startswith("xauth") for own in rounds for key, value in own.items() if key.lower() == "auth")
    return 1 if xauth or str(values.get("aggressive")).lower() in ("yes", "true", "enabled", "1") else 0


def _listed(kind: _Kind, report: Report) -> _Asking[dict[str, None]]:
    """Return the names loaded in the daemon; empty, so that nothing is unloaded, if it does not list them."""
    reply = yield from _send(Step(kind.query, kind.query), report, kind.query)
    if reply is None:
        return {}
    return dict.fromkeys(reply.get(kind.key, ()) if kind.key is not None else reply)


def _load(step: Step, report: Report) -> _Asking[_Reply | None]:
    if step.skipped:
        report.skipped.append(f"{step.what}: {step.skipped}")
        return None
    reply = yield from _send(step, report, step.what)
    if reply is not None:
        report.loaded.append(step.what)
    return reply


def _unload(kind: _Kind, names: Iterable[str], complete: bool, report: Report) -> _Asking[None]:
    """Unload items not in the plan, unless an item of the kind could not be read, as its name is then unknown."""
    for name in names:
        what = f"{kind.name} {name}"
        if not complete:
            report.kept.append(f"{what}: not every {kind.name} could be read")
        elif (
            yield from _send(Step(what, kind.unload, {kind.argument: name}), report, f"unloading {what}")
        ) is not None:
            report.unloaded.append(what)


def _send(step: Step, report: Report, doing: str) -> _Asking[_Reply | None]:
    problem = step.problem
    if not problem:
        try:
            return (yield step)
        except (CommandError, UnknownCommand, EncodeError) as error:
            problem = _reason(error, step)
    report.failed.append(f"{doing}: {problem}")
    return None


def _reason(error: ViciError, step: Step) -> str:
    if isinstance(error, CommandError):
        return error.errmsg or "the daemon gave no reason"
    if isinstance(error, EncodeError) and COMMANDS[step.command].secret:
        return "it contains text that is not printable ASCII, or is over 65535 bytes"  # the error may quote it
    return str(error)
