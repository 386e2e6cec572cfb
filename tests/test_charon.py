"""The library with a real charon, for behaviour that only a real daemon shows."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from lab import Lab, certificates, sas, version
from onloop import Kit

from vicifast import Session, _wire
from vicifast.aio import AsyncSession
from vicifast.errors import (
    CommandError,
    ConnectionClosed,
    EncodeError,
    RequestTimeout,
    UnknownCommand,
    UnknownEvent,
    ViciError,
)
from vicifast.results import parse_event

pytestmark = pytest.mark.lab(nats=True)

CLIENTS = 300
TOO_MANY = 2200  # connections with names of 250 bytes: 250 * 2200 is more than charon's 512 KiB for a reply
COUNTED = 1300  # connections with counters, 466 bytes for each, which is more too


def run(test: Coroutine[Any, Any, None], timeout: float = 30.0) -> None:
    asyncio.run(asyncio.wait_for(test, timeout))


async def load_connections(address: str, names: list[str], *, initiate: bool = False) -> None:
    """Load small connections in batches; `initiate` starts each, to a peer that does not exist."""
    remaining = iter(names)

    def config(name: str) -> dict[str, object]:
        # Without a distinct identity, each would match the IKE_SA of the first.
        ends = {"local": {"auth": "psk", "id": name}, "remote": {"auth": "psk"}}
        return {"remote_addrs": ["10.99.0.77"], **ends} if initiate else {}

    async def worker() -> None:
        async with AsyncSession(address) as session:
            for name in remaining:
                await session.call("load-conn", {name: config(name)})
                if initiate:
                    await session.call("initiate", {"ike": name, "timeout": -1})

    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(worker())


def test_replies_and_errors(lab: Lab) -> None:
    async def test() -> None:
        async with AsyncSession(lab.left.address) as session:
            answer: Any = await session.call("version")
            assert answer["daemon"] == "charon" and answer.keys() >= {"version", "sysname", "release", "machine"}
            stats: Any = await session.call("stats")
            assert stats["workers"]["total"] == "32" and "vici" in stats["plugins"]
            with pytest.raises(UnknownCommand, match="'no-such-command'"):
                await session.call("no-such-command")
            with pytest.raises(CommandError, match="^unload-conn: .*'absent' not found") as failure:
                await session.call("unload-conn", {"name": "absent"})
            assert failure.value.response == {"success": "no", "errmsg": failure.value.errmsg}
            with pytest.raises(CommandError, match="unknown option: bogus, config discarded"):
                await session.call("load-conn", {"site": {"bogus": True}})
            with pytest.raises(EncodeError, match="name: unload-conn requires printable ASCII"):
                await session.call("unload-conn", {"name": "Zürich"})
            assert await session.call("version") == answer

    run(test())


def test_counters_under_the_empty_name(lab: Lab) -> None:
    async def test() -> None:
        await sas.up(lab, 1)
        async with AsyncSession(lab.left.address) as session:
            everything: Any = (await session.call("get-counters"))["counters"]
            [(name, counters)] = everything.items()
            assert (name, counters["ike-init-out-req"]) == ("", "1")
            assert len(counters) == 21
            named: Any = (await session.call("get-counters", {"all": True}))["counters"]
            assert named.keys() == {"site-001"}
            # a connection may have the empty name too
            await session.call("load-conn", {"": {}})
            assert set((await session.call("get-conns"))["conns"]) == {"", "site-001"}

    run(test())


def test_certificates_are_bytes(lab: Lab) -> None:
    async def test() -> None:
        await certificates.load(lab.right, lab.directory)
        async with AsyncSession(lab.right.address) as session:
            found: list[Any] = [message async for message in session.stream("list-certs")]
        assert {type(message["data"]) for message in found} == {bytes}
        [gateway] = [message for message in found if message["type"] == "X509" and message["flag"] == "NONE"]
        assert gateway["data"][:2] == b"0\x82" and "Zürich gateway".encode() in gateway["data"]
        assert gateway["has_privkey"] == "yes"
        [key] = [message for message in found if message["type"] == "PUBKEY"]
        assert key["subject"] == "C=CH, O=Beispiel, CN=Z??rich gateway"  # as charon shows characters other than ASCII

    run(test())


def test_streams_side_by_side_and_left_early(lab: Lab) -> None:
    async def test() -> None:
        names = set(await sas.up(lab, 10))
        async with AsyncSession(lab.left.address) as session, AsyncSession(lab.left.address) as other:
            streams = [session.stream("list-sas"), session.stream("list-conns"), other.stream("list-sas")]
            found: list[set[str]] = [set(), set(), set()]
            for _ in names:  # in turn, one message of each
                for stream, those in zip(streams, found, strict=True):
                    those.update(await anext(stream))
            assert found == [names, names, names]
            for stream in streams:
                assert [message async for message in stream] == []
                assert stream.response == {}

            left = session.stream("list-sas")
            await anext(left)
            await left.aclose()
            async for _ in session.stream("list-conns"):
                break
            assert (await session.call("version"))["daemon"] == "charon"
            assert {name async for message in session.stream("list-sas") for name in message} == names

    run(test())


def test_many_clients_at_once(lab: Lab) -> None:
    """charon's backlog is 3, so most of them see EAGAIN."""

    async def client() -> str:
        async with AsyncSession(lab.left.address) as session:
            return str((await session.call("version"))["daemon"])

    async def test() -> None:
        assert await asyncio.gather(*(client() for _ in range(CLIENTS))) == ["charon"] * CLIENTS

    run(test())


def test_many_blocking_clients_at_once(lab: Lab) -> None:
    def client(_: int) -> str:
        with Session(lab.left.address) as session:
            return str(session.version()["daemon"])

    with ThreadPoolExecutor(CLIENTS) as pool:
        assert list(pool.map(client, range(CLIENTS))) == ["charon"] * CLIENTS


def test_event_that_an_old_charon_does_not_have(lab: Lab) -> None:
    async def test() -> None:
        async with AsyncSession(lab.right.address) as session:
            listener = session.listen("alert", "ike-updown")
            if version() < (6, 0, 3):
                with pytest.raises(UnknownEvent, match="'alert'"):
                    await listener.ready()
            await listener.ready()
            await sas.up(lab, 1)
            message: Any
            event, message = await anext(listener)
            assert (event, message["up"]) == ("ike-updown", "yes")
            assert message["site-001"]["state"] == "ESTABLISHED"

    run(test())


def test_states_during_rekeying(lab: Lab) -> None:
    """As docs/explanation/vici.md describes it for each version."""
    since_6 = version() >= (6, 0)
    replacing = ("child-rekey", "ike-rekey")

    async def states(side: str, names: list[str]) -> list[tuple[str, str]]:
        """The state of `old` in each event of `side`, while `left` rekeys the CHILD_SA and then the IKE_SA."""
        async with AsyncSession(getattr(lab, side).address) as session, session.listen(*replacing) as listener:
            await sas.rekey_child(lab, names)
            await sas.rekey_ike(lab, names)
            found = []
            for _ in replacing:
                event, message = await anext(listener)
                parsed: Any = parse_event(event, message)
                found.append((event, parsed.old.state))
            return found

    async def test() -> None:
        names = await sas.up(lab, 1)
        began, peer = [await states(side, names) for side in ("left", "right")]
        assert began == [("child-rekey", "REKEYING" if since_6 else "REKEYED"), ("ike-rekey", "REKEYING")]
        assert peer == [
            ("child-rekey", "DELETED" if since_6 else "REKEYED"),
            ("ike-rekey", "REKEYING" if since_6 else "ESTABLISHED"),
        ]

        async with AsyncSession(lab.left.address) as session:
            await session.call("load-pool", {"small": {"addrs": "10.4.0.0/30"}})
            pool: Any = (await session.call("get-pools", {"name": "small"}))["small"]
            assert (pool["base"], pool["size"]) == ("10.4.0.1" if since_6 else "10.4.0.0", "2")

    run(test())


def test_order_of_reauthentication(lab: Lab) -> None:
    async def test() -> None:
        [name] = await sas.up(lab, 1)
        async with AsyncSession(lab.left.address) as session, session.listen("ike-updown") as listener:
            await session.call("rekey", {"ike": name, "reauth": True})
            ups = []
            for _ in range(2):
                _, message = await anext(listener)
                ups.append(message.get("up") == "yes")
        assert ups == ([True, False] if version() >= (6, 0) else [False, True])

    run(test())


@pytest.mark.lab(nats=True, since="6.1")
def test_ikev1_is_accepted_and_missing(lab: Lab) -> None:
    old = {"remote_addrs": ["10.99.0.2"], "local": {"auth": "psk"}, "remote": {"auth": "psk"}}

    async def test() -> None:
        async with AsyncSession(lab.left.address) as session:
            for name, own in (("old", {"version": 1}), ("default", {}), ("either", {"version": 0})):
                assert await session.call("load-conn", {name: {**old, **own, "children": {"net": {}}}}) == {
                    "success": "yes"
                }
            listed: dict[str, Any] = {}
            async for message in session.stream("list-conns"):
                listed.update(message)
            assert {name: conn["version"] for name, conn in listed.items()} == {
                "old": "IKEv1",
                "default": "IKEv2",
                "either": "IKEv1/2",
            }
            with pytest.raises(CommandError, match="establishing CHILD_SA 'net' failed"):
                await session.call("initiate", {"ike": "old", "child": "net", "timeout": 10_000})
        assert "IKE version 1 not supported" in lab.left.log.read_text()

    run(test())


def test_failed_initiate_returns_its_log(lab: Lab) -> None:
    async def test() -> None:
        async with AsyncSession(lab.left.address) as session:
            children = {"lan": {"local_ts": ["10.1.0.1/32"], "remote_ts": ["10.128.0.1/32"]}}
            nowhere = {"remote_addrs": ["10.99.0.77"], "local": {"auth": "psk"}, "remote": {"auth": "psk"}}
            await session.call("load-conn", {"nowhere": {**nowhere, "children": children}})
            stream = session.stream("initiate", {"ike": "nowhere", "child": "lan", "timeout": 300})
            lines: list[Any] = []
            with pytest.raises(CommandError, match="CHILD_SA 'lan' not established after 300ms"):
                async for message in stream:
                    lines.append(message["msg"])
            assert any("initiating IKE_SA nowhere[1] to 10.99.0.77" in line for line in lines)
            with pytest.raises(CommandError, match="CHILD_SA config 'no-such-child' not found"):
                await session.call("initiate", {"child": "no-such-child", "timeout": 300})

    run(test())


class Noise:
    """Keeps charon logging: each load-conn is a line."""

    def __init__(self, address: str) -> None:
        self._address = address

    async def __aenter__(self) -> None:
        self._task = asyncio.create_task(self._make())

    async def _make(self) -> None:
        async with AsyncSession(self._address) as session:
            while True:
                await session.call("load-conn", {"noise": {}})

    async def __aexit__(self, *exc_info: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


def complaints(lab: Lab) -> Iterator[str]:
    """The line that charon logs for each event that it cannot deliver."""
    lines = lab.left.log.read_text(errors="replace").splitlines()
    return (line for line in lines if "vici connection" in line and "unknown" in line)


def test_closing_listeners_of_the_log_makes_no_burst(lab: Lab) -> None:
    async def listener() -> None:
        async with AsyncSession(lab.left.address) as session, session.listen("log") as events:
            for _ in range(20):
                await anext(events)

    async def without_unregistering() -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(sock, lab.left.address.removeprefix("unix://"))
            await loop.sock_sendall(sock, _wire.packet(_wire.EVENT_REGISTER, "log"))
            for _ in range(20):
                await loop.sock_recv(sock, 4096)

    async def test() -> None:
        async with Noise(lab.left.address):
            for _ in range(10):
                await asyncio.gather(*(listener() for _ in range(3)))
            assert list(complaints(lab)) == []
            while not any(complaints(lab)):  # this shows that this charon would complain
                await without_unregistering()

    run(test())


def test_reply_that_charon_drops(kit: Kit, lab: Lab) -> None:
    asyncio.run(load_connections(lab.left.address, [f"{number:0250}" for number in range(TOO_MANY)]))
    with kit.session(lab.left.address) as session:
        began = time.monotonic()
        with pytest.raises(RequestTimeout, match="get-conns: no reply for 0.5 s.*longer than 512 KiB"):
            session.get_conns(timeout=0.5)
        assert time.monotonic() - began < 5
        assert session.closed
        with pytest.raises(ConnectionClosed, match="get-conns: no reply.*512 KiB"):
            session.version()
        session.connect()
        assert len(list(session.list_conns())) == TOO_MANY


def test_counters_that_charon_drops(kit: Kit, lab: Lab) -> None:
    names = [f"site-{number:04}" for number in range(COUNTED)]
    asyncio.run(load_connections(lab.left.address, names, initiate=True))
    with kit.session(lab.left.address) as session:
        with pytest.raises(RequestTimeout, match="get-counters: no reply for 0.5 s.*longer than 512 KiB"):
            session.get_counters(all=True, timeout=0.5)
        session.connect()
        counters = session.get_counters(names[-1])["counters"]
        assert counters[names[-1]]["ike-init-out-req"] == "1" and len(counters[names[-1]]) == 21


def test_a_charon_that_is_killed_in_the_middle_of_a_stream(kit: Kit, lab: Lab) -> None:
    children = {"lan": {"local_ts": ["10.1.0.1/32"], "remote_ts": ["10.128.0.1/32"]}}
    nowhere = {"remote_addrs": ["10.99.0.77"], "local": {"auth": "psk"}, "remote": {"auth": "psk"}}
    with kit.session(lab.left.address) as session, session.listen("ike-updown", timeout=10) as listener:
        session.load_conn("nowhere", {**nowhere, "children": children})
        stream = session.initiate(child="lan", timeout=20)
        assert next(stream)["msg"]
        lab.left.kill()
        with pytest.raises(ConnectionClosed, match="charon closed the connection|the connection broke"):
            list(stream)
        with pytest.raises(ConnectionClosed):
            next(listener)
        with pytest.raises(ConnectionClosed):
            session.version()
        with pytest.raises(ConnectionClosed, match="cannot connect"):
            session.connect()
        lab.left.start()
        session.connect()
        assert session.version()["daemon"] == "charon"


def test_last_events_of_a_charon_that_stops(lab: Lab) -> None:
    async def test() -> None:
        await sas.up(lab, 3)
        async with AsyncSession(lab.left.address) as session, session.listen("ike-updown", "child-updown") as listener:
            stopping = asyncio.create_task(asyncio.to_thread(lab.left.stop))
            down = []
            with pytest.raises(ConnectionClosed, match="charon closed the connection"):
                async for event, message in listener:
                    if "up" not in message:  # the last up may come after the reply to initiate
                        down.append(event)
            await stopping
            with pytest.raises(ViciError, match="the connection is closed"):
                await session.call("version")
        assert sorted(down) == ["child-updown"] * 3 + ["ike-updown"] * 3
        with pytest.raises(ConnectionClosed, match=f"cannot connect to {lab.left.address}"):
            await AsyncSession(lab.left.address).connect()

    run(test())
