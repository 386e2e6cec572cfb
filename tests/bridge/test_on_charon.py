"""The bridge as a separate process, between real charons and a real NATS server."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgpack
import nats
import pytest
from harness import bridge_process, envelopes, observing, processed, run, stored, until
from lab import Lab, sas
from nats.aio.client import Client
from nats.errors import NoRespondersError
from nats.js.errors import NotFoundError

from vicifast.aio import AsyncSession, Listener
from vicifast.errors import ConnectionClosed, UnknownEvent

pytestmark = pytest.mark.lab(nats=True)

Section = dict[str, Any]
Events = Sequence[tuple[str, Section]]  # (event, message)
Seen = list[tuple[str, Section]]  # (subject, envelope)

STATE = ("ike-updown", "child-updown", "ike-rekey", "child-rekey", "ike-update", "alert")
COUNT = 20
# What `whole_life` makes charon raise; moving rekeys each CHILD_SA too, and when both sides begin, more than once.
AT_LEAST = Counter(
    {
        "ike-updown": 2 * COUNT,
        "child-updown": 2 * COUNT,
        "ike-rekey": COUNT,
        "child-rekey": 2 * COUNT,
        "ike-update": COUNT,
    }
)


@asynccontextmanager
async def bridge(lab: Lab, nodes: Iterable[str], codec: str = "msgpack") -> AsyncIterator[Path]:
    """Run `vicibridge run` for charons of the lab and yield its log; it must stop cleanly, without an error."""
    config = lab.directory / "bridge.toml"
    gateways = [f'[[gateway]]\nnode = "{node}"\nvici = "{getattr(lab, node).address}"' for node in nodes]
    bus = f'[nats]\nservers = ["{lab.nats.url}"]\nprobe_interval = 0.3\n[mirror]\nenabled = false'
    spool = f'[spool]\npath = "{lab.directory / "spool"}"'
    codecs = [f'[{name}]\ncodec = "{codec}"' for name in ("events", "log")]
    config.write_text("\n".join([bus, spool, *gateways, *codecs]))
    async with bridge_process(config) as log:
        yield log


class Heard(list[tuple[str, Section]]):
    """The events of charon, recorded by a separate listener."""

    def __init__(self, session: AsyncSession, listener: Listener[Section]) -> None:
        super().__init__()
        self._session = session
        self.ended = asyncio.create_task(self._listen(listener))

    async def complete(self) -> None:
        """Wait for every event that charon has raised so far: charon answers in order, so a reply follows them."""
        await self._session.call("version")

    async def _listen(self, listener: Listener[Section]) -> None:
        with suppress(ConnectionClosed):
            async for event, message in listener:
                self.append((event, message))


@asynccontextmanager
async def heard(address: str, *events: str) -> AsyncIterator[Heard]:
    async with AsyncSession(address, timeout=60) as session:
        listener = session.listen(*events, timeout=None)
        with suppress(UnknownEvent):  # alert, before strongSwan 6.0.3
            await listener.ready()
        everything = Heard(session, listener)
        try:
            yield everything
        finally:
            everything.ended.cancel()
            await asyncio.gather(everything.ended, return_exceptions=True)


async def watch(client: Client, subject: str) -> Seen:
    """Return the list to which every envelope on `subject` is added."""
    everything: Seen = []

    async def note(message: Any) -> None:
        everything.extend((message.subject, envelope) for envelope in envelopes(message.data))

    await client.subscribe(subject, cb=note)
    await processed(client)
    return everything


async def kept(url: str) -> Seen:
    """Return every envelope in the stream VICI, in order; empty if the stream does not exist."""
    try:
        return [(m.subject, envelope) for m in await stored(url) for envelope in envelopes(m.data)]
    except NotFoundError:
        return []


async def until_kept(url: str, condition: Callable[[Seen], object]) -> Seen:
    async with asyncio.timeout(60):
        while not condition(everything := await kept(url)):
            await asyncio.sleep(0.05)
    return everything


async def served(client: Client, node: str) -> Section:
    """Wait until the bridge serves commands for `node`, and return the version of its charon."""
    async with asyncio.timeout(10):
        while True:
            with suppress(NoRespondersError):
                reply = await client.request(f"vici.{node}.cmd.version", b"{}", timeout=5)
                version: Section = json.loads(reply.data)
                return version
            await asyncio.sleep(0.01)


def of(node: str, seen: Seen, kind: str = "") -> Seen:
    return [(subject, envelope) for subject, envelope in seen if subject.startswith(f"vici.{node}.{kind}")]


def statuses(seen: Seen) -> list[tuple[str, str]]:
    return [(e["data"]["bridge"], e["data"]["charon"]) for s, e in seen if s.endswith(".bridge.status")]


def up(seen: Seen) -> bool:
    return statuses(seen)[-1:] == [("running", "up")]


def subject(node: str, event: str, message: Section) -> str:
    """Return the documented subject of an event."""
    if event == "alert":
        return ".".join(["vici", node, "event", event, message["type"]])
    [(ike, section)] = [(key, value) for key, value in message.items() if isinstance(value, dict)]
    tokens = ["vici", node, "event", event, ike]
    if event.startswith("child-"):
        [(name, child)] = section["child-sas"].items()
        tokens.append(name if event == "child-rekey" else child["name"])
    if event.endswith("-updown"):
        tokens.append("up" if message.get("up") == "yes" else "down")
    return ".".join(tokens)


PublishedEvent = tuple[str, str, str]  # subject, event, message


def expected(node: str, events: Events) -> list[PublishedEvent]:
    return [(subject(node, event, message), event, json.dumps(message)) for event, message in events]


def published(seen: Seen) -> list[PublishedEvent]:
    return [(subject, envelope["event"], json.dumps(envelope["data"])) for subject, envelope in seen]


def per_sa(events: Iterable[PublishedEvent]) -> dict[str, list[PublishedEvent]]:
    """Sort events by IKE_SA: charon keeps the order only within one.

    Events of two SAs that threads of charon raise at the same time may reach two listeners in different orders; the
    events of one SA are in order for every listener.
    """
    sorted_: dict[str, list[PublishedEvent]] = {}
    for event in events:
        sorted_.setdefault(event[0].split(".")[4], []).append(event)
    return sorted_


def assert_same(node: str, events: Events, seen: Seen) -> None:
    """Check that every event arrived exactly once, on its subject, with its data, in order."""
    assert per_sa(published(seen)) == per_sa(expected(node, events))


def assert_no_gap_in_seq(seen: Seen) -> None:
    assert [envelope["seq"] for _, envelope in seen] == list(range(1, len(seen) + 1))
    assert len({envelope["boot"] for _, envelope in seen}) <= 1


def lines(messages: Iterable[Section]) -> Counter[str]:
    return Counter(json.dumps(message) for message in messages)


def unseen(logged: Events, early: int, late: int, seen: Seen) -> Counter[str]:
    """Return the lines from number `early` to `late` that are missing in the envelopes."""
    return lines(message for _, message in logged[early:late]) - lines(envelope["data"] for _, envelope in seen)


async def whole_life(lab: Lab) -> None:
    names = await sas.up(lab, COUNT)
    await sas.send(lab, names)
    await sas.rekey_child(lab, names)
    await sas.rekey_ike(lab, names)
    await sas.update(lab, names)
    await sas.terminate(lab, names)


@asynccontextmanager
async def churn(lab: Lab, names: Sequence[str]) -> AsyncIterator[None]:
    """Close the SAs and bring them up again, repeatedly; on exit the current round is completed."""
    leaving = False

    async def work() -> None:
        while not leaving:
            await sas.terminate(lab, names)
            await sas.initiate(lab, names)

    task = asyncio.create_task(work())
    yield
    leaving = True
    await task


@pytest.mark.parametrize("codec", ["msgpack", "json"])
def test_every_event_of_charon(lab: Lab, codec: str) -> None:
    nodes = ("left", "right")

    async def test() -> None:
        async with observing(lab.nats.url, "nothing") as observer, AsyncExitStack() as stack:
            state = await watch(observer.client, "vici.*.event.>")
            bridges_own = await watch(observer.client, "vici.*.bridge.>")
            log = await watch(observer.client, "vici.*.log.>")
            events: dict[str, Heard] = {}
            logged: dict[str, Heard] = {}
            for node in nodes:
                address = getattr(lab, node).address
                events[node] = await stack.enter_async_context(heard(address, *STATE))
                logged[node] = await stack.enter_async_context(heard(address, "log"))
            async with bridge(lab, nodes, codec):
                await until(lambda: all(up(of(node, bridges_own)) for node in nodes))
                early = {node: len(logged[node]) for node in nodes}
                await whole_life(lab)
                for everything in (*events.values(), *logged.values()):
                    await everything.complete()
                late = {node: len(logged[node]) for node in nodes}
                await until(lambda: len(state) >= sum(map(len, events.values())), 60)
                await until(lambda: not any(unseen(logged[n], early[n], late[n], of(n, log)) for n in nodes), 60)
            await observer.client.flush()
            stream = await kept(lab.nats.url)
            for node in nodes:
                assert Counter(event for event, _ in events[node]) >= AT_LEAST
                assert_same(node, events[node], of(node, state))
                assert_same(node, events[node], of(node, stream, "event."))
                assert_no_gap_in_seq(of(node, stream))
                assert published(of(node, stream, "event.")) == published(of(node, state))
                assert statuses(of(node, stream)) == [("starting", "down"), ("running", "up"), ("stopping", "up")]
                assert_log(logged[node], early[node], late[node], of(node, log))

    run(test(), 150)


def assert_log(logged: Events, early: int, late: int, seen: Seen) -> None:
    """Check that every line arrived once, with its data; charon's order differs between listeners.

    The first `early` lines may precede the registration of the bridge, those after `late` may follow its end.
    """
    assert late - early > 50 * COUNT
    assert not lines(envelope["data"] for _, envelope in seen) - lines(message for _, message in logged)
    assert not unseen(logged, early, late, seen)
    for subject_, envelope in seen:
        assert envelope["event"] == "log"
        assert subject_.split(".")[2:] == ["log", envelope["data"]["group"], envelope["data"]["level"]]
    assert_no_gap_in_seq(sorted(seen, key=lambda one: one[1]["seq"]))


# Values that change with time; all others must be equal in swanctl and the bridge.
RUNNING = {"established", "rekey-time", "reauth-time", "life-time", "install-time", "use-in", "use-out"}


def parse_raw(text: str) -> list[Section]:
    """Read what `swanctl --list-sas --raw` prints: `list-sa event {name {key=value list=[a b] section {}}}` per SA."""
    position = 0

    def section() -> Section:
        nonlocal position
        found: Section = {}
        while text[position] != "}":
            head = re.compile(r" ?([^ ={}\[\]]+)( \{|=\[|=)").match(text, position)
            assert head, text[position : position + 80]
            position = head.end()
            if head[2] == " {":
                found[head[1]] = section()
            elif head[2] == "=[":
                found[head[1]] = items()
            else:
                found[head[1]] = scalar()
        position += 1
        return found

    def items() -> list[str]:
        """Split a list, whose items may contain brackets: `[10.1.0.1/32[tcp/40001] 10.2.0.0/16]`."""
        nonlocal position
        start, depth = position, 1
        while depth:
            depth += {"[": 1, "]": -1}.get(text[position], 0)
            position += 1
        return text[start : position - 1].split()

    def scalar() -> str:
        nonlocal position
        start = position
        while text[position] not in " }":
            position += 1
        return text[start:position]

    messages = []
    for head in re.finditer(r"^list-sa event \{", text, re.MULTILINE):
        position = head.end()
        messages.append(section())
    return messages


def steady(message: Section) -> Section:
    """Return the message without the values that change with time; their keys stay."""
    return {
        key: "runs" if key in RUNNING else steady(value) if isinstance(value, dict) else value
        for key, value in message.items()
    }


def test_list_sas_equals_swanctl(lab: Lab) -> None:
    swanctl = ["swanctl", "--list-sas", "--raw", "--uri", lab.right.address]

    def by_id(messages: Iterable[Section]) -> list[Section]:
        return sorted(map(steady, messages), key=lambda message: int(next(iter(message.values()))["uniqueid"]))

    async def test() -> None:
        names = await sas.up(lab, COUNT)
        await sas.send(lab, names[::2])
        async with observing(lab.nats.url, "nothing") as observer, bridge(lab, ["right"]):
            assert (await served(observer.client, "right"))["daemon"] == "charon"
            subject = "vici.right.cmd.list-sas"
            [whole] = await observer.ask(subject, b"\x80", {"Vici-Collect": "true"})
            done = await asyncio.to_thread(subprocess.run, swanctl, capture_output=True, text=True, timeout=10)
            *parts, end = await observer.ask(subject, b"{}", parts=COUNT + 1)
        assert done.returncode == 0, done.stderr
        printed = by_id(parse_raw(done.stdout))
        assert {name for message in printed for name in message} == set(names)
        children = [child for message in printed for ike in message.values() for child in ike["child-sas"].values()]
        assert [child["bytes-in"] for child in children].count("60") == COUNT // 2
        assert by_id(msgpack.unpackb(whole.data)) == printed
        assert by_id(json.loads(part.data) for part in parts) == printed
        assert end.headers and (end.headers["Status"], end.headers["Vici-Count"]) == ("200", str(COUNT))

    run(test())


def test_bridge_survives_restarts_of_charon_and_nats(lab: Lab) -> None:
    url = lab.nats.url

    async def come_late(log: Path) -> None:
        """The bridge starts first, then NATS, then charon."""
        await until(lambda: "NATS: not connected" in log.read_text() and "charon is not reachable" in log.read_text())
        lab.nats.start()
        await until_kept(url, lambda seen: statuses(seen) == [("starting", "down"), ("running", "down")])
        lab.left.start()
        await until_kept(url, up)
        await sas.up(lab, 3)
        await until_kept(url, lambda seen: len(of("left", seen, "event.ike-updown")) >= 3)

    async def lose_charon() -> None:
        lab.left.kill()
        await until_kept(url, lambda seen: statuses(seen)[-1] == ("running", "down"))
        lab.left.start()
        seen = await until_kept(url, up)
        assert [envelope["event"] for _, envelope in seen[-3:]] == ["status", "gap", "status"]
        gap = seen[-2][1]["data"]
        assert (gap["class"], gap["cause"], gap["count"]) == ("all", "charon was gone", None)
        assert seen[-3][1]["time"] <= gap["until"] <= seen[-1][1]["time"] and gap["since"] < gap["until"]

    async def lose_nats(log: Path) -> None:
        """The stream has every event that a separate listener got from this charon since before its first SA."""
        before = len(await kept(url))
        async with heard(lab.left.address, *STATE) as events:
            names = await sas.up(lab, COUNT)
            async with churn(lab, names):
                await until(lambda: len(events) > 3 * COUNT, 60)
                assert lab.nats.pid
                os.kill(lab.nats.pid, signal.SIGSTOP)  # so that events are in transit when it ends
                hung = len(events)
                await until(lambda: len(events) > hung + COUNT, 60)
                outages = log.read_text().count("NATS: not connected")
                lab.nats.kill()
                killed = len(events)
                await until(lambda: log.read_text().count("NATS: not connected") > outages)
                await until(lambda: len(events) > killed + 4 * COUNT, 60)
                lab.nats.start()
                await until_kept(url, lambda seen: len(seen) > before + killed + 4 * COUNT)
            await events.complete()
            seen = await until_kept(url, lambda seen: len(of("left", seen[before:], "event.")) >= len(events))
        assert_same("left", events, of("left", seen[before:], "event."))
        assert not [envelope for _, envelope in seen[before:] if envelope["event"] == "gap"]

    async def test() -> None:
        lab.left.kill()
        lab.nats.kill()
        async with bridge(lab, ["left"]) as log:
            await come_late(log)
            await lose_charon()
            await lose_nats(log)
            client = await nats.connect(url)
            assert (await served(client, "left"))["daemon"] == "charon"
            await client.close()
        assert_no_gap_in_seq(await kept(url))

    run(test(), 150)
