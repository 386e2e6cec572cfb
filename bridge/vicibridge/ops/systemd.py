"""Notifies systemd of the service's state: sd_notify(3), one datagram per message."""

from __future__ import annotations

import logging
import os
import socket
import time

_logger = logging.getLogger(__name__)


class Systemd:
    """Sends notifications to systemd; does nothing if systemd did not start this process."""

    def __init__(self) -> None:
        self._address = os.environ.get("NOTIFY_SOCKET", "")
        self._status = ""

    @property
    def listens(self) -> bool:
        """Whether systemd receives notifications."""
        return bool(self._address)

    @property
    def watchdog(self) -> float | None:
        """The watchdog timeout in seconds, None if systemd does not supervise this process."""
        microseconds = os.environ.get("WATCHDOG_USEC", "")
        mine = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        return int(microseconds) / 1e6 if mine and microseconds.isdecimal() and int(microseconds) else None

    def ready(self) -> None:
        self._send("READY=1")

    def reloading(self) -> None:
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        self._send("STOPPING=1\nSTATUS=stopping")

    def alive(self, status: str) -> None:
        """Feed the watchdog, and send `status` if it changed."""
        lines = ["WATCHDOG=1"] if self.watchdog else []
        if status != self._status:
            self._status = status
            lines.append(f"STATUS={status}")
        if lines:
            self._send("\n".join(lines))

    def _send(self, message: str) -> None:
        if not self._address:
            return
        # A leading "@" means the zero byte of the abstract namespace.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as socket_:
                socket_.sendto(message.encode(), address)
        except OSError as error:
            _logger.warning("cannot notify systemd: %s", error.strerror)
