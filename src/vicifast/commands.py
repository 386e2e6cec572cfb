"""The tables of charon's commands, events and alert types, used by sessions, command lines and the bridge.

Source: strongSwan 5.9.8 to 6.1.0, `vici_control.c`, `vici_query.c`, `vici_config.c`, `vici_cred.c`,
`vici_authority.c`, `vici_attribute.c`, `vici_counters.c` and `vici_logger.c`. All 36 commands exist in every one of
these releases. A patched charon may have more; the library does not reject commands and events missing here.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import NamedTuple

TESTED = ("5.9.8", "6.0.1", "6.1.0")
"""The strongSwan releases that the tests ran with: those of Debian 12, 13 and sid."""
NO_IKEV1 = (6, 1)
"""The first strongSwan release built without IKEv1 by default."""
DEFAULT_ADDRESS = "tcp://127.0.0.1:4502" if sys.platform == "win32" else "unix:///var/run/charon.vici"
"""charon's default address: `charon.plugins.vici.socket` as built."""


def release(version: str) -> tuple[int, ...]:
    """Return a strongSwan version as comparable numbers: (6, 0, 1) for "6.0.1"; () if it has none."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


class Danger(StrEnum):
    """The effect that a command can have on the gateway."""

    READ = "read"
    OPERATE = "operate"
    CONFIGURE = "configure"
    SECRETS = "secrets"


class Kind(StrEnum):
    """The type of a request key."""

    TEXT = "text"
    NUMBER = "number"
    MILLISECONDS = "milliseconds"  # 0: no limit, -1: do not wait
    SWITCH = "switch"  # yes or no; absent means no
    PRESENCE = "presence"  # present or absent: charon treats any value, also "no", as yes
    LIST = "list"
    BLOB = "blob"


class Key(NamedTuple):
    """One key of a request; charon rejects a request without a `required` key."""

    name: str
    kind: Kind = Kind.TEXT
    required: bool = False


class CommandSpec(NamedTuple):
    """One command: `event` is the event it streams, `blob` the request keys that may hold any bytes.

    `keys` are the keys of the request; a `named` request is instead a single section with a name that the caller
    chooses. `reply` names the content of the reply; with `result` the reply also has `success`, and `errmsg` when that
    is no. `since` is the first strongSwan release with the command, `quirk` describes unexpected behaviour. Where
    arguments are shown, all those of a `secret` command are hidden, whatever its group.
    """

    name: str
    danger: Danger
    keys: tuple[Key, ...] = ()
    named: bool = False
    event: str | None = None
    blocks: bool = False
    blob: frozenset[str] = frozenset()
    reply: tuple[str, ...] = ()
    result: bool = True
    since: str = "5.2.0"
    quirk: str = ""
    secret: bool = False


class Trigger(StrEnum):
    """The parties that can make charon raise an alert."""

    ANYONE = "anyone"
    """Any host that can send packets to charon, at any time, also with replayed and forged packets."""
    UNAUTHENTICATED = "unauthenticated"
    """An unauthenticated peer: the alert has no IKE_SA, or one that is not established."""
    PEER = "peer"
    """An authenticated peer."""
    LOCAL = "local"
    """The gateway itself, or a peer that does not respond."""


class AlertType(NamedTuple):
    """One `type` of the `alert` event."""

    name: str
    trigger: Trigger
    meaning: str


class EventSpec(NamedTuple):
    """One event: a `standalone` event is sent whenever it occurs, others only within a command of the same client.

    `since` is the first strongSwan release with the event; `binary` names the root keys with binary values.
    """

    name: str
    standalone: bool
    since: str = "5.2.0"
    binary: frozenset[str] = frozenset()


def _texts(*names: str) -> tuple[Key, ...]:
    return tuple(Key(name) for name in names)


_NAME = Key("name", required=True)
_DATA = Key("data", Kind.BLOB, required=True)
_IKE_AND_CHILD = (*_texts("ike", "child"), Key("ike-id", Kind.NUMBER), Key("child-id", Kind.NUMBER))
_TIMEOUT = Key("timeout", Kind.MILLISECONDS)
_LOGLEVEL = Key("loglevel", Kind.NUMBER)
_POLICY = (Key("child", required=True), Key("ike"))
_COUNTERS = (Key("name"), Key("all", Kind.SWITCH))
_SECTION = "a section for each"

_CONTROL = (
    CommandSpec(
        "initiate",
        Danger.OPERATE,
        (*_texts("child", "ike"), _TIMEOUT, Key("init-limits", Kind.SWITCH), _LOGLEVEL),
        event="control-log",
        blocks=True,
        quirk="Without a timeout it occupies a charon thread indefinitely, and continues when the client disconnects.",
    ),
    CommandSpec(
        "terminate",
        Danger.OPERATE,
        (*_IKE_AND_CHILD, Key("force", Kind.SWITCH), _TIMEOUT, _LOGLEVEL),
        event="control-log",
        blocks=True,
        reply=("matches", "terminated"),
        quirk="Matching SAs are closed one after the other; the timeout applies to each.",
    ),
    CommandSpec(
        "rekey",
        Danger.OPERATE,
        (*_IKE_AND_CHILD, Key("reauth", Kind.SWITCH)),
        reply=("matches",),
        since="5.5.2",
        quirk="The reply precedes the rekeying, which ike-rekey and child-rekey report; ike-updown reports a"
        " reauthentication, which charon delays by 5 to 15 seconds while a rekeyed CHILD_SA is listed as DELETED.",
    ),
    CommandSpec(
        "redirect",
        Danger.OPERATE,
        (
            Key("gateway", required=True),
            *_texts("ike"),
            Key("ike-id", Kind.NUMBER),
            *_texts("peer-ip", "peer-id"),
        ),
        reply=("matches",),
        since="5.4.0",
        quirk="Requires gateway, which strongSwan's documentation does not mention.",
    ),
    CommandSpec("install", Danger.OPERATE, _POLICY),
    CommandSpec("uninstall", Danger.OPERATE, _POLICY),
)

_QUERIES = (
    CommandSpec("version", Danger.READ, reply=("daemon", "version", "sysname", "release", "machine"), result=False),
    CommandSpec(
        "stats",
        Danger.READ,
        reply=("uptime", "workers", "queues", "scheduled", "ikesas", "plugins", "mem", "mallinfo"),
        result=False,
    ),
    CommandSpec("reload-settings", Danger.CONFIGURE, since="5.2.1"),
    CommandSpec(
        "list-sas",
        Danger.READ,
        (*_IKE_AND_CHILD, Key("noblock", Kind.PRESENCE)),
        event="list-sa",
        result=False,
        quirk="With noblock, SAs that charon is processing are skipped. SAs with AEAD have no integ-alg.",
    ),
    CommandSpec(
        "list-policies",
        Danger.READ,
        (*(Key(name, Kind.PRESENCE) for name in ("drop", "pass", "trap")), *_texts("child", "ike")),
        event="list-policy",
        result=False,
        quirk="Lists nothing unless drop, pass or trap is present.",
    ),
    CommandSpec(
        "list-conns",
        Danger.READ,
        _texts("ike"),
        event="list-conn",
        result=False,
        quirk="local_port and remote_port since 6.0.3, proposals since 6.0.7. IKEv1 connections are listed, although"
        " charon 6.1.0 cannot use them by default.",
    ),
    CommandSpec("get-conns", Danger.READ, reply=("conns",), result=False),
    CommandSpec(
        "list-certs",
        Danger.READ,
        _texts("type", "flag", "subject"),
        event="list-cert",
        result=False,
        quirk="An unknown type lists nothing and is not an error; flag applies only to type X509.",
    ),
    CommandSpec("list-authorities", Danger.READ, _texts("name"), event="list-authority", result=False, since="5.3.3"),
    CommandSpec("get-authorities", Danger.READ, reply=("authorities",), result=False, since="5.3.3"),
    CommandSpec(
        "get-pools",
        Danger.READ,
        (Key("name"), Key("leases", Kind.SWITCH)),
        reply=(_SECTION,),
        result=False,
        quirk="The base of 10.0.0.0/30 is 10.0.0.1, but 10.0.0.0 on 5.9.8; the size is 2 on both.",
    ),
    CommandSpec("get-algorithms", Danger.READ, reply=(_SECTION,), result=False, since="5.4.0"),
    CommandSpec(
        "get-counters",
        Danger.READ,
        _COUNTERS,
        reply=("counters",),
        since="5.6.1",
        quirk="Without name and all, the reply has only the totals, under the empty name.",
    ),
    CommandSpec("reset-counters", Danger.OPERATE, _COUNTERS, since="5.6.1"),
)

_CONFIGURATION = (
    CommandSpec(
        "load-conn",
        Danger.CONFIGURE,
        named=True,
        blob=frozenset({"certs", "cacerts", "pubkeys"}),
        quirk="children.*.updown names a script that charon runs, certs' file a file that it reads. charon 6.1.0"
        " accepts version = 1 but has no IKEv1 by default, and uses a connection without version for IKEv2 only.",
    ),
    CommandSpec("unload-conn", Danger.CONFIGURE, (_NAME,), quirk="Established SAs stay up."),
    CommandSpec("load-pool", Danger.CONFIGURE, named=True),
    CommandSpec("unload-pool", Danger.CONFIGURE, (_NAME,), quirk="Fails while there are online leases."),
    CommandSpec("load-authority", Danger.CONFIGURE, named=True, blob=frozenset({"cacert"}), since="5.3.3"),
    CommandSpec("unload-authority", Danger.CONFIGURE, (_NAME,), since="5.3.3"),
)

_CREDENTIALS = (
    CommandSpec(
        "load-cert",
        Danger.CONFIGURE,
        (Key("type", required=True), Key("flag"), _DATA),
        blob=frozenset({"data"}),
        quirk="PEM or DER. A CA certificate becomes a trust anchor.",
    ),
    CommandSpec(
        "load-key",
        Danger.SECRETS,
        (Key("type", required=True), _DATA),
        blob=frozenset({"data"}),
        reply=("id",),
        quirk="Unencrypted PEM, or DER.",
        secret=True,
    ),
    CommandSpec("unload-key", Danger.CONFIGURE, (Key("id", required=True),), since="5.5.2"),
    CommandSpec("get-keys", Danger.READ, reply=("keys",), result=False, since="5.5.2"),
    CommandSpec(
        "load-token",
        Danger.SECRETS,
        (Key("handle", required=True), *_texts("slot", "module", "pin")),
        reply=("id",),
        since="5.5.2",
        secret=True,
    ),
    CommandSpec(
        "load-shared",
        Danger.SECRETS,
        (Key("id"), Key("type", required=True), _DATA, Key("owners", Kind.LIST)),
        blob=frozenset({"data"}),
        quirk="Without owners the secret applies to every peer; without id it cannot be unloaded individually.",
        secret=True,
    ),
    CommandSpec("unload-shared", Danger.CONFIGURE, (Key("id", required=True),), since="5.5.2"),
    CommandSpec(
        "get-shared",
        Danger.READ,
        reply=("keys",),
        result=False,
        since="5.5.2",
        quirk="Returns the identifiers passed to load-shared, never the secrets.",
    ),
    CommandSpec("flush-certs", Danger.CONFIGURE, _texts("type"), since="5.5.1"),
    CommandSpec("clear-creds", Danger.CONFIGURE, quirk="Removes every credential loaded over VICI, by any client."),
)


def _events() -> dict[str, EventSpec]:
    table = [
        EventSpec("log", standalone=True),
        EventSpec("ike-updown", standalone=True),
        EventSpec("ike-rekey", standalone=True, since="5.3.3"),
        EventSpec("ike-update", standalone=True, since="5.9.2"),
        EventSpec("child-updown", standalone=True),
        EventSpec("child-rekey", standalone=True, since="5.3.3"),
        EventSpec("alert", standalone=True, since="6.0.3"),
        EventSpec("control-log", standalone=False),
        EventSpec("list-sa", standalone=False),
        EventSpec("list-policy", standalone=False),
        EventSpec("list-conn", standalone=False),
        EventSpec("list-cert", standalone=False, binary=frozenset({"data"})),
        EventSpec("list-authority", standalone=False, since="5.3.3"),
    ]
    return {event.name: event for event in table}


_ALERTS = (
    AlertType("radius-not-responding", Trigger.UNAUTHENTICATED, "No RADIUS server responds."),
    AlertType("shutdown-signal", Trigger.LOCAL, "charon received a signal to stop."),
    AlertType("local-auth-failed", Trigger.UNAUTHENTICATED, "charon lacks its own key, or the peer rejected it."),
    AlertType("peer-auth-failed", Trigger.UNAUTHENTICATED, "The peer did not prove its identity, or is unknown."),
    AlertType("peer-addr-failed", Trigger.LOCAL, "The address of the peer cannot be resolved."),
    AlertType("peer-init-unreachable", Trigger.LOCAL, "The peer does not respond to the first message."),
    AlertType("invalid-ike-spi", Trigger.ANYONE, "A packet belongs to no IKE_SA."),
    AlertType("parse-error-header", Trigger.ANYONE, "The header of a packet is malformed."),
    AlertType("parse-error-body", Trigger.ANYONE, "A packet is malformed, or fails its integrity check."),
    AlertType("retransmit-send", Trigger.UNAUTHENTICATED, "charon retransmits a message that got no response."),
    AlertType("retransmit-send-cleared", Trigger.UNAUTHENTICATED, "A retransmitted message got a response."),
    AlertType("retransmit-send-timeout", Trigger.UNAUTHENTICATED, "charon gave up waiting for a response."),
    AlertType("retransmit-receive", Trigger.ANYONE, "A message was received a second time."),
    AlertType("half-open-timeout", Trigger.UNAUTHENTICATED, "A peer started an IKE_SA and did not finish in time."),
    AlertType("proposal-mismatch-ike", Trigger.UNAUTHENTICATED, "No common proposal for the IKE_SA."),
    AlertType("proposal-mismatch-child", Trigger.PEER, "No common proposal for a CHILD_SA."),
    AlertType("ts-mismatch", Trigger.PEER, "No common traffic selectors."),
    AlertType("ts-narrowed", Trigger.PEER, "The peer narrowed the traffic selectors."),
    AlertType("install-child-sa-failed", Trigger.LOCAL, "The kernel rejected a CHILD_SA."),
    AlertType("install-child-policy-failed", Trigger.LOCAL, "The kernel rejected the policies of a CHILD_SA."),
    AlertType("unique-replace", Trigger.PEER, "The IKE_SA is replaced by a new one of the same peer."),
    AlertType("unique-keep", Trigger.PEER, "The IKE_SA is refused, as the peer already has one."),
    AlertType("keep-on-child-sa-failure", Trigger.PEER, "The IKE_SA is kept although its CHILD_SA failed."),
    AlertType("vip-failure", Trigger.PEER, "The peer gets no virtual address."),
    AlertType("authorization-failed", Trigger.PEER, "A plugin refused the peer after its authentication."),
    AlertType("ike-sa-expired", Trigger.LOCAL, "The IKE_SA reached the end of its lifetime before it was rekeyed."),
    AlertType("cert-expired", Trigger.UNAUTHENTICATED, "A certificate of the peer is expired, or not yet valid."),
    AlertType("cert-revoked", Trigger.UNAUTHENTICATED, "A certificate of the peer is revoked."),
    AlertType("cert-validation-failed", Trigger.UNAUTHENTICATED, "The revocation status of a certificate is unknown."),
    AlertType("cert-no-issuer", Trigger.UNAUTHENTICATED, "The issuer of a certificate of the peer is unknown."),
    AlertType("cert-untrusted-root", Trigger.UNAUTHENTICATED, "The root of the peer's certificates is not trusted."),
    AlertType("cert-exceeded-path-len", Trigger.UNAUTHENTICATED, "The chain of the peer's certificates is too long."),
    AlertType("cert-policy-violation", Trigger.UNAUTHENTICATED, "A certificate of the peer violates another policy."),
)

TRANSFORMS = ("encr", "integ", "prf", "ke", *(f"ake{number}" for number in range(1, 8)), "sn")
"""The transform types of a proposal in `list-conn`: encryption, integrity, PRF, key exchanges, sequence numbers."""
COMMANDS: Mapping[str, CommandSpec] = MappingProxyType(
    {command.name: command for command in (*_CONTROL, *_QUERIES, *_CONFIGURATION, *_CREDENTIALS)}
)
"""Every command, by name."""
EVENTS: Mapping[str, EventSpec] = MappingProxyType(_events())
"""Every event, by name."""
ALERTS: Mapping[str, AlertType] = MappingProxyType({alert.name: alert for alert in _ALERTS})
"""Every alert type of strongSwan 6.1.0, by name."""
UNESTABLISHED = frozenset({"CREATED", "CONNECTING"})
"""The states of an IKE_SA that was never established; in every other state it was."""
