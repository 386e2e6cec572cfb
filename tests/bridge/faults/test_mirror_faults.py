"""Buckets that an administrator created, changed or emptied: once fixed, the mirror equals charon.

`make test-faults` runs these; the default run leaves them out.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import nats
import pytest
from harness import NatsServer, Observer, bucket, observing, run, service, until
from test_administrator import BIG, RECREATED, SMALL
from test_mirror_worker import child, listed, mirrored, sa
from test_nats_faults import reload
from test_streams import CASES, Admin, Case
from traffic import balanced
from vicibridge.bus.streams import bucket_stream
from vicibridge.contract.bucket_values import NODE, SA
from vicibridge.service import Service

from vicifast.testing import FakeCharon

pytestmark = pytest.mark.faults

BUCKETS = [case for case in CASES if case.of == "bucket"]
OURS: dict[str, Any] = bucket_stream(SA).as_dict()


class Tunnels:
    """A charon whose tunnels come up, move and go down continuously."""

    def __init__(self, charon: FakeCharon, seed: int) -> None:
        self.charon = charon
        self.up: dict[str, dict[str, Any]] = {}
        self._chance = random.Random(seed)
        self._last = 0

    def list(self) -> None:
        listed(self.charon, [("gw", section) for section in self.up.values()])

    def step(self) -> None:
        number = self._chance.choice([*self.up, "new", "new"])
        if number == "new" and len(self.up) < 40:
            self._last += 1
            section = sa(str(self._last), child(str(self._last)), spi=str(self._last), note="x" * 300)
            self.up[str(self._last)] = section
            self.charon.emit("child-updown", {"up": "yes", "gw": section})
        elif number in self.up and self._chance.random() < 0.5:
            self.charon.emit("ike-updown", {"gw": self.up.pop(number)})
        elif number in self.up:
            new = {"remote-host": f"192.0.2.{self._chance.randrange(256)}", "remote-port": "4500"}
            self.charon.emit("ike-update", {**new, "gw": self.up[number]})
            self.up[number] = {**self.up[number], **new}
        self.list()

    @asynccontextmanager
    async def coming_and_going(self) -> AsyncIterator[None]:
        async def go() -> None:
            while True:
                self.step()
                await asyncio.sleep(0.01)

        task = asyncio.create_task(go())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def mirrored(self, observer: Observer) -> bool:
        """Whether the bucket has exactly these tunnels with their current values."""
        values = await bucket(observer.client, SA)
        if values.keys() != {f"gw1.gw.{number}" for number in self.up}:
            return False
        return all(
            values[f"gw1.gw.{number}"]["sa"].get("remote-host") == section.get("remote-host")
            and set(values[f"gw1.gw.{number}"]["children"]) == {number}
            for number, section in self.up.items()
        )


@asynccontextmanager
async def scene(
    server: NatsServer, make: Case | None = None
) -> AsyncIterator[tuple[Service, Tunnels, Observer, Admin]]:
    """Tunnels, and a bridge that mirrors them; at the end the mirror is complete and equals charon."""
    await server.up()
    async with FakeCharon() as charon, observing(server.url, "nothing") as observer:
        admin = Admin(server, observer.client, f"KV_{SA}")
        if make is not None:
            await made(admin, make)
        tunnels = Tunnels(charon, 1)
        tunnels.list()
        async with service(mirrored(server.url, charon, interval=0.5)) as bridge:
            async with tunnels.coming_and_going():
                yield bridge, tunnels, observer, admin
                await asyncio.sleep(0.5)
            await charon.drain()
            balanced(bridge)
            async with asyncio.timeout(30):
                while bridge.mirrorings[0].buckets.troubles() or not await tunnels.mirrored(observer):
                    await asyncio.sleep(0.2)
                while (await bucket(observer.client, NODE))["gw1"]["mirror"] != "complete":
                    await asyncio.sleep(0.2)


async def made(admin: Admin, case: Case) -> None:
    """Create the bucket of SAs of a case."""
    config: dict[str, Any] = json.loads(json.dumps(case.config).replace(NODE, SA))
    await admin.make(name="ORIGIN", subjects=["origin.>"])
    sealed = config.pop("sealed", False)
    present = await admin.make(**{**OURS, **config})
    if sealed:
        assert "error" not in await admin.api(f"STREAM.UPDATE.{admin.name}", {**present, "sealed": True})


async def change(admin: Admin, **properties: Any) -> None:
    changed = {**await admin.config(), **properties}
    answer = await admin.api(
        f"STREAM.UPDATE.{admin.name}", {key: value for key, value in changed.items() if value is not None}
    )
    assert "error" not in answer, answer


@pytest.mark.parametrize("case", BUCKETS, ids=str)
def test_fixed_bucket_is_complete(nats_server: NatsServer, case: Case) -> None:
    async def test() -> None:
        async with scene(nats_server, case) as (_, _, _, admin):
            await asyncio.sleep(1.5)
            if case.property in {*RECREATED, "retention = workqueue", "deny_purge"}:
                assert (await admin.api(f"STREAM.DELETE.{admin.name}"))["success"]
            else:
                await change(admin, **{key: OURS.get(key) for key in case.config})
            await asyncio.sleep(1)

    run(test(), 90)


Fault = Callable[[Admin], Awaitable[None]]


async def purged(admin: Admin) -> None:
    for _ in range(5):
        assert (await admin.api(f"STREAM.PURGE.{admin.name}"))["success"]
        await asyncio.sleep(0.3)


async def deleted(admin: Admin) -> None:
    for _ in range(3):
        assert (await admin.api(f"STREAM.DELETE.{admin.name}"))["success"]
        await asyncio.sleep(0.5)


async def emptied_by_another_client(admin: Admin) -> None:
    kv = await admin.client.jetstream().key_value(SA)
    for number in range(100):
        try:
            for key in await kv.keys():
                await (kv.purge(key) if number % 2 else kv.delete(key))
        except nats.js.errors.NoKeysError:
            pass
        await asyncio.sleep(0.01)


async def written_by_another_client(admin: Admin) -> None:
    kv = await admin.client.jetstream().key_value(SA)
    for number in range(100):
        await kv.put(f"gw1.gw.{number}", b'{"v": 1}')
        await asyncio.sleep(0.01)


async def full_for_a_while(admin: Admin) -> None:
    before = await admin.config()
    await change(admin, max_bytes=5000)
    await asyncio.sleep(2)
    await change(admin, max_bytes=before["max_bytes"])


async def small_values_only_for_a_while(admin: Admin) -> None:
    await change(admin, max_msg_size=200)
    await asyncio.sleep(2)
    await change(admin, max_msg_size=-1)


async def unacknowledged_for_a_while(admin: Admin) -> None:
    await change(admin, no_ack=True)
    await asyncio.sleep(7)  # longer than the acknowledgement timeout
    await change(admin, no_ack=False)


async def without_subjects_for_a_while(admin: Admin) -> None:
    await change(admin, subjects=["other"])
    await asyncio.sleep(2)
    await change(admin, subjects=OURS["subjects"])


async def restarted(admin: Admin) -> None:
    for _ in range(2):
        admin.server.kill()
        await asyncio.sleep(0.3)
        await admin.server.up()
        await asyncio.sleep(0.7)


FAULTS = [
    purged,
    deleted,
    emptied_by_another_client,
    written_by_another_client,
    full_for_a_while,
    small_values_only_for_a_while,
    unacknowledged_for_a_while,
    without_subjects_for_a_while,
    restarted,
]


@pytest.mark.parametrize("fault", FAULTS)
def test_bucket_changed_under_traffic(nats_server: NatsServer, fault: Fault) -> None:
    async def test() -> None:
        async with scene(nats_server) as (bridge, _, _, admin):
            await until(lambda: bridge.mirrorings[0].buckets.keys()[SA] > 5)
            await fault(admin)

    run(test(), 120)


def test_full_account_gets_more_room(make_nats_server: Callable[..., NatsServer]) -> None:
    server = make_nats_server(SMALL)

    async def test() -> None:
        async with scene(server) as (bridge, _, _, _):
            await until(lambda: "JetStream error 10002" in str(bridge.mirrorings[0].buckets.troubles()), 30)
            await asyncio.sleep(1)
            await reload(server, SMALL, BIG)

    run(test(), 120)
