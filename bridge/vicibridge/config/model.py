"""The configuration: one model, every default in it.

`VICIBRIDGE_NATS__PASSWORD=...` sets `password` of `[nats]`; lists and the gateways are given as JSON.
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
from ..contract.nats_settings import HINT, SCHEMES, NatsSettings, check_identity, check_server, hide, is_address
from ..contract.subjects import ALL_NODES

ENV_PREFIX = "VICIBRIDGE_"
Provision = Literal["bind", "create", "reconcile"]
LIVE = "live"  # marks a key whose change SIGHUP takes over; all others need a restart


def _remote(url: str) -> str:
    if not is_address(url, *SCHEMES, "nats-leaf"):
        raise ValueError(f"{hide(url)!r} is no address of a hub: write nats-leaf://host:7422 or tls://host:7422{HINT}")
    return url


def _pattern(pattern: str | None) -> str | None:
    try:
        re.compile(pattern or "")
    except re.error as error:
        raise ValueError(f"no regular expression: {error}") from None
    return pattern


def _readable(path: Path) -> Path:
    if not os.access(path, os.R_OK):
        raise ValueError(f"{str(path)!r} is missing or may not be read")
    return path


def _address(address: str) -> str:
    parse_address(address)
    return address


def _node(node: str) -> str:
    if not node or node == ALL_NODES or not node.isprintable() or len(node) > 63 or node != node.strip():
        raise ValueError(
            f"{node!r} is no node name: 1 to 63 printable characters, no blanks around them, and not {ALL_NODES!r}"
        )
    return node


def _prefix(prefix: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", prefix) or len(prefix) > 64:
        raise ValueError(f"{prefix!r} is no subject prefix: tokens of A-Za-z0-9_-, with dots between")
    return prefix


def _listen(listen: str) -> str:
    if listen:
        parse_listen(listen)
    return listen


def parse_listen(listen: str) -> tuple[str, int]:
    """Return host and port of `host:port` or `[host]:port`; ValueError when it is neither."""
    try:
        parts = urlsplit(f"//{listen}")
        if parts.hostname and parts.port is not None and parts.netloc == listen and "@" not in listen:
            return parts.hostname, parts.port
    except ValueError:
        pass
    raise ValueError(f"{listen!r} is no address to listen on: write host:port, or an empty text to listen nowhere")


def _permission(entry: str) -> str:
    groups = [f"@{danger}" for danger in Danger]
    if entry.startswith("@") and entry not in groups:
        raise ValueError(f"{entry!r} is no group: use {', '.join(groups)}, or names of commands")
    return entry


def _state_directory() -> Path:
    """Return where a service keeps state: what systemd says, else the usual place of root or of a user."""
    if directory := os.environ.get("STATE_DIRECTORY"):
        return Path(directory.partition(":")[0])
    directory = "/var/lib/vicibridge"
    if os.geteuid() == 0 or os.access(directory, os.W_OK):
        return Path(directory)
    return Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state", "vicibridge").expanduser()


_File = Annotated[Path, AfterValidator(_readable)]
_Seconds = Annotated[float, Field(gt=0, le=3600)]
_Bytes = Annotated[int, Field(ge=1024 * 1024)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EmbeddedServerConfig(_Table):
    """The nats-server that runs when no servers are named: on loopback, JetStream in `directory`, bounded."""

    port: Annotated[int, Field(ge=1, le=65535)] = 4222
    directory: Path = Field(default_factory=lambda: _state_directory() / "nats")
    max_bytes: _Bytes = 4 * 1024**3


class LeafConfig(_Table):
    """The hub whose leaf node that server is; without `remotes` it is none. `domain` is made from the node's name."""

    remotes: list[Annotated[str, AfterValidator(_remote)]] = []
    creds: _File | None = None
    tls_ca: _File | None = None
    tls_cert: _File | None = None
    tls_key: _File | None = None
    domain: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")] | None = None


class NatsConfig(_Table):
    """How to reach NATS, and what stands before every subject.

    Without `servers` the bridge starts a nats-server as `embedded` says; `leaf` makes it a leaf node of a hub.
    `provision` says whether a missing stream or bucket is created, and whether missing settings are added (reconcile).

    A user and password, or a token, in the address of a server are for that server, with special characters
    percent-encoded. Files of credentials are read again for each connection, and on SIGHUP. `tls_first` is for servers
    with `handshake_first`.
    """

    servers: Annotated[list[Annotated[str, AfterValidator(check_server)]], Field(min_length=1)] | None = None
    embedded: EmbeddedServerConfig = Field(default_factory=EmbeddedServerConfig)
    leaf: LeafConfig = LeafConfig()
    prefix: Annotated[str, AfterValidator(_prefix)] = "vici"
    stream: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,32}$")] = "VICI"
    stream_max_age_days: Annotated[float, Field(ge=0)] = 7
    provision: Provision = "create"
    inbox_prefix: Annotated[str, AfterValidator(_prefix)] = "_INBOX"
    user: Annotated[str | None, LIVE] = None
    password: Annotated[SecretStr | None, LIVE] = None
    token: Annotated[SecretStr | None, LIVE] = None
    creds: Annotated[_File | None, LIVE] = None
    nkey: Annotated[_File | None, LIVE] = None
    tls_ca: Annotated[_File | None, LIVE] = None
    tls_cert: Annotated[_File | None, LIVE] = None
    tls_key: Annotated[_File | None, LIVE] = None
    tls_hostname: Annotated[str | None, LIVE] = None
    tls_first: Annotated[bool, LIVE] = False
    probe_interval: _Seconds = 2.0
    probe_timeout: _Seconds = 4.0

    @model_validator(mode="after")
    def _consistent(self) -> NatsConfig:
        check_identity(self)
        if self.servers is None and (
            outside := [k for k in ("creds", "nkey", "tls_ca", "tls_cert", "tls_first") if getattr(self, k)]
        ):
            raise ValueError(f"{' and '.join(outside)} needs servers: the bridge's own server is on loopback")
        if self.servers is not None and self.leaf.remotes:
            raise ValueError("leaf is for a nats-server of our own: leave out servers, or leaf")
        return self

    @property
    def urls(self) -> list[str]:
        """Where NATS is: `servers`, or the server of our own."""
        return self.servers or [f"nats://127.0.0.1:{self.embedded.port}"]

    def settings(self) -> NatsSettings:
        """Return what a connection needs of this, secrets included."""
        secrets = {
            key: secret.get_secret_value()
            for key in ("password", "token")
            if (secret := getattr(self, key)) is not None
        }
        keys = {field.name for field in fields(NatsSettings)} - {"servers", "password", "token"}
        return NatsSettings(servers=self.urls, **secrets, **{key: getattr(self, key) for key in keys})


class GatewayConfig(_Table):
    """One charon, and the name it has on the bus."""

    node: Annotated[str, AfterValidator(_node), Field(default_factory=socket.gethostname, validate_default=True)]
    vici: Annotated[str, AfterValidator(_address)] = DEFAULT_ADDRESS


class EventsConfig(_Table):
    """The state class: acknowledged by JetStream; `max_bytes` bounds what waits for it in memory.

    `codec` raw is the VICI messages as they came, the rest of the envelope in headers. `unauthenticated_rate` limits
    each type of event that anyone can cause without authenticating, after a burst of 100; what it drops is counted and
    reported as a gap.
    """

    codec: EventCodec = "msgpack"
    unauthenticated_rate: Annotated[float, Field(ge=0), LIVE] = 1.0
    max_bytes: Annotated[_Bytes, LIVE] = 64 * 1024 * 1024


class LogConfig(_Table):
    """The log class: gathered for `linger_ms` or 64 KiB; `max_bytes` bounds what waits, the oldest goes first.

    `groups` (none named: all), `levels` and `pattern`, a regular expression to be found in the text, choose what is
    published; what they leave out has no number. `every` keeps one line of so many, `rate` so many in a second (0 is no
    limit); what they drop is told as a gap. With `codec` raw each line is a message: that costs what gathering saves.
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
    """Where state events are kept that JetStream does not take: a file for each gateway, the oldest events go first."""

    path: Annotated[Path, Field(default_factory=_state_directory)]
    max_bytes: _Bytes = 1024 * 1024 * 1024
    max_age_days: Annotated[float, Field(ge=0)] = 7


class MirrorConfig(_Table):
    """The key-value mirror of SAs and connections: compared with charon and the buckets every `interval` seconds.

    `heartbeat` is how often the key of the node is written; without three of them the bridge is taken for gone.
    """

    enabled: bool = True
    interval: Annotated[float, Field(gt=0, le=86400), LIVE] = 300.0
    heartbeat: Annotated[float, Field(gt=0, le=3600)] = 10.0


class CommandsConfig(_Table):
    """What may be asked over NATS: `@read`, `@operate`, `@configure`, `@secrets`, or names of commands.

    `blocking` bounds initiate and terminate; 0 is a quarter of charon's threads. What may be in a reply is bounded by
    `max_parts` and `max_bytes`.
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
    """Where `/metrics`, `/healthz` and `/readyz` are; an empty `listen` is nowhere.

    `max_tunnels` limits how many connections and children, of all gateways together, have metrics of their own.
    """

    listen: Annotated[str, AfterValidator(_listen)] = "127.0.0.1:9273"
    max_tunnels: Annotated[int, Field(ge=0, le=1_000_000), LIVE] = 2000


class LoggingConfig(_Table):
    """What the bridge itself writes to stderr."""

    level: Annotated[Literal["debug", "info", "warning", "error"], LIVE] = "info"
    format: Annotated[Literal["text", "json"], LIVE] = "text"


class Config(BaseSettings):
    """All of it."""

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
            raise ValueError("gateway: every gateway needs a node of its own")
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
