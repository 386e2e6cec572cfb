"""Serves `/metrics`, `/healthz` and `/readyz` over HTTP.

The standard library's server parses requests in a thread each; responses are made in the event loop of the bridge.
"""

from __future__ import annotations

import asyncio
import json
import socket
from datetime import UTC, datetime
from functools import cached_property
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, Any, NamedTuple

from ..config.model import parse_listen
from .view import ServiceView

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

_LONGEST = 10.0  # seconds for a request and its response
_MOST = 16  # connections at a time


class ListenError(Exception):
    """The address of `[http] listen` cannot be bound."""


class _Response(NamedTuple):
    body: bytes
    status: HTTPStatus = HTTPStatus.OK
    type: str = "text/plain; charset=utf-8"


class HttpServer:
    """The HTTP server, for one request per connection; `port` is the bound port, once started."""

    def __init__(self, listen: str, service: ServiceView) -> None:
        self._listen = listen
        self._service = service
        self._server: _Server | None = None
        self.port = 0

    async def start(self) -> None:
        """Listen if configured; raises ListenError if the address cannot be bound."""
        if not self._listen:
            return
        try:
            self._server = _Server(parse_listen(self._listen), self)
        except OSError as error:
            hint = 'choose another address for [http] listen, or "" to disable it'
            raise ListenError(f"http.listen: {self._listen}: {error.strerror}; {hint}") from None
        self.port = self._server.socket.getsockname()[1]
        asyncio.get_running_loop().add_reader(self._server, self._server.handle_request)

    def stop(self) -> None:
        """Stop listening, and end open connections."""
        if self._server is not None:
            asyncio.get_running_loop().remove_reader(self._server)
            self._server.server_close()
            self._server = None

    async def respond(self, path: str, accept: str) -> _Response:
        """Return the response to a GET of this path; `accept` is the header of this name."""
        match path:
            case "/metrics":
                from prometheus_client.exposition import choose_encoder

                encode, content_type = choose_encoder(accept)
                return _Response(encode(self._registry), type=content_type)
            case "/healthz":  # a hung event loop does not reply
                return _json({"status": "ok"})
            case "/readyz":
                return self._readyz()
        return _Response(b"404 Not Found\n", HTTPStatus.NOT_FOUND)

    @cached_property
    def _registry(self) -> CollectorRegistry:
        """Its packages are loaded by the first scrape: they take 2 MB."""
        from .metrics import registry

        return registry(self._service)

    def _readyz(self) -> _Response:
        """Readiness: 200 if every charon is connected and JetStream accepts its events and mirror; else 503.

        `reasons` says why not; `credentials_expire` has the expiry of the NATS credentials by their key in `[nats]`.
        """
        reasons = self._service.reasons()
        gateways = self._service.gateways
        answer = {
            "ready": not reasons,
            "reasons": reasons,
            "nats": self._service.bus.connected,
            "charon": {gateway.node: gateway.reader.up for gateway in gateways},
            "credentials_expire": {kind: _iso(time) for kind, time in self._service.expires().items()},
            "events": {gateway.node: not gateway.state.trouble for gateway in gateways},
            "mirror": {gateway.node: gateway.mirroring.buckets.complete for gateway in gateways if gateway.mirroring},
        }
        return _json(answer, HTTPStatus.SERVICE_UNAVAILABLE if reasons else HTTPStatus.OK)


class _Server(ThreadingMixIn, TCPServer):
    """Listens in the event loop that creates it, which calls `handle_request`; each connection gets a thread."""

    allow_reuse_address = True
    daemon_threads = True  # a client that hangs does not delay the end of the process
    timeout = 0  # of handle_request: the event loop waits for connections

    def __init__(self, address: tuple[str, int], pages: HttpServer) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.loop = asyncio.get_running_loop()
        self.pages = pages
        self._open: dict[socket.socket, asyncio.TimerHandle] = {}
        super().__init__(address, _Handler)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Accept a connection, in place of the oldest of too many: idle ones must not lock out a health check."""
        if len(self._open) >= _MOST:
            oldest = next(iter(self._open))
            _end(oldest)
            self._forget(oldest)
        return True

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open[request] = self.loop.call_later(_LONGEST, _end, request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """End a connection in its thread."""
        super().shutdown_request(request)
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._forget, request)

    def _forget(self, request: socket.socket) -> None:
        if timer := self._open.pop(request, None):
            timer.cancel()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """The client has gone, or the bridge is stopping."""

    def server_close(self) -> None:
        super().server_close()
        for request in list(self._open):
            _end(request)
            self._forget(request)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "vicibridge"
    sys_version = ""

    def do_GET(self) -> None:
        coroutine = self.server.pages.respond(self.path.partition("?")[0], self.headers.get("Accept", ""))
        response = asyncio.run_coroutine_threadsafe(coroutine, self.server.loop).result(_LONGEST)
        self.send_response(response.status)
        self.send_header("Content-Type", response.type)
        self.send_header("Content-Length", str(len(response.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Access is not logged."""


def _end(request: socket.socket) -> None:
    """Wake the thread of a connection: neither a read nor a write waits any longer."""
    try:
        request.shutdown(socket.SHUT_RDWR)
    except OSError:  # the thread or the client was first
        pass


def _json(content: object, status: HTTPStatus = HTTPStatus.OK) -> _Response:
    return _Response(json.dumps(content).encode(), status, "application/json; charset=utf-8")


def _iso(time: float) -> str:
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
