"""Operations on the SAs of a lab: load, initiate, send traffic, rekey, move, terminate.

Every SA has its own connection, `site-001` and so on, with one CHILD_SA, `site-001-lan`. Each function
returns when its effect has occurred on both sides, and raises LabError if that takes too long, CommandError
if charon refuses. A CHILD_SA that was rekeyed stays listed as DELETED for charon's `delete_rekeyed_delay`, 5 s.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from vicifast.aio import AsyncSession

from .daemons import Charon, LabError
from .lab import Lab

POOL = "branches"

_TIMEOUT = 20.0
_FIRST_PORT = 40000  # without names in /etc/services, which charon would print
_SECRET = {"id": "lab", "type": "IKE", "data": b"only for the lab"}
_HQ = {"auth": "psk", "id": "hq.example"}

# From the port in the SA's selector to a port without a listener: one packet each way.
_KNOCK = """
import socket, sys
for port in map(int, sys.argv[1:]):
    with socket.socket() as knock:
        knock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        knock.settimeout(5)
        knock.bind(("10.1.0.1", port))
        if knock.connect_ex(("10.128.0.1", 7)) != 111:
            sys.exit(f"nothing came back through the SA of port {port}")
"""


async def load(lab: Lab, count: int, *, one_responder: bool = False, hybrid: bool = False) -> list[str]:
    """Load `count` connections, a secret and an address pool on both sides; return the connections' names.

    With `one_responder` a single connection on `right` answers for all: of thousands charon looks through each, for
    every SA that comes up. `hybrid` adds features of strongSwan 6.0.2: a second key exchange, and per-CPU SAs.
    """
    names = [f"site-{number:03}" for number in range(1, count + 1)]
    async with AsyncSession(lab.right.address) as right:
        await right.call("load-pool", {POOL: {"addrs": "10.3.0.0/16", "dns": ["10.128.0.1"]}})
    answering = {"branches": _any_headquarters()} if one_responder else {name: _headquarters(name) for name in names}
    for charon, configs in ((lab.left, {name: _branch(name) for name in names}), (lab.right, answering)):
        async with AsyncSession(charon.address) as session:
            await session.call("load-shared", _SECRET)
            for name, config in configs.items():
                await session.call("load-conn", {name: _hybrid(config) if hybrid else config})
    return names


async def initiate(lab: Lab, names: Iterable[str], *, concurrency: int = 8, timeout: float = _TIMEOUT) -> None:
    """Make `left` bring the SAs up, `concurrency` at a time, each within `timeout` seconds.

    charon answers initiate when a CHILD_SA is installed, which is before it raises child-updown for it.
    """
    names = list(names)
    milliseconds = round(timeout * 1000)

    async def one(session: AsyncSession, name: str) -> None:
        await session.call("initiate", {"ike": name, "child": f"{name}-lan", "timeout": milliseconds})

    # `right` raises its event before it sends the message that completes `left`.
    async with _on(lab.left, "child-updown", set(names), timeout):
        await _each(lab.left, names, one, concurrency, timeout)


async def up(lab: Lab, count: int, *, one_responder: bool = False) -> list[str]:
    """Load `count` connections and bring their SAs up; return the connections' names."""
    names = await load(lab, count, one_responder=one_responder)
    await initiate(lab, names)
    return names


async def load_sharing(lab: Lab, conns: Mapping[str, Sequence[str]]) -> dict[tuple[str, str], int]:
    """Load connections of `left` that share one IKE_SA, as peer and identities are the same, with these children.

    One connection on `right` answers for all. Returns the port of each connection and child, for `knock`.
    """
    pairs = [(conn, child) for conn, children in conns.items() for child in children]
    ports = {pair: _FIRST_PORT + number for number, pair in enumerate(pairs)}
    async with AsyncSession(lab.right.address) as right:
        await right.call("load-shared", _SECRET)
        children = {f"{conn}-{child}": _answering(port) for (conn, child), port in ports.items()}
        await right.call("load-conn", {"hq": {**_headquarters("site-001"), "pools": [], "children": children}})
    async with AsyncSession(lab.left.address) as left:
        await left.call("load-shared", _SECRET)
        for conn in conns:
            children = {child: _asking(port) for (name, child), port in ports.items() if name == conn}
            await left.call("load-conn", {conn: {**_branch("site-001"), "vips": [], "children": children}})
    return ports


async def terminate(lab: Lab, names: Iterable[str], *, timeout: float = _TIMEOUT) -> None:
    """Make `left` close the IKE_SAs with their CHILD_SAs."""
    names = list(names)

    async def one(session: AsyncSession, name: str) -> None:
        await session.call("terminate", {"ike": name, "timeout": round(timeout * 1000)})

    async with _on_both(lab, "ike-updown", names, timeout):
        await _each(lab.left, names, one, 8, timeout)


async def rekey_ike(lab: Lab, names: Iterable[str], *, timeout: float = _TIMEOUT) -> None:
    """Make `left` rekey the IKE_SAs."""
    await _rekey(lab, "ike-rekey", {name: {"ike": name} for name in names}, timeout)


async def reauthenticate(lab: Lab, names: Iterable[str], *, timeout: float = _TIMEOUT) -> None:
    """Make `left` reauthenticate, with new SAs; charon delays that while a rekeyed CHILD_SA is still listed."""
    names = list(names)
    async with AsyncExitStack() as stack:
        for charon in (lab.left, lab.right):
            await stack.enter_async_context(_on(charon, "ike-updown", [*names, *names], timeout))
        session = await stack.enter_async_context(AsyncSession(lab.left.address))
        for name in names:
            await session.call("rekey", {"ike": name, "reauth": True})


async def rekey_child(lab: Lab, names: Iterable[str], *, timeout: float = _TIMEOUT) -> None:
    """Make `left` rekey the CHILD_SAs."""
    await _rekey(lab, "child-rekey", {name: {"child": f"{name}-lan"} for name in names}, timeout)


async def update(lab: Lab, names: Iterable[str], *, timeout: float = _TIMEOUT) -> None:
    """Move `left` between 10.99.0.1 and 10.99.0.3, which MOBIKE reports to `right`; `names` are all SAs now up.

    charon's userspace IPsec cannot move a CHILD_SA, so charon rekeys each: child-rekey follows ike-update.
    """
    old, new = "10.99.0.1/24", "10.99.0.3/24"
    if new in lab.left.namespace.run("ip", "-o", "-4", "addr", "show", "dev", "lab0"):
        old, new = new, old
    names = list(names)
    async with _on_both(lab, "ike-update", names, timeout), _on_both(lab, "child-rekey", names, timeout):
        lab.left.namespace.run("sh", "-c", f"ip addr add {new} dev lab0 && ip addr del {old} dev lab0")


async def send(lab: Lab, names: Iterable[str]) -> None:
    """Send one packet (60 bytes) through each SA from `left`, and one (40 bytes) back."""
    await knock(lab, map(_port, names))


async def knock(lab: Lab, ports: Iterable[int]) -> None:
    """Send one packet (60 bytes) from each of these ports of `left`, and one (40 bytes) back, each through its SA."""
    await asyncio.to_thread(lab.left.namespace.run, sys.executable, "-c", _KNOCK, *map(str, ports))


def _branch(name: str) -> dict[str, object]:
    return {
        **_common(),
        "remote_addrs": ["10.99.0.2"],
        "vips": ["0.0.0.0"],
        "local": {"auth": "psk", "id": f"{name}.example"},
        "remote": _HQ,
        "children": {
            f"{name}-lan": _asking(_port(name)),
        },
    }


def _headquarters(name: str) -> dict[str, object]:
    return {
        **_common(),
        "local_addrs": ["10.99.0.2"],
        "pools": [POOL],
        "local": _HQ,
        "remote": {"auth": "psk", "id": f"{name}.example"},
        "children": {
            f"{name}-lan": _answering(_port(name)),
        },
    }


def _any_headquarters() -> dict[str, object]:
    children = {"lan": _child("10.128.0.1/32", "10.1.0.1/32[tcp]")}
    return {**_headquarters("site-001"), "remote": {"auth": "psk"}, "children": children}


def _common() -> dict[str, object]:
    # With ports other than 500 both must be the one for NAT traversal, or the first packet lacks its marker.
    return {
        "version": 2,
        "local_port": 14500,
        "remote_port": 14500,
        "proposals": ["aes128-sha256-x25519"],
        "mobike": True,
        "unique": "never",
    }


def _hybrid(config: dict[str, Any]) -> dict[str, Any]:
    exchange = "x25519-ke1_mlkem768"
    child = {"esp_proposals": [f"aes128gcm16-{exchange}"], "per_cpu_sas": True}
    children = {name: {**own, **child} for name, own in config["children"].items()}
    return {**config, "proposals": [f"aes128-sha256-{exchange}"], "children": children}


def _asking(port: int) -> dict[str, object]:
    return _child(f"10.1.0.1/32[tcp/{port}]", "10.128.0.1/32")


def _answering(port: int) -> dict[str, object]:
    return _child("10.128.0.1/32", f"10.1.0.1/32[tcp/{port}]")


def _child(local: str, remote: str) -> dict[str, object]:
    return {"local_ts": [local], "remote_ts": [remote], "esp_proposals": ["aes128gcm16"]}


def _port(name: str) -> int:
    return _FIRST_PORT + int(name.removeprefix("site-"))


async def _rekey(lab: Lab, event: str, requests: dict[str, dict[str, object]], timeout: float) -> None:
    async with _on_both(lab, event, requests, timeout), AsyncSession(lab.left.address) as session:
        for request in requests.values():
            await session.call("rekey", request)


async def _each(
    charon: Charon,
    names: Sequence[str],
    work: Callable[[AsyncSession, str], Awaitable[None]],
    concurrency: int,
    timeout: float,
) -> None:
    remaining = iter(names)

    async def worker() -> None:
        async with AsyncSession(charon.address, timeout=timeout + 5) as session:
            for name in remaining:
                await work(session, name)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(concurrency, len(names))):
                group.create_task(worker())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


@asynccontextmanager
async def _on_both(lab: Lab, event: str, names: Iterable[str], timeout: float) -> AsyncIterator[None]:
    """On exit, wait until both charons have sent `event` for each of `names`."""
    names = set(names)
    async with AsyncExitStack() as stack:
        for charon in (lab.left, lab.right):
            await stack.enter_async_context(_on(charon, event, names, timeout))
        yield


@asynccontextmanager
async def _on(charon: Charon, event: str, names: Iterable[str], timeout: float) -> AsyncIterator[None]:
    """On exit, wait until `event` has arrived for each of `names`, as often as the name occurs."""
    missing = Counter(names)
    async with AsyncSession(charon.address) as session, session.listen(event) as listener:
        yield
        try:
            async with asyncio.timeout(timeout):
                while missing:
                    _, message = await anext(listener)
                    missing -= Counter(message.keys())
                await _settle(session)
        except TimeoutError:
            late = f"no {event} for {', '.join(sorted(missing))}" if missing else "SAs are still being replaced"
            raise LabError(f"{charon.name}: after {timeout:g} s {late}") from None


async def _settle(session: AsyncSession) -> None:
    """Wait until no SA is being replaced; there is no event for this.

    After child-rekey the responder keeps sending through the old SA until the initiator has deleted it.
    """
    while True:
        replaced = [
            sa
            async for message in session.stream("list-sas")
            for sa in message.values()
            if isinstance(sa, dict) and _being_replaced(sa)
        ]
        if not replaced:
            return
        await asyncio.sleep(0.005)


def _being_replaced(ike: dict[str, Any]) -> bool:
    states = {ike["state"], *(child["state"] for child in ike["child-sas"].values())}
    return not states.isdisjoint({"REKEYING", "REKEYED", "DELETING"})
