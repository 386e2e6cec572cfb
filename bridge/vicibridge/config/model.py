"""The configuration model with all defaults.

`VICIBRIDGE_NATS__PASSWORD=...` sets `password` in `[nats]`; in variables, lists and the gateways are JSON.
"""

from __future__ import annotations

import os
import re
import socket
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from vicifast.address import parse_address
from vicifast.commands import DEFAULT_ADDRESS, Danger

from ..contract.names import EventCodec
from ..contract.nats_settings import (
    HINT,
    SCHEMES,
    NatsSettings,
    check_identity,
    check_prefix,
    check_readable,
    check_server,
    hide,
    is_address,
)
from ..contract.subjects import ALL_NODES
from . import ENV_PREFIX

Provision = Literal["bind", "create", "reconcile"]
LIVE = "live"  # marks a key that SIGHUP changes; all others need a restart


def _remote(url: str) -> str:
    if not is_address(url, *SCHEMES, "nats-leaf"):
        raise ValueError(f"invalid hub address {hide(url)!r}: use nats-leaf://host:7422 or tls://host:7422{HINT}")
    return url


def _pattern(pattern: str | None) -> str | None:
    try:
        re.compile(pattern or "")
    except re.error as error:
        raise ValueError(f"invalid regular expression: {error}") from None
    return pattern


def _address(address: str) -> str:
    parse_address(address)
    return address


def _node(node: str) -> str:
    if not node or node == ALL_NODES or not node.isprintable() or len(node) > 63 or node != node.strip():
        raise ValueError(
            f"invalid node name {node!r}: use 1 to 63 printable characters without surrounding blanks, "
            f"other than {ALL_NODES!r}"
        )
    return node


def _listen(listen: str) -> str:
    if listen:
        parse_listen(listen)
    return listen


def parse_listen(listen: str) -> tuple[str, int]:
    """Return host and port from `host:port` or `[host]:port`; raise ValueError for any other text."""
    try:
        parts = urlsplit(f"//{listen}")
        if parts.hostname and parts.port is not None and parts.netloc == listen and "@" not in listen:
            return parts.hostname, parts.port
    except ValueError:
        pass
    raise ValueError(f"invalid listen address {listen!r}: use host:port, or an empty string to disable")


def _permission(entry: str) -> str:
    groups = [f"@{danger}" for danger in Danger]
    if entry.startswith("@") and entry not in groups:
        raise ValueError(f"unknown group {entry!r}: use {', '.join(groups)}, or names of commands")
    return entry


def _state_directory() -> Path:
    """Return the state directory: the one that systemd sets, else the usual one for root or for a user."""
    if directory := os.environ.get("STATE_DIRECTORY"):
        return Path(directory.partition(":")[0])
    directory = "/var/lib/vicibridge"
    if os.geteuid() == 0 or os.access(directory, os.W_OK):
        return Path(directory)
    return Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state", "vicibridge").expanduser()


_File = Annotated[Path, AfterValidator(check_readable)]
_Seconds = Annotated[float, Field(gt=0, le=3600)]
_Bytes = Annotated[int, Field(ge=1024 * 1024)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EmbeddedServerConfig(_Table):
    """The nats-server that the bridge starts if `servers` is omitted: on loopback, with JetStream in `directory`."""

    port: Annotated[int, Field(ge=1, le=65535)] = 4222
    directory: Path = Field(default_factory=lambda: _state_directory() / "nats")
    max_bytes: _Bytes = 4 * 1024**3


class LeafConfig(_Table):
    """The hub that the embedded server connects to as a leaf node, if `remotes` is set.

    The default of `domain` is made from the node's name.
    """

    remotes: list[Annotated[str, AfterValidator(_remote)]] = []
    creds: _File | None = None
    tls_ca: _File | None = None
    tls_cert: _File | None = None
    tls_key: _File | None = None
    domain: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")] | None = None


class NatsConfig(_Table):
    """The connection to NATS, the subject prefix and the JetStream stream.

    Without `servers` the bridge starts a nats-server with the settings in `embedded`; `leaf` makes it a leaf node of a
    hub. `provision` controls whether a missing stream or bucket is created, and whether missing settings are added
    (reconcile).

    A server's address may contain a user and password, or a token, for that server, with special characters
    percent-encoded. Credentials files are read again for each connection, and on SIGHUP. If SIGHUP removes the server
    in use from `servers`, the bridge changes to another one in the list. `tls_first` is for servers with
    `handshake_first`.
    """

    servers: Annotated[
        Annotated[list[Annotated[str, AfterValidator(check_server)]], Field(min_length=1)] | None, LIVE
    ] = None
    embedded: EmbeddedServerConfig = Field(default_factory=EmbeddedServerConfig)
    leaf: LeafConfig = LeafConfig()
    prefix: Annotated[str, AfterValidator(check_prefix)] = NatsSettings.prefix
    stream: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,32}$")] = NatsSettings.stream
    stream_max_age_days: Annotated[float, Field(ge=0)] = 7
    provision: Provision = "create"
    inbox_prefix: Annotated[str, AfterValidator(check_prefix)] = NatsSettings.inbox_prefix
    user: Annotated[str | None, LIVE] = None
    password: Annotated[SecretStr | None, LIVE] = None
    token: Annotated[SecretStr | None, LIVE] = None
    creds: Annotated[_File | None, LIVE] = None
    nkey: Annotated[_File | None, LIVE] = None
    tls_ca: Annotated[_File | None, LIVE] = None
    tls_cert: Annotated[_File | None, LIVE] = None
    tls_key: Annotated[_File | None, LIVE] = None
    tls_hostname: Annotated[str | None, LIVE] = None
    tls_first: Annotated[bool, LIVE] = NatsSettings.tls_first
    probe_interval: _Seconds = NatsSettings.probe_interval
    probe_timeout: _Seconds = NatsSettings.probe_timeout

    @model_validator(mode="after")
    def _consistent(self) -> NatsConfig:
        check_identity(self)
        if self.servers is None and (
            outside := [k for k in ("creds", "nkey", "tls_ca", "tls_cert", "tls_first") if getattr(self, k)]
        ):
            raise ValueError(f"{' and '.join(outside)} requires servers: the embedded server is on loopback")
        if self.servers is not None and self.leaf.remotes:
            raise ValueError("leaf is only for the embedded server: remove servers or leaf")
        return self

    @property
    def urls(self) -> list[str]:
        """The addresses of NATS: `servers`, or the embedded server."""
        return self.servers or [f"nats://127.0.0.1:{self.embedded.port}"]

    def settings(self) -> NatsSettings:
        """Return the settings of a connection, including secrets."""
        secrets = {
            key: secret.get_secret_value()
            for key in ("password", "token")
            if (secret := getattr(self, key)) is not None
        }
        keys = {field.name for field in fields(NatsSettings)} - {"servers", "password", "token"}
        return NatsSettings(servers=self.urls, **secrets, **{key: getattr(self, key) for key in keys})


class GatewayConfig(_Table):
    """One charon and its name on the bus."""

    node: Annotated[str, AfterValidator(_node), Field(default_factory=socket.gethostname, validate_default=True)]
    vici: Annotated[str, AfterValidator(_address)] = DEFAULT_ADDRESS


class EventsConfig(_Table):
    """The state class: acknowledged by JetStream; `max_bytes` bounds unacknowledged events in memory.

    With `codec` raw, payloads are unchanged VICI messages and the rest of the envelope is in headers.
    `unauthenticated_rate` limits each type of event that anyone can cause without authenticating, after a burst of 100;
    dropped events are counted and reported as a gap.
    """

    codec: EventCodec = "msgpack"
    unauthenticated_rate: Annotated[float, Field(ge=0), LIVE] = 1.0
    max_bytes: Annotated[_Bytes, LIVE] = 64 * 1024 * 1024


class LogConfig(_Table):
    """The log class: lines are batched for `linger_ms` or up to 64 KiB; `max_bytes` bounds unpublished lines.

    If that is reached, the oldest lines are dropped. `groups` (empty: all), `levels` and `pattern`, a regular
    expression that the text must contain, select the lines to publish; other lines get no sequence number. `every`
    keeps one line in that many, `rate` that many per second (0: no limit); the lines that they drop are reported as a
    gap. With `codec` raw each line is a message, without the saving of batches.
    """

    codec: EventCodec = "msgpack"
    linger_ms: Annotated[int, Field(ge=0, le=10_000), LIVE] = 20
    groups: Annotated[list[str], LIVE] = []
    levels: Annotated[list[Annotated[int, Field(ge=-1, le=4)]], LIVE] = [0, 1]
    pattern: Annotated[str | None, AfterValidator(_pattern), LIVE] = None
    every: Annotated[int, Field(ge=1), LIVE] = 1
    rate: Annotated[float, Field(ge=0), LIVE] = 0
    max_bytes: Annotated[_Bytes, LIVE] = 64 * 1024 * 1024


class SpoolConfig(_Table):
    """Stores state events on disk while JetStream does not accept them: one file per gateway.

    If a limit is reached, the oldest events are dropped.
    """

    path: Annotated[Path, Field(default_factory=_state_directory)]
    max_bytes: _Bytes = 1024 * 1024 * 1024
    max_age_days: Annotated[float, Field(ge=0)] = 7


class MirrorConfig(_Table):
    """The key-value mirror of SAs and connections: compared with charon and the buckets every `interval` seconds.

    The node's key is written every `heartbeat` seconds; after three missed heartbeats the bridge counts as gone.
    """

    enabled: bool = True
    interval: Annotated[float, Field(gt=0, le=86400), LIVE] = 300.0
    heartbeat: Annotated[float, Field(gt=0, le=3600)] = 10.0


class CommandsConfig(_Table):
    """The commands allowed over NATS, in `allow`: groups, such as `@read`, or names of commands.

    `blocking` limits concurrent initiate and terminate commands; 0 is a quarter of charon's threads. `max_parts` and
    `max_bytes` limit a reply.
    """

    allow: Annotated[list[Annotated[str, AfterValidator(_permission)]], LIVE] = ["@read"]
    allow_updown: Annotated[bool, LIVE] = False
    allow_files: Annotated[bool, LIVE] = False
    timeout: Annotated[_Seconds, LIVE] = 30.0
    concurrency: Annotated[int, Field(ge=1, le=64)] = 8
    blocking: Annotated[int, Field(ge=0, le=64), LIVE] = 0
    max_parts: Annotated[int, Field(ge=1), LIVE] = 100_000
    max_bytes: Annotated[_Bytes, LIVE] = 64 * 1024 * 1024
    audit: Annotated[Literal["all", "changes", "denied"], LIVE] = "all"


class HttpConfig(_Table):
    """The HTTP endpoints `/metrics`, `/healthz` and `/readyz`; an empty `listen` disables them.

    `max_tunnels` limits the number of connections and children, of all gateways together, with their own metrics.
    """

    listen: Annotated[str, AfterValidator(_listen)] = "127.0.0.1:9273"
    max_tunnels: Annotated[int, Field(ge=0, le=1_000_000), LIVE] = 2000


class LoggingConfig(_Table):
    """The bridge's own log, on stderr."""

    level: Annotated[Literal["debug", "info", "warning", "error"], LIVE] = "info"
    format: Annotated[Literal["text", "json"], LIVE] = "text"


class Config(BaseSettings):
    """The whole configuration."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True)

    nats: NatsConfig = Field(default_factory=NatsConfig)
    gateway: Annotated[list[GatewayConfig], Field(min_length=1, default_factory=lambda: [GatewayConfig()])]
    events: EventsConfig = EventsConfig()
    log: LogConfig = LogConfig()
    mirror: MirrorConfig = MirrorConfig()
    spool: Annotated[SpoolConfig, Field(default_factory=SpoolConfig)]
    commands: CommandsConfig = CommandsConfig()
    http: HttpConfig = HttpConfig()
    logging: LoggingConfig = LoggingConfig()

    @model_validator(mode="after")
    def _distinct(self) -> Config:
        nodes = [gateway.node for gateway in self.gateway]
        if len(set(nodes)) < len(nodes):
            raise ValueError("gateway: every gateway requires a different node")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return env_settings, init_settings
