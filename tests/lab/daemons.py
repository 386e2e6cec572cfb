"""The processes of a lab: namespaces, charons in them, a NATS server."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import IO

from vicibridge.bus.nats_server import find_nats_server, free_port

from vicifast.commands import release

CHARON = "/usr/lib/ipsec/charon"
_START_TIMEOUT = 10.0

# kernel-libipsec comes before kernel-netlink: charon takes the first that offers IPsec, and the kernels of
# containers often have none.
PLUGINS = (
    "random nonce openssl aes sha1 sha2 hmac kdf gmp curve25519 pem pkcs1 x509 pubkey"
    " kernel-libipsec kernel-netlink socket-default vici counters updown"
)
_CHARON_CONF = """\
charon {{
    load = {plugins}
    port = 15500
    port_nat_t = 14500
    threads = 32
    install_routes = yes
    install_virtual_ip = no
    dos_protection = no
    init_limit_half_open = 0
    ikesa_table_size = 4096
    ikesa_table_segments = 16
    plugins {{
        vici {{
            socket = {address}
        }}
    }}
    filelog {{
        stderr {{
            default = 1
        }}
    }}
}}
"""
_NATS_CONF = """\
listen: "127.0.0.1:{port}"
jetstream {{
    store_dir: "{store}"
}}
"""


class LabError(RuntimeError):
    """The lab cannot be built, or one of its processes failed."""


@cache
def version() -> tuple[int, ...]:
    """The version of strongSwan that is installed: 6.0.1 is (6, 0, 1)."""
    done = subprocess.run([CHARON, "--version"], capture_output=True, text=True, timeout=10)
    found = release(done.stdout.partition("strongSwan ")[2])
    if not found:
        raise LabError(f"{CHARON} --version: {done.stdout}{done.stderr}")
    return found


class Namespace:
    """A network and a mount namespace without a name, held by a sleeping process; `/run` in it is empty."""

    def __enter__(self) -> Namespace:
        # charon's compiled-in pid file lies in /run; two charons with one /run refuse each other.
        script = "mount -t tmpfs lab /run && echo ready && exec sleep infinity"
        self._holder = _spawn(["unshare", "--net", "--mount", "sh", "-c", script], subprocess.PIPE)
        self.pid = self._holder.pid
        assert self._holder.stdout is not None
        answer = self._holder.stdout.readline()
        if answer != b"ready\n":
            self.__exit__(None, None, None)
            raise LabError(f"cannot create a network namespace with a separate /run: {answer.decode().strip()}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._holder.kill()
        self._holder.communicate()

    def enter(self, *argv: str) -> list[str]:
        """Return the command line that runs `argv` inside."""
        return ["nsenter", "--target", str(self.pid), "--net", "--mount", *argv]

    def run(self, *argv: str) -> str:
        """Run a command inside and return its output; LabError with its error message if it fails."""
        done = subprocess.run(self.enter(*argv), capture_output=True, text=True, timeout=10)
        if done.returncode:
            raise LabError(f"{' '.join(argv)}: {done.stderr.strip()}")
        return done.stdout


class Daemon:
    """A process of the lab that can be stopped, killed and started again; its output is appended to `log`."""

    def __init__(self, name: str, directory: Path, argv: list[str], env: dict[str, str]) -> None:
        self.name = name
        self.log = directory / f"{name}.log"
        self._argv = argv
        self._env = os.environ | env
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The process id, None while it does not run."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self, *, wait: bool = True) -> None:
        """Start it, and unless `wait` is false return only when it accepts connections. Main thread only."""
        if self.pid is not None:
            raise LabError(f"{self.name} is running already")
        with self.log.open("ab") as log:
            self._process = _spawn(self._argv, log, self._env)
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until it accepts connections; LabError with the end of its log if it does not."""
        deadline = time.monotonic() + _START_TIMEOUT
        while not self._ready():
            if self.pid is None or time.monotonic() > deadline:
                raise LabError(f"{self.name} does not start:\n{self._last_words()}")
            time.sleep(0.01)

    def stop(self, timeout: float = 10.0) -> None:
        """Terminate it and wait for its end; after `timeout` seconds it is killed, and LabError is raised.

        A stopping charon waits until its clients have read their data: if one of them
        runs in this thread's event loop, call `await asyncio.to_thread(daemon.stop)`.
        """
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise LabError(f"{self.name} did not stop within {timeout:g} s and was killed") from None

    def kill(self) -> None:
        """Kill it as `kill -9` does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _ready(self) -> bool:
        raise NotImplementedError

    def _last_words(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])


class Charon(Daemon):
    """One strongSwan IKE daemon: `address` is its VICI socket, `namespace` where it runs.

    `settings` has the form of strongswan.conf and overrides what the lab itself sets.
    """

    def __init__(self, name: str, directory: Path, namespace: Namespace, settings: str = "") -> None:
        self.namespace = namespace
        self._socket = directory / f"{name}.vici"
        config = directory / f"{name}.conf"
        config.write_text(_CHARON_CONF.format(plugins=PLUGINS, address=self.address) + settings)
        # A killed charon leaves its pid file, and the pid may belong to another process.
        argv = namespace.enter("sh", "-c", f"rm -f /run/charon.pid && exec {CHARON}")
        super().__init__(name, directory, argv, {"STRONGSWAN_CONF": str(config)})

    @property
    def address(self) -> str:
        """The VICI socket, as `unix:///path`."""
        return f"unix://{self._socket}"

    def _ready(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe, suppress(OSError):
            probe.connect(str(self._socket))
            return True
        return False


class NatsServer(Daemon):
    """A NATS server with JetStream on a loopback port, which stays the same across restarts; `url` is its address."""

    def __init__(self, directory: Path) -> None:
        binary = find_nats_server()
        if binary is None:
            raise LabError("there is no nats-server")
        self.port = free_port()
        config = directory / "nats.conf"
        config.write_text(_NATS_CONF.format(port=self.port, store=directory / "jetstream"))
        super().__init__("nats", directory, [binary, "--config", str(config)], {})

    @property
    def url(self) -> str:
        """Where clients connect, as `nats://127.0.0.1:port`."""
        return f"nats://127.0.0.1:{self.port}"

    def _ready(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as probe:
            return probe.recv(5) == b"INFO "
        return False


def _spawn(argv: list[str], stdout: IO[bytes] | int, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a process that the kernel kills when the calling thread ends; it is not reached by Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        raise LabError("start daemons in the main thread: the kernel ties their lives to the starting thread")
    return subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *argv],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.STDOUT,
        env=env,
        process_group=0,
    )
