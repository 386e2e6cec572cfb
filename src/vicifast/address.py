"""The addresses of charon that every part of the library accepts, and the errors of connecting to them."""

from __future__ import annotations

import os
import re
import socket
from contextlib import suppress
from typing import NamedTuple, TypeAlias

from .commands import DEFAULT_ADDRESS
from .errors import ConnectionClosed, RequestTimeout

Address: TypeAlias = str | os.PathLike[str] | socket.socket | None

# charon's listen backlog is 3: when many clients connect at once, most get EAGAIN, but each connection is accepted
# within milliseconds. In seconds; the last delay is repeated.
RETRY_DELAYS = (0.002, 0.005, 0.01, 0.02, 0.05)

_HOST_PORT = re.compile(r"[^/]+:\d+")

_KEEPALIVE = (
    (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
    (socket.IPPROTO_TCP, "TCP_KEEPIDLE", 30),  # seconds without a byte
    (socket.IPPROTO_TCP, "TCP_KEEPALIVE", 30),  # the name on macOS
    (socket.IPPROTO_TCP, "TCP_KEEPINTVL", 10),
    (socket.IPPROTO_TCP, "TCP_KEEPCNT", 3),
    (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", 60_000),  # milliseconds; applies while sent data is unacknowledged
)


class Unix(NamedTuple):
    """The path of a Unix socket."""

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
    """Parse a path, `unix://PATH`, `tcp://HOST:PORT` or None (strongSwan's default).

    `any_port` allows port 0, for listening. Raises ValueError, which names the address and the valid forms.
    """
    text = DEFAULT_ADDRESS if address is None else os.fspath(address)
    scheme, separator, rest = text.partition("://")
    if _HOST_PORT.fullmatch(text):  # also a valid file name of a socket, but rarely meant as one
        raise ValueError(f"invalid VICI address: {text!r}; write tcp://{text}, or ./{text} for a Unix socket")
    if not separator and text:
        return Unix(text)
    if scheme == "unix" and rest:
        return Unix(rest)
    if scheme == "tcp":
        host, _, port = rest.rpartition(":")
        if host and port.isdecimal() and (0 if any_port else 1) <= int(port) < 65536:
            return Tcp(host.removeprefix("[").removesuffix("]"), int(port))
    raise ValueError(f"invalid VICI address: {text!r}; expected a path, unix://PATH or tcp://HOST:PORT")


def keep_alive(sock: socket.socket) -> None:
    """Enable keepalive, so that a dead TCP connection ends after a minute even when idle."""
    for level, name, value in _KEEPALIVE:
        with suppress(AttributeError, OSError):  # no platform has all of them
            sock.setsockopt(level, getattr(socket, name), value)


def describe(address: Address) -> str:
    """Return the address as it appears in error messages."""
    if isinstance(address, socket.socket):
        return f"the given socket (descriptor {address.fileno()})"
    return str(parse_address(address))


def unreachable(address: Address, error: OSError) -> ConnectionClosed:
    """The error for a failed connection attempt."""
    reason = error.strerror or str(error)
    if error.errno is not None and error.errno > 0:  # asyncio replaces the system's text
        reason = os.strerror(error.errno)
    return _closed_by(error, f"cannot connect to {describe(address)}: {reason}")


def broken(error: Exception) -> ConnectionClosed:
    """The error for a connection that broke."""
    # The traceback would keep the connection alive.
    return _closed_by(error.with_traceback(None), f"the connection broke: {error}")


def _closed_by(error: Exception, text: str) -> ConnectionClosed:
    """A `ConnectionClosed` with `error` as its cause, and its `errno` if that is the system's."""
    closed = ConnectionClosed(text)
    if isinstance(error, OSError) and (error.errno or 0) > 0:  # name resolution errors are negative
        closed.errno = error.errno
    closed.__cause__ = error
    return closed


def no_connection(address: Address, timeout: float | None) -> RequestTimeout:
    """The error for a connection attempt that timed out."""
    return RequestTimeout(f"no connection to {describe(address)} within {timeout} s")
