"""Credentials: read again for each connection and on SIGHUP, validated, and never part of an error."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import subprocess
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from harness import NatsServer, run, running, service, settings, until, up
from identities import Operator, Pki
from test_http import fetch
from vicibridge.bus.connection import NatsConnection
from vicibridge.bus.credentials import CredentialsError, read_credentials
from vicibridge.bus.nats_server import free_port
from vicibridge.client import Fleet, Unavailable
from vicibridge.config.file import adopt
from vicibridge.config.model import Config, NatsConfig
from vicibridge.contract.nats_settings import NatsSettings

from vicifast.testing import FakeCharon

Make = Callable[..., NatsServer]


class Log:
    """The log of a bridge in this process, which replaces the handlers of pytest on a reload."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd
        self._text = ""

    @property
    def text(self) -> str:
        self._text += self._capfd.readouterr().err
        return self._text


@pytest.fixture
def log(capfd: pytest.CaptureFixture[str]) -> Log:
    return Log(capfd)


def refusal(key: str, path: Path, **more: Path) -> str:
    """Return the error about a credential."""
    with pytest.raises(CredentialsError) as wrong:
        read_credentials(NatsSettings(servers=["tls://127.0.0.1:4222"], **{key: path}, **more), "tls://127.0.0.1:4222")
    return str(wrong.value)


def test_invalid_files(tmp_path: Path) -> None:
    pki, operator, path = Pki(tmp_path), Operator(), tmp_path / "file"
    operator.write_credentials(path)
    good = path.read_text()
    seed = operator.user.seed.decode()
    for text, wrong in (
        ("", "not a NATS credentials file: it contains no user JWT"),
        (good.partition("---END NATS")[0], "not a NATS credentials file: it contains no NKey seed"),
        (good.replace(seed, seed[:-4]), "it contains no valid NKey seed"),
        (good.replace(seed, Operator().user.seed.decode()), "seed and JWT belong to different users"),
        (good.replace(".", "-"), "invalid JWT"),
        (good.replace(".", ".x"), "invalid JWT"),
    ):
        path.write_text(text)
        assert refusal("creds", path) == f"creds: {path}: {wrong}"
    assert refusal("nkey", path).startswith(f"nkey: {path}: it contains no valid NKey seed")
    path.write_text("no certificate")
    assert refusal("tls_ca", path) == f"tls_ca: {path}: it contains no PEM certificate"
    assert refusal("tls_cert", path, tls_key=pki.key) == f"tls_cert: {path}: it contains no PEM certificate"
    assert refusal("tls_key", path, tls_cert=pki.cert) == f"tls_key: {path}: it contains no PEM private key"
    other = f"tls_key: {pki.other_key}: it does not match the certificate in {pki.cert}"
    assert refusal("tls_key", pki.other_key, tls_cert=pki.cert) == other
    subprocess.run(["openssl", "pkey", "-in", pki.key, "-aes256", "-passout", "pass:x", "-out", path], check=True)
    encrypted = f"tls_key: {path}: it is encrypted; store it without a passphrase"
    assert refusal("tls_key", path, tls_cert=pki.cert) == encrypted


def test_files_removed_after_the_start(tmp_path: Path) -> None:
    pki, path = Pki(tmp_path), tmp_path / "file"
    for key, more in (("creds", {}), ("nkey", {}), ("tls_ca", {}), ("tls_key", {"tls_cert": pki.cert})):
        path.touch()
        nats = NatsSettings(servers=["tls://127.0.0.1:4222"], **{key: path}, **more)
        path.unlink()
        with pytest.raises(CredentialsError, match=f"^{key}: {path}: No such file or directory$"):
            read_credentials(nats, "tls://127.0.0.1:4222")


def test_expiry(tmp_path: Path) -> None:
    pki, operator = Pki(tmp_path), Operator()
    operator.write_credentials(tmp_path / "x.creds", 500)
    pki.renew(1000)
    files = {"tls_ca": pki.ca, "tls_cert": pki.cert, "tls_key": pki.key, "creds": tmp_path / "x.creds"}
    expires = read_credentials(NatsSettings(servers=["nats://h:1"], **files), "nats://h:1").expires
    assert abs(expires["creds"] - time.time() - 500) < 60 and abs(expires["tls_cert"] - time.time() - 1000) < 60
    [authority] = ssl.create_default_context(cafile=pki.ca).get_ca_certs()
    assert expires["tls_ca"] == ssl.cert_time_to_seconds(str(authority["notAfter"]))
    operator.write_credentials(tmp_path / "x.creds")  # without an expiry
    assert "creds" not in read_credentials(NatsSettings(servers=["nats://h:1"], **files), "nats://h:1").expires


@pytest.mark.parametrize(
    ("given", "server_options"),
    [
        ("us%40er:p%2Fw%3A%25", 'authorization { user: "us@er", password: "p/w:%" }'),
        ("t%2Fok%40en", 'authorization { token: "t/ok@en" }'),
    ],
)
def test_percent_encoding_in_server_addresses(
    make_nats_server: Make, caplog: pytest.LogCaptureFixture, given: str, server_options: str
) -> None:
    server = make_nats_server(server_options)
    url = server.url.replace("//", f"//{given}@")

    async def test() -> None:
        await server.up()
        async with running(settings(url)) as bus:
            await (await bus.connection()).fence(5)
        async with Fleet(url) as fleet:
            with pytest.raises(Unavailable):
                await fleet.node("gw1").version()
        async with running(settings(url.replace("%", "%25"))) as bus:  # each % is literal, so it is another password
            await until(lambda: "Authorization Violation" in bus.reason)

    run(test())
    assert given not in caplog.text and "p/w" not in caplog.text and "ok@en" not in caplog.text


def test_server_address_overrides_the_configuration() -> None:
    nats = NatsSettings(servers=["nats://a:b@h:1"], user="u", password="p")
    named = read_credentials(nats, "nats://a:b@h:1").options
    assert (named["user"], named["password"]) == ("a", "b")
    other = read_credentials(nats, "nats://h:2").options
    assert (other["user"], other["password"]) == ("u", "p")


class TlsFirst(NatsServer):
    """A server that sends nothing before TLS."""

    def _ready(self) -> bool:
        return b"Server is ready" in self.log.read_bytes()


@pytest.mark.usefixtures("short_waits")
@pytest.mark.parametrize("first", [True, False])
def test_tls_first(tmp_path: Path, caplog: pytest.LogCaptureFixture, first: bool) -> None:
    """If client and server differ, the error names the setting."""
    pki = Pki(tmp_path)
    server = TlsFirst(tmp_path, more=pki.server_options(", handshake_first: true, timeout: 1" if first else ""))
    trust: dict[str, Any] = {"tls_ca": pki.ca, "tls_hostname": "nats.example"}
    hint = "set tls_first in [nats] for a server with" if first else "unset tls_first in [nats] for a server without"

    async def test() -> None:
        await server.up()
        async with running(settings(server.url, nats={**trust, "tls_first": first})) as bus:
            await (await bus.connection()).fence(5)
        async with Fleet(NatsSettings(servers=[server.url], **trust, tls_first=first)) as fleet:
            with pytest.raises(Unavailable):
                await fleet.node("gw1").version()
        async with running(settings(server.url, nats={**trust, "tls_first": not first})) as bus:
            await until(lambda: bus.reason.endswith(f"{hint} handshake_first in its tls"))

    try:
        run(test())
    finally:
        server.kill()


def test_server_without_tls(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        config = settings(nats_server.url.replace("nats:", "tls:"), nats={"tls_first": True})
        async with running(config) as bus:
            await until(lambda: bus.reason == "the server has no TLS: unset tls_first in [nats]")

    run(test())


def test_data_received_before_tls_is_discarded(tmp_path: Path) -> None:
    """Otherwise an attacker on the path could add data that appears to come over TLS."""
    pki = Pki(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pki.server)
    info = b'INFO {"server_id":"x","version":"2.11.0","max_payload":1048576,"headers":true,"tls_required":true}\r\n'

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(info + b"-ERR 'added by an attacker'\r\n")
        await writer.start_tls(context)
        while line := await reader.readline():
            if line.startswith(b"PING"):
                writer.write(b"PONG\r\n")
        writer.close()

    async def test() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        url = f"tls://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with running(settings(url, nats={"tls_ca": pki.ca, "tls_hostname": "nats.example"})) as bus:
            await (await bus.connection()).fence(5)
        server.close()

    run(test())


def test_end_of_a_tls_connection_logs_no_warning(
    make_nats_server: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pki = Pki(tmp_path)
    server = make_nats_server(pki.server_options())
    trust = {"tls_ca": pki.ca, "tls_hostname": "nats.example"}

    async def test() -> None:
        await server.up()
        async with running(settings(server.url, nats=trust)) as bus:
            connection = await bus.connection()
            await asyncio.to_thread(server.stop)
            await connection.lost()
            await server.up()
            await bus.connection()
        async with Fleet(NatsSettings(servers=[server.url], **trust)) as fleet:
            assert await fleet.nodes() == []

    run(test())
    assert not [record for record in caplog.records if record.name == "asyncio"]


async def mutual(make_nats_server: Make, pki: Pki) -> NatsServer:
    """Start a server that requires client certificates."""
    server = make_nats_server(pki.server_options(f', ca_file: "{pki.ca}", verify: true'))
    await server.up()
    return server


def files_of(pki: Pki) -> dict[str, Any]:
    return {"tls_ca": pki.ca, "tls_cert": pki.cert, "tls_key": pki.key, "tls_hostname": "nats.example"}


def expiry(connection: NatsConnection) -> float:
    return connection.credentials.expires["tls_cert"]


def reports(url: str, reason: str, **credentials: Any) -> Coroutine[Any, Any, None]:
    """Wait until a connection with `credentials` fails with `reason`, a regular expression."""

    async def test() -> None:
        async with running(settings(url, nats=credentials)) as bus:
            try:
                await until(lambda: re.fullmatch(reason, bus.reason))
            except TimeoutError:
                raise AssertionError(bus.reason) from None

    return test()


WHEN = r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ"


def test_tls_errors_name_cause_and_key(make_nats_server: Make, tmp_path: Path) -> None:
    pki = Pki(tmp_path)
    ours = files_of(pki)

    async def test() -> None:
        url = (await mutual(make_nats_server, pki)).url
        without = {key: ours[key] for key in ("tls_ca", "tls_hostname")}
        await reports(url, "the server requires a client certificate: set tls_cert and tls_key", **without)
        unknown = {**ours, "tls_cert": pki.other_cert, "tls_key": pki.other_key}
        await reports(url, "the server rejects the client certificate: its issuer is unknown", **unknown)
        trust = "the server's certificate is rejected: unable to get local issuer certificate: set tls_ca to its CA"
        await reports(url, trust, **{**ours, "tls_ca": pki.other_ca})
        name = ".* mismatch, certificate is not valid for .*: set tls_hostname to a name in the certificate"
        await reports(url, name, **{**ours, "tls_hostname": None})
        await reports(url, name, **{**ours, "tls_hostname": "elsewhere.example"})
        pki.renew(-60)
        expired = "the server rejects the client certificate: it has expired or is not valid yet"
        await reports(url, f"{expired}; tls_cert expired at {WHEN}", **ours)

    run(test(), 60)


def test_rejected_credentials_that_have_expired(make_nats_server: Make, tmp_path: Path) -> None:
    operator, path = Operator(), tmp_path / "x.creds"
    server = make_nats_server(operator.server_options())
    operator.write_credentials(path, -60)

    async def test() -> None:
        await server.up()
        rejected = "the server rejects the credentials: Authorization Violation"
        await reports(server.url, f"{rejected}; creds expired at {WHEN}", creds=path)
        Operator().write_credentials(path)
        await reports(server.url, rejected, creds=path)

    run(test())


def test_expired_certificate_is_replaced_from_its_file(
    make_nats_server: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pki = Pki(tmp_path)

    async def test() -> None:
        server = await mutual(make_nats_server, pki)
        pki.renew(seconds=-60)
        async with running(settings(server.url, nats=files_of(pki))) as bus:
            await until(lambda: "certificate" in bus.reason)  # "expired", as the server says it
            pki.renew()
            await (await bus.connection()).fence(5)
            pki.cert.write_text("half")
            server.kill()
            await server.up()
            await until(lambda: "tls_cert" in bus.reason)
            assert f"not connected: tls_cert: {pki.cert}: it contains no PEM certificate; retrying" in caplog.text
            pki.renew(7200)
            connection = await bus.connection()
            await connection.fence(5)
            assert expiry(connection) - time.time() > 3600
            assert bus.expires == connection.credentials.expires

    run(test())


def test_sighup_loads_new_certificates_and_keeps_working_ones(
    make_nats_server: Make, tmp_path: Path, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VICIBRIDGE_HTTP__LISTEN", "127.0.0.1:0")
    pki = Pki(tmp_path)

    def logged(text: str, times: int = 1) -> bool:
        return log.text.count(text) == times

    async def test() -> None:
        server = await mutual(make_nats_server, pki)
        async with FakeCharon() as charon, service(settings(server.url, charon.address, nats=files_of(pki))) as bridge:
            await up(bridge)
            first = await bridge.bus.connection()
            bridge.reload(bridge.settings)
            await until(lambda: logged("credentials reloaded, unchanged"))
            assert await bridge.bus.connection() is first

            pki.cert.write_text("half")
            bridge.reload(bridge.settings)
            kept = "keeping the connection, because the new servers or credentials fail: "
            await until(lambda: logged(f"{kept}tls_cert"))
            pki.renew(-60)
            bridge.reload(bridge.settings)
            await until(lambda: logged(kept, 2))
            assert await bridge.bus.connection() is first and bridge.bus.connects == 1

            pki.renew(7200)
            bridge.reload(bridge.settings)
            assert "the credentials were renewed" in await first.lost()
            second = await bridge.bus.connection()
            await second.fence(5)
            assert expiry(second) > expiry(first) and bridge.bus.connects == 2
            name = 'vicibridge_nats_credential_expiration_timestamp_seconds{kind="tls_cert"} '
            [line] = [line for line in (await fetch(bridge, "/metrics"))[1].splitlines() if line.startswith(name)]
            assert float(line.removeprefix(name)) == expiry(second)
            ready = json.loads((await fetch(bridge, "/readyz"))[1])
            expected = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(expiry(second)))
            assert ready["credentials_expire"]["tls_cert"] == expected

    run(test())


def test_sighup_applies_a_new_password(make_nats_server: Make) -> None:
    users = "authorization { users: [ { user: a, password: one }, { user: b, password: two } ] }"
    server = make_nats_server(users)

    async def test() -> None:
        await server.up()
        old, new = (
            settings(server.url, nats={"user": user, "password": password})
            for user, password in (("a", "one"), ("b", "two"))
        )
        async with service(old) as bridge:
            first = await bridge.bus.connection()
            bridge.reload(new)
            await first.lost()
            assert (await bridge.bus.connection()).credentials.options["user"] == "b"

    run(test())


def with_password(server: NatsServer, password: str) -> str:
    """Return the server's address with a user and password in it."""
    return server.url.replace("//", f"//a:{password}@")


@pytest.mark.parametrize("connected", [True, False])
def test_sighup_applies_a_new_password_in_a_server_address(make_nats_server: Make, log: Log, connected: bool) -> None:
    """Before or after the server has closed the connection because its password changed."""
    server = make_nats_server("authorization { user: a, password: one }")

    async def test() -> None:
        await server.up()
        async with service(settings(with_password(server, "one"))) as bridge:
            first = await bridge.bus.connection()
            server.configure("authorization { user: a, password: two }")
            if not connected:
                server.reload()
                await until(lambda: "Authorization Violation" in bridge.bus.reason)
            bridge.reload(settings(with_password(server, "two")))
            if connected:
                await until(lambda: "keeping the connection" in log.text)
                assert await bridge.bus.connection() is first
                server.reload()
            await first.lost()
            second = await bridge.bus.connection()
            await second.fence(5)
            assert second.credentials.options["password"] == "two"
            bridge.reload(bridge.settings)
            await until(lambda: "credentials reloaded, unchanged" in log.text)
            assert await bridge.bus.connection() is second

    run(test())
    assert "applied: nats.servers" in log.text and "needs a restart" not in log.text
    assert "a:one" not in log.text and "a:two" not in log.text


def test_sighup_applies_other_servers(make_nats_server: Make, log: Log) -> None:
    """The bridge keeps a server that is still listed; otherwise it connects to the first one listed that accepts."""
    users = "authorization { users: [ { user: a, password: one }, { user: b, password: two } ] }"
    one, two = make_nats_server(users), make_nats_server(users)

    async def test() -> None:
        await one.up()
        async with service(settings(with_password(one, "one"))) as bridge:
            first = await bridge.bus.connection()
            bridge.reload(settings(with_password(two, "one")))  # which is not running
            await until(lambda: "keeping the connection" in log.text)
            assert await bridge.bus.connection() is first

            await two.up()
            both = [with_password(two, "one"), with_password(one, "one")]
            bridge.reload(settings("", nats={"servers": both}))
            await until(lambda: "credentials reloaded, unchanged" in log.text)
            assert await bridge.bus.connection() is first

            away = f"nats://a:one@127.0.0.1:{free_port()}"
            bridge.reload(settings("", nats={"servers": [away, with_password(two, "one")]}))
            await first.lost()
            second = await bridge.bus.connection()
            assert second.url == with_password(two, "one")
            two.kill()
            await second.lost()
            await until(lambda: bridge.bus.reason and not bridge.bus.connected)
            bridge.reload(settings(with_password(one, "one")))  # while not connected
            assert (await bridge.bus.connection()).url == with_password(one, "one")

    run(test())


def test_change_between_own_and_embedded_server_needs_a_restart(tmp_path: Path) -> None:
    """Nothing of `[nats]` is applied: the credentials are for the other server."""
    operator = Operator()
    operator.write_credentials(tmp_path / "x.creds")
    embedded, own = Config(nats=NatsConfig()), settings("nats://a:b@h:1", nats={"creds": tmp_path / "x.creds"})
    for old, new in ((embedded, own), (own, embedded)):
        adopted, live, restart = adopt(old, new)
        assert adopted.nats == old.nats
        assert not [key for key in live if key.startswith("nats.")]
        assert {"nats.servers", "nats.creds"} <= set(restart)


def test_renewing_credentials_loses_no_event(make_nats_server: Make, tmp_path: Path) -> None:
    pki = Pki(tmp_path)

    async def test() -> None:
        server = await mutual(make_nats_server, pki)
        ours = {**files_of(pki), "servers": [server.url]}
        async with FakeCharon() as charon, service(settings(server.url, charon.address, nats=ours)) as bridge:
            await up(bridge)
            sent = 0
            for number in range(5):
                connection = await bridge.bus.connection()
                pki.renew(3600 + number)
                bridge.reload(bridge.settings)
                while connection.alive:
                    sent += 1
                    charon.emit("ike-updown", {"up": "yes", "gw": {"uniqueid": str(sent)}})
                    await asyncio.sleep(0.001)
            await until(lambda: bridge.gateways[0].reader.events["ike-updown", "up"] == sent)
            await until(lambda: not bridge.gateways[0].backlog.waiting)
            seen: list[int] = []
            async with (
                Fleet(NatsSettings(**ours)) as fleet,
                fleet.subscribe(start="first", events=["ike-updown"]) as events,
            ):
                seen = [int((await anext(events)).data["gw"]["uniqueid"]) for _ in range(sent)]
            assert seen == list(range(1, sent + 1))
            assert bridge.bus.connects == 6

    run(test(), 60)
