"""Where charon listens: the forms of address that every part of the library takes."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from typing import NamedTuple, TypeAlias

from .commands import DEFAULT_ADDRESS
from .errors import ConnectionClosed, RequestTimeout

Address: TypeAlias = str | os.PathLike[str] | socket.socket | None

# charon's listen backlog is 3: of many clients at once most see EAGAIN, and a connection is accepted within
# milliseconds. The last delay, in seconds, is repeated.
RETRY_DELAYS = (0.002, 0.005, 0.01, 0.02, 0.05)

_KEEPALIVE = (
    (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
    (socket.IPPROTO_TCP, "TCP_KEEPIDLE", 30),  # seconds without a byte
    (socket.IPPROTO_TCP, "TCP_KEEPALIVE", 30),  # as macOS calls it
    (socket.IPPROTO_TCP, "TCP_KEEPINTVL", 10),
    (socket.IPPROTO_TCP, "TCP_KEEPCNT", 3),
    (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", 60_000),  # milliseconds; what holds while a request is not confirmed
)


class Unix(NamedTuple):
    """A Unix socket by its path."""

    path: str

    def __str__(self) -> str:
        return f"unix://{self.path}"


class Tcp(NamedTuple):
    """A TCP endpoint; `host` is a name or an IP address without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"tcp://[{self.host}]:{self.port}" if ":" in self.host else f"tcp://{self.host}:{self.port}"


def parse_address(address: str | os.PathLike[str] | None, *, any_port: bool = False) -> Unix | Tcp:
    """Return the endpoint meant by a path, `unix://PATH`, `tcp://HOST:PORT` or None (strongSwan's default).

    `any_port` allows port 0, which makes sense to who listens. Raises ValueError that names the address and the
    forms that are known.
    """
    text = DEFAULT_ADDRESS if address is None else os.fspath(address)
    scheme, separator, rest = text.partition("://")
    if not separator and text:
        return Unix(text)
    if scheme == "unix" and rest:
        return Unix(rest)
    if scheme == "tcp":
        host, _, port = rest.rpartition(":")
        if host and port.isdecimal() and (0 if any_port else 1) <= int(port) < 65536:
            return Tcp(host.removeprefix("[").removesuffix("]"), int(port))
    raise ValueError(f"no VICI address: {text!r} (a path, unix://PATH or tcp://HOST:PORT)")


def keep_alive(sock: socket.socket) -> None:
    """Let the end of a TCP connection be known after a minute, also where nobody sends and no packet tells it."""
    for level, name, value in _KEEPALIVE:
        with suppress(AttributeError, OSError):  # platforms have not all of them
            sock.setsockopt(level, getattr(socket, name), value)


def describe(address: Address) -> str:
    """Return the address in the form in which messages name it."""
    if isinstance(address, socket.socket):
        return f"the given socket (descriptor {address.fileno()})"
    return str(parse_address(address))


def unreachable(address: Address, error: OSError) -> ConnectionClosed:
    """The error of an attempt to connect that failed."""
    reason = error.strerror or str(error)
    if error.errno is not None and error.errno > 0:  # asyncio puts texts of its own in place of the system's
        reason = os.strerror(error.errno)
    return _closed_by(error, f"cannot connect to {describe(address)}: {reason}")


def broken(error: Exception) -> ConnectionClosed:
    """The error of a connection that broke."""
    return _closed_by(
        error.with_traceback(None), f"the connection broke: {error}"
    )  # it would keep the connection alive


def _closed_by(error: Exception, text: str) -> ConnectionClosed:
    """The error of a connection that an error of the system ended, with its `errno` and with it as the cause."""
    closed = ConnectionClosed(text)
    if isinstance(error, OSError) and (error.errno or 0) > 0:  # those of looking up a name are negative
        closed.errno = error.errno
    closed.__cause__ = error
    return closed


def no_connection(address: Address, timeout: float | None) -> RequestTimeout:
    """The error of an attempt to connect that took too long."""
    return RequestTimeout(f"no connection to {describe(address)} within {timeout} s")
