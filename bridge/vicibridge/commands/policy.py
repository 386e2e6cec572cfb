"""Decides which commands, with which arguments, may be run over NATS."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from vicifast.commands import COMMANDS

from ..contract.names import BAD_REQUEST, DENIED, UNKNOWN
from .request import RequestError

if TYPE_CHECKING:
    from ..config.model import CommandsConfig

MAX_LOGLEVEL = 2  # charon's levels 3 and 4 may show key material
_ANSWER_IN = 0.9  # charon's share of the request's timeout, so that its reply arrives before that
_WHERE = "in [commands] of its configuration"

# charon compares some of these names case-insensitively, and sections by prefix (cert*, cacert*), so they are matched
# case-insensitively at any depth.
_SCRIPTS = frozenset({"updown"})
_FILES = frozenset({"file", "handle", "slot", "module"})


class Policy:
    """The rules of one configuration."""

    def __init__(self, settings: CommandsConfig) -> None:
        self._settings = settings

    def allows(self, command: str) -> bool:
        """Whether the command or its group is in `allow`."""
        known = COMMANDS.get(command)
        if known is not None and f"@{known.danger}" in self._settings.allow:
            return True
        return command in self._settings.allow and not command.startswith("@")

    @property
    def allowed(self) -> list[str]:
        """The allowed commands: known ones first."""
        named = [name for name in self._settings.allow if not name.startswith("@") and name not in COMMANDS]
        return [name for name in COMMANDS if self.allows(name)] + named

    def admit(self, command: str) -> None:
        """Raise RequestError if the command is not allowed."""
        if self.allows(command):
            return
        known = COMMANDS.get(command)
        if known is None:
            text = f"unknown command {command[:64]!r}; one that only this charon has must be named in allow {_WHERE}"
            raise RequestError(UNKNOWN, text)
        opens = f'add "{command}" or "@{known.danger}" to allow {_WHERE}'
        raise RequestError(DENIED, f"{command} is not allowed on this bridge; to allow it, {opens}")

    def judge(self, command: str, arguments: Mapping[str, object], seconds: float) -> dict[str, object]:
        """Return the arguments to send to charon; raises RequestError if one is not allowed.

        A command that can block a thread of charon gets a finite timeout below `seconds`.
        """
        known = COMMANDS.get(command)
        sent = dict(arguments)
        if known is None:
            return sent
        if known.name == "load-conn" and not self._settings.allow_updown:
            _deny(command, _named(arguments, _SCRIPTS), "a script that charon runs", "allow_updown")
        if known.name in ("load-conn", "load-authority") and not self._settings.allow_files:
            _deny(command, _named(arguments, _FILES), "a file or token that charon reads", "allow_files")
        if known.name == "load-authority" and not self._settings.allow_files:
            _deny(command, _file_uri(arguments), "a file that charon fetches", "allow_files")
        if known.blocks:
            sent["timeout"] = _timeout(arguments, seconds)
            sent["loglevel"] = min(_integer(arguments, "loglevel", 1, least=-1), MAX_LOGLEVEL)
        return sent


def _deny(command: str, path: str | None, what: str, switch: str) -> None:
    if path is not None:
        text = f"{command}: {path} names {what}; to allow it, set {switch} = true {_WHERE}"
        raise RequestError(DENIED, text)


def _named(arguments: Mapping[str, object], names: frozenset[str]) -> str | None:
    return next((".".join(path) for path, _ in _values(arguments) if path[-1].lower() in names), None)


def _file_uri(arguments: Mapping[str, object]) -> str | None:
    for path, value in _values(arguments):
        items = value if isinstance(value, list) else [value]
        if any(str(item).strip().lower().startswith("file:") for item in items):
            return ".".join(path)
    return None


def _values(section: Mapping[str, object], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    """Yield the path and value of every element that is not a section."""
    for name, value in section.items():
        path = (*above, name)
        if isinstance(value, Mapping):
            yield from _values(value, path)
        else:
            yield path, value


def may_block(command: str, arguments: Mapping[str, object]) -> bool:
    """Whether the command may hold a thread of charon until it is done; assumed for unknown commands."""
    known = COMMANDS.get(command)
    return known is None or (known.blocks and arguments.get("timeout") != -1)


def _timeout(arguments: Mapping[str, object], seconds: float) -> int:
    """Return the timeout for charon in milliseconds; 0 and none mean unlimited to charon and are lowered as well."""
    longest = max(1, int(seconds * 1000 * _ANSWER_IN))
    given = _integer(arguments, "timeout", longest, least=-1)
    return min(given, longest) if given else longest


def _integer(arguments: Mapping[str, object], key: str, default: int, *, least: int) -> int:
    value = arguments.get(key, str(default))
    if not isinstance(value, str) or not value.removeprefix("-").isdecimal() or len(value) >= 16:
        raise RequestError(BAD_REQUEST, f"{key} must be a whole number")
    if int(value) < least:
        raise RequestError(BAD_REQUEST, f"{key} must be {least} or more")
    return int(value)
