"""The service: one connection to NATS and all gateways, started together and stopped in order."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Mapping

from .bus.embedded_server import EmbeddedServer
from .bus.supervisor import ConnectionSupervisor
from .commands.discovery import DiscoveryResponder
from .config.file import SettingsProblem, adopt
from .config.model import Config
from .gateway import Gateway
from .ops import logsetup
from .ops.http import HttpServer
from .ops.systemd import Systemd
from .ops.view import Pipeline
from .ops.watchdog import Lag, Watchdog

_logger = logging.getLogger(__name__)

_COMMANDS_END = 2.0  # seconds for running requests at stop
_READING_END = 4.0  # for charon to confirm that no events are registered
_FLUSH = 5.0  # for pending events to reach NATS
_SAVE = 3.0  # to save the rest to the spool
_DRAIN = 3.0


class Service:
    """Everything that `vicibridge run` runs; raises NatsServerError if the embedded nats-server cannot be started."""

    def __init__(self, settings: Config) -> None:
        self.settings = settings
        self.bus: ConnectionSupervisor = ConnectionSupervisor(settings.nats.settings())
        self.embedded = EmbeddedServer(settings) if settings.nats.servers is None else None
        self.gateways: list[Gateway] = [Gateway(settings, gateway, self.bus) for gateway in settings.gateway]
        self.pipelines = [
            Pipeline(gateway.node, kind, events, Lag(events.counts))
            for gateway in self.gateways
            for kind, events in (("state", gateway.backlog), ("log", gateway.log))
        ]
        self.mirrorings = [gateway.mirroring for gateway in self.gateways if gateway.mirroring]
        self.discovery = DiscoveryResponder(self.bus, [gateway.commands.instance for gateway in self.gateways])
        self.systemd = Systemd()
        self.watchdog = Watchdog([pipeline.lag for pipeline in self.pipelines], self.systemd, self.status)
        self.web = HttpServer(settings.http.listen, self)
        self._stopping = False

    async def run(self, stop: asyncio.Event) -> None:
        """Run until `stop` is set, then drain. An unexpected exception is raised after everything has stopped.

        Raises ListenError before anything is started.
        """
        await self.web.start()
        reading = [asyncio.create_task(gateway.run()) for gateway in self.gateways]
        publishing = [
            asyncio.create_task(part.run())
            for gateway in self.gateways
            for part in (gateway.state, gateway.log, gateway.backlog)
        ]
        serving = [asyncio.create_task(gateway.commands.run()) for gateway in self.gateways]
        mirroring = [asyncio.create_task(mirroring.run()) for mirroring in self.mirrorings]
        others = [asyncio.create_task(part.run()) for part in (self.bus, self.discovery, self.watchdog)]
        if self.embedded:
            others.append(asyncio.create_task(self.embedded.run()))
        everything = [*reading, *publishing, *serving, *mirroring, *others]
        stopped = asyncio.create_task(stop.wait())
        self.systemd.ready()
        try:
            await asyncio.wait([stopped, *everything], return_when=asyncio.FIRST_COMPLETED)
            await self._drain(reading)
        finally:
            for task in (stopped, *everything):
                task.cancel()
            results = await asyncio.gather(*everything, return_exceptions=True)
            self.web.stop()
            if self.embedded:
                await self.embedded.stop()
        for result in results:
            if isinstance(result, Exception):
                raise result

    def reasons(self) -> list[str]:
        """Return one line per reason why events or the mirror do not reach JetStream; empty if they do."""
        reasons = ["the bridge is stopping"] if self._stopping else []
        if not self.bus.connected:
            reasons.append(f"NATS: {self.bus.reason}")
        for gateway in self.gateways:
            if not gateway.reader.up:
                reasons.append(f"{gateway.node}: charon: {gateway.reader.reason}")
            if self.bus.connected and gateway.state.trouble:
                reasons.append(f"{gateway.node}: events: {gateway.state.trouble}")
            if self.bus.connected and gateway.mirroring:
                troubles = gateway.mirroring.buckets.troubles()
                reasons += [f"{gateway.node}: mirror: {trouble}" for trouble in troubles]
        return reasons

    def expires(self) -> Mapping[str, float]:
        """Return when the credentials in use expire, in seconds since the epoch, by their key in `[nats]`."""
        return {**self.bus.expires, **(self.embedded.expires if self.embedded else {})}

    def status(self) -> str:
        """Return the status of the service in one line."""
        up = sum(gateway.reader.up for gateway in self.gateways)
        waiting = sum(gateway.backlog.waiting + gateway.log.in_flight for gateway in self.gateways)
        nats = "connected" if self.bus.connected else "not connected"
        return f"NATS {nats}, charon up at {up} of {len(self.gateways)}, {waiting} events pending"

    def reload(self, new: Config) -> None:
        """Apply what may change at run time, log changes that need a restart, and reload credentials."""
        self.settings, live, restart = adopt(self.settings, new)
        logsetup.set_up(self.settings.logging)
        self.bus.reload(self.settings.nats.settings(), reconnect=self.embedded is None)
        if self.embedded:
            self.embedded.reload(self.settings)
        for gateway in self.gateways:
            gateway.reload(self.settings)
        _logger.info("configuration: %s", f"applied: {', '.join(live)}" if live else "no change to apply")
        if restart:
            _logger.warning("configuration: changed, but needs a restart: %s", ", ".join(restart))

    async def _drain(self, reading: list[asyncio.Task[None]]) -> None:
        _logger.info("stopping")
        self._stopping = True
        self.systemd.stopping()
        await asyncio.gather(
            self.discovery.stop(), *(gateway.commands.stop(_COMMANDS_END) for gateway in self.gateways)
        )
        stops = [asyncio.create_task(gateway.reader.stop()) for gateway in self.gateways]
        _, late = await asyncio.wait([*stops, *reading], timeout=_READING_END)
        if late:
            _logger.warning("charon has not confirmed the end of the event registrations")
        flushes = [asyncio.create_task(pipeline.events.flush()) for pipeline in self.pipelines]
        flushes += [asyncio.create_task(mirroring.stop()) for mirroring in self.mirrorings]
        await asyncio.wait(flushes, timeout=_FLUSH if self.bus.connected else 0)
        for flush in flushes:
            flush.cancel()
        for gateway in self.gateways:
            gateway.log.give_up()
        closes = [asyncio.create_task(gateway.backlog.close()) for gateway in self.gateways]
        await asyncio.wait(closes, timeout=_SAVE)
        for gateway in self.gateways:
            if left := gateway.backlog.in_flight:
                _logger.warning("%s: %d events have not reached NATS and are lost", gateway.node, left)
            if kept := gateway.backlog.spooled:
                _logger.info("%s: %d events are in the spool for the next start", gateway.node, kept)
        await self.bus.close(_DRAIN)


async def serve(settings: Config, reread: Callable[[], Config]) -> None:
    """Run the service until SIGTERM or SIGINT, then drain; a second signal ends the process at once.

    SIGHUP applies the settings that `reread` returns; if that raises SettingsProblem, the current settings remain.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    service = Service(settings)

    def on_signal(number: int) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    def on_hangup() -> None:
        service.systemd.reloading()
        try:
            service.reload(reread())
        except SettingsProblem as error:
            for problem in error.problems:
                _logger.error("configuration: not applied: %s", problem)
        service.systemd.ready()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    loop.add_signal_handler(signal.SIGHUP, on_hangup)
    await service.run(stop)
