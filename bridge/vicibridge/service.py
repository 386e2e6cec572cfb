"""The service: one bus, and for each gateway its events and its commands; started together, stopped in order."""

from __future__ import annotations

import asyncio
import logging
import os
import signal

from .bus import Bus
from .commands import Commands
from .config import Config
from .gateway import Gateway

_logger = logging.getLogger(__name__)

_COMMANDS_END = 2.0  # seconds for requests that run when the stop comes
_READING_END = 4.0  # for charon to confirm that nothing is registered any more
_FLUSH = 5.0  # for what was read to reach NATS
_DRAIN = 3.0


class Service:
    """Everything that `vicibridge run` runs."""

    def __init__(self, settings: Config) -> None:
        self.bus = Bus(settings.nats)
        self.gateways = [Gateway(settings, gateway, self.bus) for gateway in settings.gateway]
        self._commands = [
            Commands(settings.commands, gateway.subjects, gateway.address, self.bus) for gateway in self.gateways
        ]

    async def run(self, stop: asyncio.Event) -> None:
        """Run until `stop` is set, then drain. An exception is a bug; everything is stopped before it goes up."""
        reading = [asyncio.create_task(gateway.run()) for gateway in self.gateways]
        publishing = [
            asyncio.create_task(pipeline.run())
            for gateway in self.gateways
            for pipeline in (gateway.state, gateway.log)
        ]
        serving = [asyncio.create_task(commands.run()) for commands in self._commands]
        connecting = asyncio.create_task(self.bus.run())
        everything = [*reading, *publishing, *serving, connecting]
        stopped = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait([stopped, *everything], return_when=asyncio.FIRST_COMPLETED)
            _logger.info("stopping")
            await self._drain(reading)
        finally:
            for task in (stopped, *everything):
                task.cancel()
            results = await asyncio.gather(*everything, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _drain(self, reading: list[asyncio.Task[None]]) -> None:
        await asyncio.gather(*(commands.stop(_COMMANDS_END) for commands in self._commands))
        stops = [asyncio.create_task(gateway.stop()) for gateway in self.gateways]
        _, late = await asyncio.wait([*stops, *reading], timeout=_READING_END)
        if late:
            _logger.warning("charon has not confirmed the end of the events")
        flushes = [
            asyncio.create_task(pipeline.flush())
            for gateway in self.gateways
            for pipeline in (gateway.state, gateway.log)
        ]
        await asyncio.wait(flushes, timeout=_FLUSH if self.bus.connected else 0)
        for flush in flushes:
            flush.cancel()
        for gateway in self.gateways:
            if left := gateway.state.in_flight + gateway.log.in_flight:
                _logger.warning("%s: %d events have not reached NATS and are lost", gateway.node, left)
        await self.bus.close(_DRAIN)


async def serve(settings: Config) -> None:
    """Run the service until SIGTERM or SIGINT, then drain; a second signal ends the process at once."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal(number: int) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    await Service(settings).run(stop)
