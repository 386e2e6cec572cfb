"""Serves `/metrics`, `/healthz` and `/readyz` over HTTP in the event loop of the bridge."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from http import HTTPStatus
from typing import NamedTuple

from prometheus_client.exposition import choose_encoder

from ..config.model import parse_listen
from .metrics import registry
from .view import ServiceView

_LARGEST = 16384  # bytes of a request
_LONGEST = 10.0  # seconds for a request and its response
_STOP = 0.5  # seconds for open requests when the bridge stops


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
        self._registry = registry(service)
        self._server: asyncio.Server | None = None
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self.port = 0

    async def start(self) -> None:
        """Listen if configured; raises ListenError if the address cannot be bound."""
        if not self._listen:
            return
        host, port = parse_listen(self._listen)
        try:
            self._server = await asyncio.start_server(self._serve, host, port, limit=_LARGEST)
        except OSError as error:
            hint = 'choose another address for [http] listen, or "" to disable it'
            raise ListenError(f"http.listen: {self._listen}: {error.strerror}; {hint}") from None
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._open:
            await asyncio.wait(self._open, timeout=_STOP)
        for writer in self._open.values():
            writer.transport.abort()
        if self._open:
            await asyncio.wait(self._open)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open[task] = writer
        try:
            async with asyncio.timeout(_LONGEST):
                writer.write(await self._answer(reader))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (TimeoutError, asyncio.IncompleteReadError, OSError):
            writer.transport.abort()
        finally:
            del self._open[task]

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        """Read a request and return the whole response."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return _encoded(_failed(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE))
        line, *lines = head.decode("latin-1").split("\r\n")
        try:
            method, target, _ = line.split(" ")
        except ValueError:
            return _encoded(_failed(HTTPStatus.BAD_REQUEST))
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if method not in ("GET", "HEAD"):
            return _encoded(_failed(HTTPStatus.METHOD_NOT_ALLOWED), "Allow: GET, HEAD\r\n")
        return _encoded(self._get(target.partition("?")[0], headers.get("accept", "")), body=method == "GET")

    def _get(self, path: str, accept: str) -> _Response:
        match path:
            case "/metrics":
                encode, content_type = choose_encoder(accept)
                return _Response(encode(self._registry), type=content_type)
            case "/healthz":  # a hung event loop does not reply
                return _json({"status": "ok"})
            case "/readyz":
                return self._readyz()
        return _failed(HTTPStatus.NOT_FOUND)

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


def _json(content: object, status: HTTPStatus = HTTPStatus.OK) -> _Response:
    return _Response(json.dumps(content).encode(), status, "application/json; charset=utf-8")


def _failed(status: HTTPStatus) -> _Response:
    return _Response(f"{status.value} {status.phrase}\n".encode(), status)


def _encoded(response: _Response, header: str = "", *, body: bool = True) -> bytes:
    head = (
        f"HTTP/1.1 {response.status.value} {response.status.phrase}\r\nContent-Type: {response.type}\r\n"
        f"Content-Length: {len(response.body)}\r\nConnection: close\r\n{header}\r\n"
    )
    return head.encode("latin-1") + (response.body if body else b"")


def _iso(time: float) -> str:
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
