"""Every authentication method of NATS, each with a real server that requires it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nkeys
import pytest
from harness import NatsServer, run, running, settings, until
from identities import Key, Operator, Pki
from vicibridge.config.model import Config

Make = Callable[..., NatsServer]


def configured(url: str, options: dict[str, Any]) -> Config:
    return settings(url, nats={**options, "servers": [url]})


async def welcome(config: Config) -> None:
    """The server accepts the connection and messages."""
    async with running(config) as bus:
        connection = await bus.connection()
        await connection.publish("vici.x", b"hello")
        await connection.fence(5)
        assert bus.errors == 0


async def refused(config: Config, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    """The server rejects the connection; that is logged once, without secrets."""
    caplog.clear()
    async with running(config) as bus:
        await until(lambda: reason in caplog.text)
        assert not bus.connected
        assert reason in bus.reason
    assert caplog.text.count(reason) == 1


async def unwelcome(config: Config) -> None:
    """The server rejects the connection, and the server or TLS reports it, whichever is first."""
    async with running(config) as bus:
        await until(lambda: bus.reason != "not connected yet")
        assert not bus.connected


@pytest.mark.parametrize(
    ("options", "server_options"),
    [
        ({"user": "u", "password": "s3cret"}, 'authorization { user: "u", password: "s3cret" }'),
        ({"token": "s3cret"}, 'authorization { token: "s3cret" }'),
    ],
)
def test_password_and_token(
    make_nats_server: Make, caplog: pytest.LogCaptureFixture, options: dict[str, Any], server_options: str
) -> None:
    server = make_nats_server(server_options)

    async def test() -> None:
        await server.up()
        await welcome(configured(server.url, options))
        wrong = {**options, list(options)[-1]: "wr0ng"}
        await refused(configured(server.url, wrong), "Authorization Violation", caplog)
        assert "s3cret" not in caplog.text and "wr0ng" not in caplog.text

    run(test())


def test_nkey(make_nats_server: Make, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    ours, other = Key(nkeys.PREFIX_BYTE_USER), Key(nkeys.PREFIX_BYTE_USER)
    server = make_nats_server(f"authorization {{ users: [ {{ nkey: {ours.public} }} ] }}")

    async def test() -> None:
        await server.up()
        for key, name in ((ours, "ours.nk"), (other, "other.nk")):
            (tmp_path / name).write_bytes(key.seed)
        await welcome(configured(server.url, {"nkey": tmp_path / "ours.nk"}))
        await refused(configured(server.url, {"nkey": tmp_path / "other.nk"}), "Authorization Violation", caplog)
        assert ours.seed.decode() not in caplog.text

    run(test())


def test_credentials_file(make_nats_server: Make, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """JWTs with an operator, an account and users, as nsc creates them."""
    operator, stranger = Operator(), Operator()
    server = make_nats_server(operator.server_options())
    good, bad = tmp_path / "good.creds", tmp_path / "bad.creds"

    async def test() -> None:
        await server.up()
        operator.write_credentials(good)
        stranger.write_credentials(bad)
        await welcome(configured(server.url, {"creds": good}))
        good.write_bytes(good.read_bytes().replace(b"\n", b"\r\n"))  # as an editor on Windows writes it
        await welcome(configured(server.url, {"creds": good}))
        await refused(configured(server.url, {"creds": bad}), "Authorization Violation", caplog)
        assert stranger.user.seed.decode() not in caplog.text

    run(test())


def test_tls(make_nats_server: Make, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    pki = Pki(tmp_path)
    server = make_nats_server(pki.server_options())
    url = server.url.replace("nats://", "tls://")
    good = {"tls_ca": pki.ca, "tls_hostname": "nats.example"}

    async def test() -> None:
        await server.up()
        await welcome(configured(url, good))
        await welcome(configured(server.url, good))  # the server requires it
        await refused(configured(url, {**good, "tls_ca": pki.other_ca}), "the server's certificate is rejected", caplog)
        await refused(
            configured(url, {**good, "tls_hostname": "other.example"}), "the server's certificate is rejected", caplog
        )
        await refused(configured(url, {"tls_ca": pki.ca}), "the server's certificate is rejected", caplog)

    run(test())


def test_hung_server_is_detected_over_tls(make_nats_server: Make, tmp_path: Path) -> None:
    pki = Pki(tmp_path)
    server = make_nats_server(pki.server_options())

    async def test() -> None:
        await server.up()
        config = configured(server.url, {"tls_ca": pki.ca, "tls_hostname": "nats.example"})
        async with running(config) as bus:
            connection = await bus.connection()
            server.pause()
            assert "not respond" in await connection.lost()
            server.resume()
            await (await bus.connection()).fence(5)

    try:
        run(test())
    finally:
        server.resume()


def test_client_certificate(make_nats_server: Make, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """The server maps the client certificate to a user."""
    pki = Pki(tmp_path)
    server = make_nats_server(
        pki.server_options(f', ca_file: "{pki.ca}", verify_and_map: true')
        + '\nauthorization { users: [ { user: "gw1@example" } ] }'
    )
    good = {"tls_ca": pki.ca, "tls_hostname": "nats.example", "tls_cert": pki.cert, "tls_key": pki.key}

    async def test() -> None:
        await server.up()
        await welcome(configured(server.url, good))
        for wrong in ({"tls_cert": pki.other_cert, "tls_key": pki.other_key}, {"tls_cert": None, "tls_key": None}):
            await unwelcome(configured(server.url, {**good, **wrong}))

    run(test())
