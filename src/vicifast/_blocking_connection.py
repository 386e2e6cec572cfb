"""The blocking connection: transfers the bytes of a session, and connects its socket."""

from __future__ import annotations

import select
import socket
import time
from _thread import allocate_lock
from collections.abc import Callable
from typing import Any, cast

from .address import RETRY_DELAYS, Address, Tcp, broken, keep_alive, parse_address
from .errors import ConnectionClosed, ViciError
from .protocol import CLOSE_TIMEOUT, Call, Protocol, Subscription, Trickle, overdue, unanswered

_LONGEST_POLL = 3600.0  # poll counts milliseconds in 31 bits
_SHORTEST_PAUSE = 0.0001  # Linux wakes a sleeping thread 50 microseconds late


class InUse:
    """A lock that refuses a second thread at once; otherwise threads would wait for each other's replies."""

    def __init__(self) -> None:
        self._lock = allocate_lock()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise RuntimeError(
                "this session is in use, by another thread or under this signal handler; use one session per thread"
            )

    def __exit__(self, *exc_info: object) -> None:
        self._lock.release()


class BlockingConnection:
    """Transfers bytes between a socket and a `Protocol`, in both directions, while a caller waits."""

    def __init__(self, sock: socket.socket, protocol: Protocol, in_use: InUse) -> None:
        self.protocol = protocol
        self.in_use = in_use
        self._sock = sock
        self._unsent = b""
        self._wait_ready = _poller(sock)
        self._trickle = Trickle(_SHORTEST_PAUSE)
        self._pause = 0.0

    def finish(self, call: Call, timeout: float | None) -> None:
        while not call.done:
            self.wait_call(call, timeout)

    def wait_call(self, call: Call, timeout: float | None) -> None:
        """Wait for a message or the reply of a call. A timeout closes: a late reply would be mistaken for the next."""
        self._until_or_give_up(call, lambda: bool(call.items) or call.done, timeout)

    def send(self, call: Call, timeout: float | None) -> None:
        """Wait until a request has been written; errors are stored in the call."""
        self._until_or_give_up(call, lambda: call.done or (call.sent and not self._unsent), timeout)

    def register(self, subscription: Subscription, timeout: float | None) -> None:
        """Write the registrations; errors are stored in the subscription."""
        if not self._until(lambda: not self._unsent, timeout):
            self._give_up(ConnectionClosed(str(unanswered(subscription, timeout))))

    def wait_registered(self, subscription: Subscription, timeout: float | None) -> None:
        if not self._until(lambda: not subscription.pending or subscription.error is not None, timeout):
            error = unanswered(subscription, timeout)
            self._give_up(ConnectionClosed(str(error)))
            raise error
        if subscription.error is not None and subscription.pending:
            raise subscription.error

    def wait_event(self, subscription: Subscription, timeout: float | None) -> bool:
        """Wait for an event; False after `timeout` seconds without. Raises the error that ended the subscription."""
        if not self._until(lambda: bool(subscription.items) or subscription.error is not None, timeout):
            return False
        if not subscription.items and subscription.error is not None:
            raise subscription.error
        return True

    def close(self) -> None:
        try:
            if self.protocol.closed is None:
                self.protocol.unlisten_all()
                self._until(lambda: self.protocol.idle and not self._unsent, CLOSE_TIMEOUT)
        finally:
            self._give_up(ConnectionClosed("the session was closed"))

    def _until_or_give_up(self, call: Call, done: Callable[[], bool], timeout: float | None) -> None:
        try:
            if self._until(done, timeout):
                return
        except BaseException:
            self._give_up_call(call, ConnectionClosed(f"{call.command} was interrupted"))
            raise
        error = overdue(call, timeout)
        self._give_up_call(call, error)
        raise error

    def _until(self, done: Callable[[], bool], timeout: float | None) -> bool:
        """Write and read until `done`; False when that takes longer than `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        self._guarded(self._write)
        expired = False
        while not done():
            if expired:
                return False
            wait = _LONGEST_POLL
            if deadline is not None:
                wait = min(wait, deadline - time.monotonic())
                expired = wait <= 0  # bytes that have arrived by now are still read
            if self._pause and not expired:
                time.sleep(min(self._pause, wait))
                self._pause = 0.0
            if self._wait_ready(max(wait, 0), bool(self._unsent)):
                self._guarded(self._read_and_write)
        return True

    def _guarded(self, move: Callable[[], None]) -> None:
        """Transfer bytes; close the connection when that fails or is interrupted, as it is then out of step."""
        try:
            move()
        except OSError as error:
            self._give_up(broken(error))
        except BaseException:
            self._give_up(ConnectionClosed("reading or writing was interrupted"))
            raise

    def _read_and_write(self) -> None:
        if self._unsent:
            self._write()
        try:
            count = self._sock.recv_into(self.protocol.framer)
        except BlockingIOError:
            return
        if count:
            self.protocol.framer.received(count)
            self.protocol.receive()
            self._pause = self._trickle.pause(time.monotonic(), count, self.protocol.streaming)
            self._write()
        else:
            self.protocol.receive_eof()
        if self.protocol.closed is not None:
            self._give_up(self.protocol.closed)

    def _write(self) -> None:
        data = self._unsent + self.protocol.data_to_send()
        if not data:
            return
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        except ConnectionError:
            sent = len(data)  # charon has closed; the bytes it sent before can still be read, and then the end
        self._unsent = data[sent:]

    def _give_up_call(self, call: Call, error: ViciError) -> None:
        if not self.protocol.withdraw(call, error):
            self._give_up(ConnectionClosed(str(error)))

    def _give_up(self, error: ViciError) -> None:
        self.protocol.fail(error)
        self._unsent = b""
        self._sock.close()


def _poller(sock: socket.socket) -> Callable[[float, bool], object]:
    """Return a function that waits up to `timeout` seconds until the socket is readable or, if `write`, writable."""
    if not hasattr(select, "poll"):  # Windows

        def wait_select(timeout: float, write: bool) -> object:
            return any(select.select([sock], [sock] if write else [], [], timeout))

        return wait_select
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    writing = False

    def wait_poll(timeout: float, write: bool) -> object:
        nonlocal writing
        if write is not writing:
            poll.modify(sock, select.POLLIN | (select.POLLOUT if write else 0))
            writing = write
        return poll.poll(timeout * 1000)

    return wait_poll


def open_socket(address: Address, timeout: float | None) -> socket.socket:
    """Return a connected non-blocking socket. Raises OSError; TimeoutError after `timeout` seconds."""
    if isinstance(address, socket.socket):
        sock = address
    else:
        deadline = None if timeout is None else time.monotonic() + timeout
        target = parse_address(address)
        sock = _connect_tcp(target, deadline) if isinstance(target, Tcp) else _connect_unix(target.path, deadline)
    sock.setblocking(False)
    return sock


def _connect_unix(path: str, deadline: float | None) -> socket.socket:
    attempt = 0
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)  # with a timeout set, connect would still fail at once
            sock.connect(path)
            return sock
        except BlockingIOError:
            sock.close()
        except BaseException:
            sock.close()
            raise
        time.sleep(min(RETRY_DELAYS[min(attempt, len(RETRY_DELAYS) - 1)], _remaining(deadline) or 1.0))
        attempt += 1


def _connect_tcp(target: Tcp, deadline: float | None) -> socket.socket:
    """Connect to the first address of a host that accepts. The deadline does not cover name resolution."""
    error: OSError = OSError(f"{target.host} has no address")
    for family, kind, number, _, where in socket.getaddrinfo(*target, type=socket.SOCK_STREAM):
        sock = socket.socket(family, kind, number)
        try:
            sock.settimeout(_remaining(deadline))
            sock.connect(cast(Any, where))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            keep_alive(sock)
            return sock
        except TimeoutError:
            sock.close()
            raise
        except OSError as failure:
            error = failure
            sock.close()
        except BaseException:
            sock.close()
            raise
    raise error


def _remaining(deadline: float | None) -> float | None:
    """Seconds until the deadline, None without one. Raises TimeoutError when it has passed."""
    if deadline is None:
        return None
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError
    return remaining
