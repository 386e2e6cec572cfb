"""Real charons: a failed negotiation is not a tunnel that goes down, and a scanner displaces no events."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from harness import Observer, observing, run, until
from lab import Lab, sas, stranger
from test_mirror_on_charon import bridges, equal
from vicibridge.client import Completeness, unpack

from vicifast.aio import AsyncSession
from vicifast.errors import CommandError

pytestmark = pytest.mark.lab(nats=True)

Section = dict[str, Any]

HQ = {"auth": "psk", "id": "hq.example"}
BRANCH = {"auth": "psk", "id": "branch.example"}
COMMON = {"version": 2, "proposals": ["aes128-sha256-x25519"]}
CHILD = {"esp_proposals": ["aes128gcm16"]}
HERE, THERE = ["10.1.0.1/32[tcp/40001]"], ["10.128.0.1/32"]
LEFT = {
    **COMMON, "remote_addrs": ["10.99.0.2"], "local": BRANCH, "remote": HQ,
    "children": {"gw-lan": {**CHILD, "local_ts": HERE, "remote_ts": THERE}},
}  # fmt: skip
RIGHT = {
    **COMMON, "local_addrs": ["10.99.0.2"], "local": HQ, "remote": BRANCH,
    "children": {"hq-lan": {**CHILD, "local_ts": THERE, "remote_ts": HERE}},
}  # fmt: skip
CAUSE = "over the rate limit of unauthenticated events"
COUNT, PACKETS = 5, 600
PORT = 500  # from this port a peer moves to 4500 while it connects; it keeps any other port
NAMES = (("left", "gw"), ("right", "hq"))
UNNAMED = "right.event.ike-updown.=28unnamed=29.failed"


async def load(lab: Lab, left: Section, *, secret: bytes = b"only for the lab") -> None:
    for charon, name, config, key in (
        (lab.left, "gw", left, secret),
        (lab.right, "hq", RIGHT, b"only for the lab"),
    ):
        async with AsyncSession(charon.address) as session:
            await session.call("clear-creds")
            await session.call("load-shared", {"id": "lab", "type": "IKE", "data": key})
            await session.call("load-conn", {name: config})


async def initiate(lab: Lab) -> bool:
    async with AsyncSession(lab.left.address) as session:
        try:
            await session.call("initiate", {"child": "gw-lan", "timeout": 10_000})
        except CommandError:
            return False
    return True


async def listening(observer: Observer) -> None:
    """Wait until both bridges have registered their events."""
    await until(lambda: len([e for _, e in observer.seen(".status") if e["data"]["charon"] == "up"]) == 2)


async def terminate(lab: Lab) -> None:
    async with AsyncSession(lab.left.address) as session:
        await session.call("terminate", {"ike": "gw", "timeout": 10_000})


async def new(observer: Observer, before: int, *ends: str) -> int:
    """Wait for exactly these subjects, in any order; return the number of events so far."""
    expected = sorted(f"vici.{end}" for end in ends)
    await observer.sees("-updown.", before + len(ends))
    assert sorted(subject for subject, _ in observer.seen("-updown.")[before:]) == expected
    return before + len(ends)


def test_failed_negotiations() -> None:
    async def test(lab: Lab) -> None:
        async with observing(lab.nats.url) as observer, bridges(lab):
            await observer.watch("$KV.>")
            await listening(observer)
            seen = 0
            for conn, secret, there in (
                (LEFT, b"wrong", "right.event.ike-updown.hq.failed"),
                ({**LEFT, "proposals": ["aes256-sha384-ecp384"]}, b"only for the lab", UNNAMED),
                ({**LEFT, "local": {**BRANCH, "id": "stranger.example"}}, b"only for the lab", UNNAMED),
            ):
                await load(lab, conn, secret=secret)
                assert not await initiate(lab)
                seen = await new(observer, seen, "left.event.ike-updown.gw.failed", there)
            await load(lab, LEFT)
            assert await initiate(lab)
            ikes = [f"{node}.event.ike-updown.{conn}" for node, conn in NAMES]
            both = ikes + [f"{node}.event.child-updown.{conn}.{conn}-lan" for node, conn in NAMES]
            seen = await new(observer, seen, *[f"{end}.up" for end in both])
            # Another failed negotiation does not affect the SA that is up.
            await stranger.fail(lab, 1, port=PORT)
            seen = await new(observer, seen, UNNAMED)
            await terminate(lab)
            seen = await new(observer, seen, *[f"{end}.down" for end in both])
            # A failed child raises neither up nor down, while its IKE_SA is up.
            elsewhere = {**CHILD, "local_ts": HERE, "remote_ts": ["10.77.0.0/24"]}
            await load(lab, {**LEFT, "children": {"gw-lan": elsewhere}})
            assert not await initiate(lab)
            seen = await new(observer, seen, *[f"{end}.up" for end in ikes])
            await terminate(lab)
            await new(observer, seen, *[f"{end}.down" for end in ikes])
            # Moving from port 500 to 4500 is an ike-update of an IKE_SA that is not established and has no name.
            assert observer.seen("right.event.ike-update.=28unnamed=29")
            keys = {m.subject for m in observer.messages if m.subject.startswith("$KV.")}
            assert {key.rpartition(".")[2] for key in keys if ".VICI_CONN." in key} == {"gw", "hq"}
            assert {key.rsplit(".", 2)[1] for key in keys if ".VICI_SA." in key} == {"gw", "hq"}
            assert not [e for _, e in observer.seen(".resync") if "unnamed" in e["data"]["key"]]

    with Lab(nats=True, settings=f"charon {{\n port = {PORT}\n port_nat_t = 4500\n}}") as lab:
        run(test(lab), timeout=60)


def test_scanner(lab: Lab) -> None:
    async def test() -> None:
        async with observing(lab.nats.url) as observer, bridges(lab):
            await listening(observer)
            names = await sas.load(lab, COUNT)
            scan = asyncio.create_task(stranger.fail(lab, PACKETS))
            await sas.initiate(lab, names)
            await sas.terminate(lab, names)
            await scan
            expected = {
                f"vici.{node}.event.{end}.{direction}"
                for node in ("left", "right")
                for name in names
                for end in (f"ike-updown.{name}", f"child-updown.{name}.{name}-lan")
                for direction in ("up", "down")
            }
            await until(lambda: {subject for subject, _ in observer.seen("-updown.site")} == expected)

            def missing() -> tuple[int, int, set[str | None]]:
                """Return how many state events of `right` are missing, how many gaps report, and the causes."""
                state = [e for m in observer.messages for e in unpack(m) if (e.node, e.kind) == ("right", "state")]
                whole = Completeness(from_start=True)
                for envelope in state:
                    whole.add(envelope)
                numbers = sum(gap.last - gap.first + 1 for gap in whole.gaps())
                reported = sum(envelope.data["count"] for envelope in state if envelope.event == "gap")
                return numbers, reported, {gap.cause for gap in whole.gaps()}

            # A burst of 100, then one per second; the rest is reported.
            await until(lambda: missing()[0] == missing()[1] > PACKETS / 2 and missing()[2] == {CAUSE})
            assert 100 <= len(observer.seen(UNNAMED)) < PACKETS / 2
            await equal(lab, observer.client)

    run(test(), timeout=60)
