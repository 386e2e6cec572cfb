"""Alerts, since strongSwan 6.0.3: each on its subject with the documented schema, recorded and live."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from harness import NatsServer, bridge_process, envelopes, observing, run, service, settings, stored, until
from lab import Lab, alerts
from test_on_charon import heard
from test_schema import check

from vicifast import decode
from vicifast.recording import Recording
from vicifast.testing import FakeCharon

SIDES = ("left", "right")
RECORDINGS = Path(__file__).parent.parent / "data" / "6.1.0"
# The alerts that two daemons can be made to raise.
TYPES = frozenset().union(*(way.left | way.right for way in alerts.WAYS.values()))


def assert_published(node: str, raised: list[dict[str, Any]], seen: list[tuple[str, dict[str, Any]]]) -> None:
    """Check that each alert arrived once, in order, on its subject, in a documented envelope."""
    own = [(subject, envelope) for subject, envelope in seen if envelope["node"] == node]
    for _, envelope in own:
        check("alert", envelope)
    assert [envelope["data"] for _, envelope in own] == raised
    assert [subject for subject, _ in own] == [f"vici.{node}.event.alert.{alert['type']}" for alert in raised]


@pytest.mark.parametrize("side", SIDES)
def test_recorded_alerts(nats_server: NatsServer, side: str) -> None:
    recording = Recording.load(RECORDINGS / f"alerts-{side}.recording")
    raised = [decode(packet.message or b"") for packet in recording.events()]
    expected = frozenset().union(*(getattr(way, side) for way in alerts.WAYS.values()))
    assert {str(alert["type"]) for alert in raised} >= expected

    async def test() -> None:
        await nats_server.up()
        async with FakeCharon() as charon, observing(nats_server.url, "vici.*.event.>") as observer:
            charon.on("version", {"daemon": "charon", "version": "6.1.0"})
            async with service(settings(nats_server.url, charon.address, side)):
                await charon.registered("alert")
                await charon.replay(recording)
                seen = await observer.sees(".alert.", len(raised))
            assert_published(side, raised, seen)

    run(test())


def test_structure_of_recorded_alerts() -> None:
    """The guarantees for readers of alerts, and their limits."""
    found = [
        decode(packet.message or b"")
        for side in SIDES
        for packet in Recording.load(RECORDINGS / f"alerts-{side}.recording").events()
    ]
    bare = {alert["type"] for alert in found if "ike-sa" not in alert}
    assert bare == {"invalid-ike-spi", "parse-error-header", "shutdown-signal"}
    sas = [(alert["type"], *item) for alert in found for item in alert.get("ike-sa", {}).items()]
    [(name, absent)] = [(name, sa) for kind, name, sa in sas if kind == "peer-addr-failed"]
    assert (name, absent["state"], absent["remote-host"]) == (alerts.NAME, "CREATED", "%any")
    unnamed = {kind for kind, name, sa in sas if name == "(unnamed)"}
    assert unnamed == {"half-open-timeout", "parse-error-body", "proposal-mismatch-ike", "retransmit-receive"}
    kinds = [kind for kind, _, sa in sas]
    assert kinds[kinds.index("vip-failure") + 1] == "keep-on-child-sa-failure"
    assert not any("child-sas" in sa for _, _, sa in sas)


@pytest.mark.lab(nats=True, since="6.0.3")
def test_two_charons_raise_every_alert() -> None:
    async def test(lab: Lab) -> None:
        async with observing(lab.nats.url, "vici.*.event.alert.>") as observer, AsyncExitStack() as stack:
            raised = {
                side: await stack.enter_async_context(heard(getattr(lab, side).address, "alert")) for side in SIDES
            }
            config = lab.directory / "bridge.toml"
            gateways = [f'[[gateway]]\nnode = "{side}"\nvici = "{getattr(lab, side).address}"\n' for side in SIDES]
            bus = f'[nats]\nservers = ["{lab.nats.url}"]\n[mirror]\nenabled = false\n'
            config.write_text(f'{bus}[spool]\npath = "{lab.directory}/spool"\n{"".join(gateways)}')
            async with bridge_process(config) as log:
                await until(lambda: log.read_text().count("charon is up") == len(SIDES))
                await alerts.raise_all(lab)
                await raised["left"].complete()
                await raised["right"].ended  # it was stopped
                await until(lambda: len(observer.seen()) >= sum(map(len, raised.values())))
            assert {alert["type"] for side in SIDES for _, alert in raised[side]} >= TYPES
            kept = [
                (m.subject, e) for m in await stored(lab.nats.url) for e in envelopes(m.data) if "alert" in m.subject
            ]
            for side in SIDES:
                messages = [alert for _, alert in raised[side]]
                assert_published(side, messages, observer.seen())
                assert_published(side, messages, kept)

    with Lab(nats=True, settings=alerts.SETTINGS) as lab:
        run(test(lab), 120)
