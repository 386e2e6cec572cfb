"""The settings of a NATS connection, of the bridge or of a client, without pydantic."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

SCHEMES = ("nats", "tls")  # a hung websocket connection could not be aborted in the same way
HINT = "; percent-encode special characters in a user or password, such as %2F for /"


def hide(url: str) -> str:
    """Return `url` with the part that may be a secret hidden."""
    userinfo, at, host = url.rpartition("@")
    if not at:
        return url
    scheme, mark, _ = userinfo.partition("://")
    return f"{scheme}{mark}**********@{host}" if mark else f"**********@{host}"


def is_address(url: str, *schemes: str) -> bool:
    """Return whether `url` is the address of a host with one of the schemes."""
    try:
        parts = urlsplit(url)
        usable = parts.port is None or parts.port > 0
    except ValueError:
        return False
    return usable and parts.scheme in schemes and bool(parts.hostname) and not (parts.path.strip("/") or parts.query)


def check_server(url: str) -> str:
    """Return `url`, with `nats://` if it has no scheme; raise ValueError if it is not the address of a NATS server."""
    if "://" not in url:
        url = f"nats://{url}"
    if not is_address(url, *SCHEMES):
        raise ValueError(f"invalid server address {hide(url)!r}: use nats://host:4222 or tls://host:4222{HINT}")
    return url


def check_readable(path: Path) -> Path:
    """Return `path`; raise ValueError if it is not a readable file."""
    if not os.access(path, os.R_OK):
        raise ValueError(f"{str(path)!r} is missing or not readable")
    return path


def check_prefix(prefix: str) -> str:
    """Return `prefix`; raise ValueError if it cannot begin a subject."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", prefix) or len(prefix) > 64:
        raise ValueError(f"invalid subject prefix {prefix!r}: use tokens of A-Za-z0-9_- separated by dots")
    return prefix


@dataclass(frozen=True, kw_only=True)
class NatsSettings:
    """How a connection reaches NATS and authenticates; the keys are those of `[nats]` in the bridge's configuration.

    At most one of `user` (with `password`), `token`, `creds` and `nkey`. Files are read again for each connection.
    `probe_interval` and `probe_timeout` are in seconds. Raises ValueError for an invalid address and for settings that
    are mutually exclusive or incomplete.
    """

    servers: Sequence[str] = ("nats://127.0.0.1:4222",)
    prefix: str = "vici"
    stream: str = "VICI"
    inbox_prefix: str = "_INBOX"
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    creds: Path | None = None
    nkey: Path | None = None
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_hostname: str | None = None
    tls_first: bool = False
    probe_interval: float = 2.0
    probe_timeout: float = 4.0

    def __post_init__(self) -> None:
        if isinstance(self.servers, str):
            raise ValueError("servers must be a list of addresses, not a str")
        object.__setattr__(self, "servers", tuple(map(check_server, self.servers)))
        if not self.servers:
            raise ValueError("servers is empty: name at least one address")
        check_identity(self)


def check_identity(settings: object) -> None:
    """Raise ValueError if credential settings are mutually exclusive or incomplete."""
    given = {
        key: getattr(settings, key) for key in ("user", "password", "token", "creds", "nkey", "tls_cert", "tls_key")
    }
    chosen = [key for key in ("user", "token", "creds", "nkey") if given[key] is not None]
    if len(chosen) > 1:
        raise ValueError(f"{' and '.join(chosen)} are mutually exclusive: keep one")
    if given["password"] is not None and given["user"] is None:
        raise ValueError("password requires user")
    if (given["tls_cert"] is None) != (given["tls_key"] is None):
        raise ValueError("tls_cert and tls_key require each other")
