"""The one table of charon's commands and events; sessions, command lines and the bridge all read it.

Source: strongSwan 5.9.8 to 6.0.6, `vici_control.c`, `vici_query.c`, `vici_config.c`, `vici_cred.c`,
`vici_authority.c`, `vici_attribute.c`, `vici_counters.c` and `vici_logger.c`. All 36 commands exist in every one of
these releases. charon may know more (patched daemons); the library does not refuse what the table lacks.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

# charon.plugins.vici.socket as strongSwan is built.
DEFAULT_ADDRESS = "tcp://127.0.0.1:4502" if sys.platform == "win32" else "unix:///var/run/charon.vici"


class Danger(StrEnum):
    """What a caller of the command can do to the gateway."""

    READ = "read"
    OPERATE = "operate"
    CONFIGURE = "configure"
    SECRETS = "secrets"


@dataclass(frozen=True, slots=True)
class Command:
    """One command: `event` is what it streams, `blob` the request keys that may hold any bytes."""

    name: str
    danger: Danger
    event: str | None = None
    blocks: bool = False
    blob: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Event:
    """One event: `standalone` ones come unasked once registered, the others only within a command of one's own.

    `since` is the first strongSwan release that has it; `binary` names the root keys whose values are no text.
    """

    name: str
    standalone: bool
    since: str = "5.2.0"
    binary: frozenset[str] = frozenset()


def _commands() -> dict[str, Command]:
    read, operate = Danger.READ, Danger.OPERATE
    configure, secrets = Danger.CONFIGURE, Danger.SECRETS
    data = frozenset({"data"})
    table = [
        Command("version", read),
        Command("stats", read),
        Command("reload-settings", configure),
        Command("initiate", operate, "control-log", blocks=True),
        Command("terminate", operate, "control-log", blocks=True),
        Command("rekey", operate),
        Command("redirect", operate),
        Command("install", operate),
        Command("uninstall", operate),
        Command("list-sas", read, "list-sa"),
        Command("list-policies", read, "list-policy"),
        Command("list-conns", read, "list-conn"),
        Command("get-conns", read),
        Command("list-certs", read, "list-cert"),
        Command("list-authorities", read, "list-authority"),
        Command("get-authorities", read),
        Command("load-conn", configure, blob=frozenset({"certs", "cacerts", "pubkeys"})),
        Command("unload-conn", configure),
        Command("load-cert", configure, blob=data),
        Command("load-key", secrets, blob=data),
        Command("unload-key", configure),
        Command("get-keys", read),
        Command("load-token", secrets),
        Command("load-shared", secrets, blob=data),
        Command("unload-shared", configure),
        Command("get-shared", read),
        Command("flush-certs", configure),
        Command("clear-creds", configure),
        Command("load-authority", configure, blob=frozenset({"cacert"})),
        Command("unload-authority", configure),
        Command("load-pool", configure),
        Command("unload-pool", configure),
        Command("get-pools", read),
        Command("get-algorithms", read),
        Command("get-counters", read),
        Command("reset-counters", operate),
    ]
    return {command.name: command for command in table}


def _events() -> dict[str, Event]:
    table = [
        Event("log", standalone=True),
        Event("ike-updown", standalone=True),
        Event("ike-rekey", standalone=True, since="5.3.3"),
        Event("ike-update", standalone=True, since="5.9.2"),
        Event("child-updown", standalone=True),
        Event("child-rekey", standalone=True, since="5.3.3"),
        Event("alert", standalone=True, since="6.0.3"),
        Event("control-log", standalone=False),
        Event("list-sa", standalone=False),
        Event("list-policy", standalone=False),
        Event("list-conn", standalone=False),
        Event("list-cert", standalone=False, binary=frozenset({"data"})),
        Event("list-authority", standalone=False, since="5.3.3"),
    ]
    return {event.name: event for event in table}


COMMANDS: Mapping[str, Command] = MappingProxyType(_commands())
EVENTS: Mapping[str, Event] = MappingProxyType(_events())
