"""Everything that serves one charon: wires the event reader, the publishers, the mirror and the command server."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from functools import partial

from vicifast.errors import EncodeError

from .bus.streams import state_stream
from .bus.supervisor import ConnectionSupervisor
from .commands.server import CommandServer
from .config.model import Config, GatewayConfig
from .contract.subjects import Subjects
from .events.backlog import KILLED, Backlog
from .events.envelopes import new_boot, new_envelopes
from .events.log_publisher import LogPublisher
from .events.losses import CONFIGURED, Loss, gap
from .events.reader import EventReader
from .events.spool import Spool
from .events.state_publisher import StatePublisher
from .mirror.worker import MirrorWorker

_logger = logging.getLogger(__name__)


class Gateway:
    """One charon on the bus; `node` is its name there."""

    def __init__(self, settings: Config, gateway: GatewayConfig, bus: ConnectionSupervisor) -> None:
        self.node = node = gateway.node
        self.subjects = subjects = Subjects(settings.nats.prefix, node)
        self.boot = boot = new_boot()
        self._events = new_envelopes(settings.events.codec, node, boot)
        lines = new_envelopes(settings.log.codec, node, boot)
        spool = settings.spool
        self.backlog = Backlog(
            node,
            boot,
            settings.events.max_bytes,
            partial(self._report_loss, "state"),
            Spool(spool.path / f"{node}.spool", spool.max_bytes, spool.max_age_days * 86400),
        )
        self.state = StatePublisher(bus, state_stream(settings.nats), self.backlog)
        self.log = LogPublisher(
            bus,
            settings.log.linger_ms / 1000,
            settings.log.max_bytes,
            partial(self._report_loss, "log"),
            batch=0 if settings.log.codec == "raw" else LogPublisher.BATCH,
        )
        self.mirroring = (
            MirrorWorker(settings, subjects, gateway, boot, bus, self.report) if settings.mirror.enabled else None
        )
        self.reader = EventReader(
            settings,
            gateway.vici,
            subjects,
            self._events,
            lines,
            self.backlog,
            self.log,
            self.report,
            self.mirroring,
        )
        self.commands = CommandServer(settings.commands, subjects, gateway.vici, bus, self.report)

    async def run(self) -> None:
        """Read events until `stop`, and report the start and the end."""
        before = await self.backlog.open()
        known = {"boot": before.boot, "last_seq": before.seq, "clean": before.clean} if before else None
        self.reader.report_status("starting", **{"previous": known} if known else {})
        await self.reader.run()
        self.reader.report_status("stopping")

    def reload(self, settings: Config) -> None:
        """Apply what may change at run time."""
        self.backlog.max_bytes = settings.events.max_bytes
        self.log.configure(settings.log.linger_ms / 1000, settings.log.max_bytes)
        self.reader.reload(settings)
        self.commands.reload(settings.commands)
        if self.mirroring:
            self.mirroring.reload(settings.mirror)

    def report(self, kind: str, data: Mapping[str, object]) -> None:
        """Publish an event of the bridge itself, in the state class."""
        try:
            envelope = self._events.wrap_object(time.time_ns(), kind, data)
        except EncodeError:
            self.backlog.lost("larger than VICI allows", *self._events.skip(1))
            return
        self.backlog.put([(self._events.seq, self.subjects.bridge(kind), envelope)], report_loss=kind != "gap")

    def _report_loss(self, kind: str, loss: Loss) -> None:
        count = "an unknown number of" if loss.count is None else loss.count
        level = logging.DEBUG if loss.cause in CONFIGURED else logging.WARNING
        _logger.log(level, "%s: %s events of class %s lost: %s", self.node, count, kind, loss.cause)
        boot = {"boot": loss.boot or self.boot}
        self.report("gap", gap(kind, loss.cause, loss.count, loss.first_seq, loss.last_seq) | boot)
        if kind == "state" and loss.cause == KILLED:  # log lines are never on disk
            self.report("gap", gap("log", KILLED) | boot)
