"""The requests that load a configuration, worked out without a socket, and what came of them."""

from __future__ import annotations

from collections.abc import Awaitable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, TypeVar

from .commands import COMMANDS, Danger
from .errors import CommandError, EncodeError, UnknownCommand, ViciError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Step:
    """One request: `what` says for people what it loads, `name` is what the daemon calls that.

    With a `problem` there is nothing to send, and the text says why. No secret is in the repr.
    """

    what: str
    command: str
    message: Mapping[str, object] = field(repr=False, default_factory=dict)
    name: str = ""
    problem: str = ""


@dataclass(slots=True)
class Report:
    """What was loaded, what was unloaded, and what failed with the reason: one line of text each, without secrets."""

    loaded: list[str] = field(default_factory=list)
    unloaded: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


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
    """What is loaded by name: the command that lists the names, and the key of the list (None: each is a section)."""

    name: str
    query: str
    key: str | None
    unload: str
    after: str  # what is left alone when one of these fails


_AUTHORITIES = _Kind("authority", "get-authorities", "authorities", "unload-authority", "pools and connections")
_POOLS = _Kind("pool", "get-pools", None, "unload-pool", "connections")
_CONNECTIONS = _Kind("connection", "get-conns", "conns", "unload-conn", "")


@dataclass(frozen=True, slots=True)
class Plan:
    """A configuration ready to be loaded: every file is read, every key opened. `vicifast.swanctl` makes it."""

    credentials: tuple[Step, ...] = ()
    authorities: tuple[Step, ...] = ()
    pools: tuple[Step, ...] = ()
    connections: tuple[Step, ...] = ()

    def load(self, session: BlockingCaller, *, clear: bool = False) -> Report:
        """Load everything through a blocking session, and unload what is not in the plan.

        What the daemon refuses is in the report. `clear` removes all credentials first, certificates too, which are
        otherwise never unloaded. Raises as the session's `call` does when the connection fails.
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
        """Do through an asyncio session what `load` does."""
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
        """The requests one after the other: send in each reply, or throw in the error that came in its place.

        As in swanctl, what comes later is left alone when an authority or a pool cannot be loaded.
        """
        report = Report()
        if clear:
            yield Step("all credentials", "clear-creds")
        yield from self._load_credentials(report)
        kinds = ((_AUTHORITIES, self.authorities), (_POOLS, self.pools), (_CONNECTIONS, self.connections))
        for kind, steps in kinds:
            if not (yield from _replace(kind, steps, report)) and kind.after:
                report.failed.append(f"{kind.after}: left as they were, because an earlier {kind.name} failed")
                break
        return report

    def _load_credentials(self, report: Report) -> _Asking[None]:
        keys = yield from _listed("get-keys", "keys")
        shared = yield from _listed("get-shared", "keys")
        for step in self.credentials:
            reply = yield from _load(step, report)
            if reply is not None and step.command in ("load-key", "load-token"):
                keys.pop(str(reply.get("id")), None)
            elif reply is not None and step.command == "load-shared":
                shared.pop(step.name, None)
        for name in keys:
            yield from _unload(Step(f"private key {name}", "unload-key", {"id": name}), report)
        for name in shared:
            yield from _unload(Step(f"shared secret {name}", "unload-shared", {"id": name}), report)


def _replace(kind: _Kind, steps: tuple[Step, ...], report: Report) -> _Asking[bool]:
    """Load all, and unload what else the daemon has; whether all was loaded."""
    known = yield from _listed(kind.query, kind.key)
    complete = True
    for step in steps:
        known.pop(step.name, None)
        complete &= (yield from _load(step, report)) is not None
    for name in known:
        yield from _unload(Step(f"{kind.name} {name}", kind.unload, {"name": name}), report)
    return complete


def _listed(query: str, key: str | None) -> _Asking[dict[str, None]]:
    reply = yield Step(f"what is loaded, by {query}", query)
    return dict.fromkeys(reply.get(key, ()) if key is not None else reply)


def _load(step: Step, report: Report) -> _Asking[_Reply | None]:
    reply = yield from _send(step, report, step.what)
    if reply is not None:
        report.loaded.append(step.what)
    return reply


def _unload(step: Step, report: Report) -> _Asking[None]:
    if (yield from _send(step, report, f"unloading {step.what}")) is not None:
        report.unloaded.append(step.what)


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
    if isinstance(error, EncodeError) and COMMANDS[step.command].danger is Danger.SECRETS:
        return "it holds text that is not printable ASCII, or is over 65535 bytes"  # the error may quote it
    return str(error)
