"""Serves `/metrics`, `/healthz` and `/readyz` over HTTP in the event loop of the bridge."""

from __future__ import annotations

from datetime import UTC, datetime

from aiohttp import web
from prometheus_client.exposition import choose_encoder

from ..config.model import parse_listen
from .metrics import registry
from .view import ServiceView

_STOP = 0.5  # seconds for open requests when the bridge stops


class ListenError(Exception):
    """The address of `[http] listen` cannot be bound."""


class HttpServer:
    """The HTTP server; `port` is the bound port, once started."""

    def __init__(self, listen: str, service: ServiceView) -> None:
        self._listen = listen
        self._service = service
        self._registry = registry(service)
        self._runner: web.AppRunner | None = None
        self.port = 0

    async def start(self) -> None:
        """Listen if configured; raises ListenError if the address cannot be bound."""
        if not self._listen:
            return
        app = web.Application()
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=_STOP)
        await self._runner.setup()
        host, port = parse_listen(self._listen)
        try:
            await web.TCPSite(self._runner, host, port).start()
        except OSError as error:
            await self.stop()
            hint = 'choose another address for [http] listen, or "" to disable it'
            raise ListenError(f"http.listen: {self._listen}: {error.strerror}; {hint}") from None
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _metrics(self, request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(self._registry), headers={"Content-Type": content_type})

    async def _healthz(self, request: web.Request) -> web.Response:
        """Liveness: a hung event loop does not reply."""
        return web.json_response({"status": "ok"})

    async def _readyz(self, request: web.Request) -> web.Response:
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
        return web.json_response(answer, status=503 if reasons else 200)


def _iso(time: float) -> str:
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
