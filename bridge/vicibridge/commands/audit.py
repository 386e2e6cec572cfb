"""The audit: an event per request with its requester, arguments and result, without secrets.

A flood of requests must not fill the spool and the stream. A request that changes something therefore waits until the
audit has room and always has its own event; read-only and denied requests above the rate are counted by command and
code, and reported as sums once a second.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Literal

from vicifast.commands import COMMANDS

from ..contract.names import DENIED

Scope = Literal["all", "changes", "denied"]
ReportEvent = Callable[[str, Mapping[str, object]], None]

HIDDEN = "**********"
_NEVER_SHOWN = frozenset({"pin", *(key for command in COMMANDS.values() for key in command.blob)})
_PRINTABLE = re.compile(r"[ -~]{4,}")
_MOST = 4096  # characters of arguments per event
_LONGEST = 256  # characters per text
_SUM_EVERY = 1.0  # seconds


class Allowance:
    """A token bucket: `burst` at once, then `rate` per second."""

    def __init__(self, burst: int, rate: float) -> None:
        self._burst, self._rate = burst, rate
        self._left = float(burst)
        self._at = time.monotonic()

    def wait(self) -> float:
        """Return the seconds until there is a token."""
        now = time.monotonic()
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        return max(0.0, (1 - self._left) / self._rate)

    def take(self) -> bool:
        """Take a token; False if there is none."""
        if self.wait():
            return False
        self._left -= 1
        return True


class Audit:
    """Reports the requests in `scope`: all, those that change something or were denied, or only the denied ones."""

    def __init__(self, report: ReportEvent, scope: Scope) -> None:
        self.scope = scope
        self._report = report
        self._changes = Allowance(1000, 100)
        self._others = Allowance(200, 20)
        self._sums: Counter[tuple[str, int]] = Counter()
        self._since = 0
        self._timer: asyncio.TimerHandle | None = None

    async def room(self) -> None:
        """Wait until a change can be reported; call it before making the change."""
        while self.scope != "denied" and not self._changes.take():
            await asyncio.sleep(self._changes.wait())

    def record(self, command: str, code: int, entry: Mapping[str, object], *, changes: bool) -> None:
        """Report a finished request; `changes` if `room` was awaited for it."""
        if self.scope != "all" and code != DENIED and not (changes and self.scope == "changes"):
            return
        if changes or self._others.take():
            self._report("audit", entry)
            return
        if not self._sums:
            self._since = time.time_ns()
            self._timer = asyncio.get_running_loop().call_later(_SUM_EVERY, self.flush)
        self._sums[command, code] += 1

    def flush(self) -> None:
        """Report the sums."""
        if self._timer is not None:
            self._timer.cancel()
        if self._sums:
            sums = [{"command": name, "code": code, "count": count} for (name, code), count in self._sums.items()]
            self._sums.clear()
            self._report("audit", {"sums": sums, "since": self._since, "until": time.time_ns()})


def is_secret(command: str) -> bool:
    """Whether to hide every argument: the command carries secrets or is unknown."""
    known = COMMANDS.get(command)
    return known is None or known.secret


def show(command: str, arguments: Mapping[str, object]) -> dict[str, object]:
    """Return the arguments with secrets hidden and long texts and lists cut."""
    if is_secret(command):
        known = COMMANDS.get(command)
        names = {key.name for key in known.keys} if known else set()
        return {name: HIDDEN for name in arguments if name in names}
    return _Shown().section(arguments)


class _Shown:
    """Copies arguments up to the size limit."""

    def __init__(self) -> None:
        self._left = _MOST

    def section(self, section: Mapping[str, object]) -> dict[str, object]:
        shown: dict[str, object] = {}
        for name, value in section.items():
            if self._left <= 0:
                shown["..."] = "..."
                break
            shown[self.text(name)] = HIDDEN if name.lower() in _NEVER_SHOWN else self._value(value)
        return shown

    def _value(self, value: object) -> object:
        if isinstance(value, Mapping):
            return self.section(value)
        if not isinstance(value, list):
            return self.text(str(value))
        items: list[object] = []
        for item in value:
            if self._left <= 0:
                return [*items, "..."]
            items.append(self.text(str(item)))
        return items

    def text(self, text: str) -> str:
        shown = printable(text, _LONGEST)
        self._left -= len(shown) + 4
        return shown


def printable(text: str, longest: int) -> str:
    """Return a text in printable ASCII, cut to `longest` characters with three dots at the end."""
    cut = text[:longest].encode("ascii", "backslashreplace").decode("ascii")
    plain = "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in cut)
    return plain if len(plain) <= longest and len(text) <= longest else plain[: longest - 3] + "..."


def scrub(text: str, command: str, arguments: Mapping[str, object]) -> str:
    """Remove the request's secrets from an error text of charon, which may repeat one."""
    for secret in _secrets(command, arguments):
        text = text.replace(secret, HIDDEN)
    return text


def _secrets(command: str, section: Mapping[str, object], hidden: bool = False) -> list[str]:
    """Return the text in every value that `show` would hide, the longest first."""
    found: list[str] = []
    for name, value in section.items():
        hide = hidden or is_secret(command) or name.lower() in _NEVER_SHOWN
        if isinstance(value, Mapping):
            found += _secrets(command, value, hide)
        elif hide:
            for item in value if isinstance(value, list) else [value]:
                found += _PRINTABLE.findall(str(item))
    return sorted(found, key=len, reverse=True)
