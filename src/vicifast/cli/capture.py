"""`vicifast record` and `vicifast replay`."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import socket
import sys
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import click
from rich.filesize import decimal
from rich.table import Table

from .. import _wire
from .._aio_connection import connect_unix
from ..address import Tcp, Unix
from ..aio import AsyncSession, Listener
from ..commands import COMMANDS, EVENTS
from ..errors import CommandError, ConnectionClosed, UnknownCommand, UnknownEvent, ViciError
from ..recording import Recording, RecordingWriter, Side, listen_at, proxy, tee
from ..testing import FakeCharon
from .common import TIMEOUT, parse_endpoint, uri_option
from .output import notes, results

KINDS = {
    _wire.CMD_REQUEST: "request",
    _wire.CMD_RESPONSE: "response",
    _wire.CMD_UNKNOWN: "command unknown",
    _wire.EVENT_REGISTER: "register",
    _wire.EVENT_UNREGISTER: "unregister",
    _wire.EVENT_CONFIRM: "confirm",
    _wire.EVENT_UNKNOWN: "event unknown",
    _wire.EVENT: "event",
}
SIDES: tuple[Side, ...] = ("client", "server")
BACKLOG = 16

Request = tuple[str, Mapping[str, object]]
T = TypeVar("T")


def parse_requests(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[Request, ...]:
    """Parse `NAME` or `NAME JSON`, and reject requests that VICI cannot carry before anything is sent."""
    return tuple(parse_request(value) for value in values)


def parse_request(value: str) -> Request:
    name, _, text = value.partition(" ")
    try:
        message = json.loads(text or "{}")
    except ValueError as error:
        raise click.BadParameter(f"the message of {name} is not valid JSON: {error}") from None
    if not isinstance(message, dict):
        raise click.BadParameter(f"the message of {name} is {text}, but must be a JSON object")
    try:
        _wire.packet(_wire.CMD_REQUEST, name, message)
    except ViciError as error:
        raise click.BadParameter(f"{name}: {error}") from None
    return name, message


class Stop:
    """The first Ctrl-C (or SIGTERM) requests an orderly end, the second cancels the main task."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._task = asyncio.current_task()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._ask)

    def _ask(self) -> None:
        if self._event.is_set() and self._task is not None:
            self._task.cancel()
        self._event.set()

    @property
    def asked(self) -> bool:
        return self._event.is_set()

    async def wait(self, *others: asyncio.Task[None], timeout: float | None = None) -> None:
        """Wait for the request to stop, the timeout, or the end of another task, whose error is raised."""
        asked = asyncio.create_task(self._event.wait())
        try:
            done, _ = await asyncio.wait([asked, *others], timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            asked.cancel()
        for task in done.intersection(others):
            task.result()


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@uri_option
@click.option("--event", "events", multiple=True, metavar="NAME", help="Register this event.")
@click.option(
    "--command", "commands", multiple=True, metavar="NAME [JSON]", callback=parse_requests, help="Run this command."
)
@click.option(
    "--for", "seconds", type=click.FloatRange(0, min_open=True), help="Duration in seconds; default until Ctrl-C."
)
@click.option("--listen", callback=parse_endpoint, help="Address to listen at, to record other clients.")
def record(
    file: Path,
    uri: Unix | Tcp,
    events: tuple[str, ...],
    commands: tuple[Request, ...],
    seconds: float | None,
    listen: Unix | Tcp | None,
) -> None:
    """Record the traffic between a client and charon to FILE.

    By default this program is the client: it registers the events and runs the commands in the given order, for
    example --command list-sas --command 'initiate {"child": "net"}'; with events it runs until --for or Ctrl-C. With
    --listen it records every program that connects there: the first to FILE, the second to FILE-2, and so on.

    A recording contains all traffic, including keys and passwords in commands. Failed commands are recorded too.
    """
    if listen is not None and (events or commands):
        raise click.UsageError("--listen records other clients and cannot be combined with --event or --command")
    if listen is None and not events and not commands:
        raise click.UsageError("nothing to record: give --event, --command or --listen")
    if listen is not None:
        run(record_clients(file, uri, listen, seconds))
    elif not run(record_requests(file, uri, events, commands, seconds)):
        sys.exit(1)


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--listen", required=True, callback=parse_endpoint, help="Address to listen at.")
@click.option(
    "--speed",
    type=click.FloatRange(0, min_open=True),
    help="Multiple of the recorded speed; default as fast as the clients read.",
)
@click.option("--loop", "endless", is_flag=True, help="Repeat the events indefinitely.")
def replay(files: tuple[Path, ...], listen: Unix | Tcp, speed: float | None, endless: bool) -> None:
    """Serve recordings like charon, until Ctrl-C.

    Commands get their recorded replies, by name. The recorded events are sent when a client has registered one of them.
    """
    run(serve(files, listen, speed, endless))


def run(work: Coroutine[object, object, T]) -> T:
    """Run `work`; system errors become one line."""
    try:
        return asyncio.run(work)
    except ViciError:
        raise  # some are also an OSError
    except OSError as error:
        text = error.strerror or str(error)
        raise click.ClickException(f"{error.filename}: {text}" if error.filename else text) from error
    except asyncio.CancelledError:
        raise click.Abort from None


async def record_requests(
    file: Path,
    uri: Unix | Tcp,
    events: tuple[str, ...],
    commands: tuple[Request, ...],
    seconds: float | None,
) -> bool:
    """Record a session of this program; False if a command failed."""
    named = [f"event {name}" for name in events] + [f"command {name}" for name, _ in commands]
    metadata = {"made": f"vicifast record: {', '.join(named)}", "daemon": await daemon_text(uri)}
    raw = {name: _wire.Raw() for name in {*EVENTS, *events}}
    server = await connect(uri)
    stop = Stop()
    client, ours = socket.socketpair()
    with RecordingWriter(file, metadata) as writer, progress(lambda: f"{decimal(writer.size)} in {file}"):
        carried = asyncio.create_task(tee(ours, server, writer))
        try:
            async with AsyncSession(client, timeout=TIMEOUT, readers=raw) as session:
                good = await make_requests(session, events, commands, seconds, stop)
            await carried
        finally:
            carried.cancel()
            await asyncio.wait([carried])
            if not carried.cancelled():
                carried.result()  # raises if the file cannot be written
            writer.close()
            summarize(file)
    return good


async def make_requests(
    session: AsyncSession,
    events: tuple[str, ...],
    commands: tuple[Request, ...],
    seconds: float | None,
    stop: Stop,
) -> bool:
    consuming = asyncio.create_task(consume(await register(session, events))) if events else None
    clock = asyncio.get_running_loop().time
    end = None if seconds is None else clock() + seconds
    try:
        results = [await run_command(session, *command) for command in commands if not stop.asked]
        if consuming is not None:
            await stop.wait(consuming, timeout=None if end is None else max(0, end - clock()))
    finally:
        if consuming is not None:
            consuming.cancel()
            await asyncio.wait([consuming])
    return all(results)


async def register(session: AsyncSession, events: tuple[str, ...]) -> Listener:
    listener = session.listen(*events)
    try:
        await listener.ready()
    except UnknownEvent as error:
        notes().print(f"{error}; continuing without it")
    return listener


async def consume(listener: Listener) -> None:
    while True:
        await listener.batch()


async def run_command(session: AsyncSession, name: str, message: Mapping[str, object]) -> bool:
    known = COMMANDS.get(name)
    timeout = None if known is not None and known.blocks else TIMEOUT
    try:
        if known is None or known.event is None:
            await session.call(name, message, timeout=timeout)
        else:
            async for _ in session.stream(name, message, timeout=timeout):
                pass
    except (CommandError, UnknownCommand, UnknownEvent) as error:
        notes().print(str(error))
        return False
    return True


async def record_clients(file: Path, uri: Unix | Tcp, listen: Unix | Tcp, seconds: float | None) -> None:
    """Record each client that connects at `listen`."""
    metadata = {"made": f"vicifast record: clients of {listen}", "daemon": await daemon_text(uri)}
    stop = Stop()
    numbers = itertools.count(1)
    writers: dict[Path, RecordingWriter] = {}

    def new_writer() -> RecordingWriter:
        number = next(numbers)
        path = file if number == 1 else file.with_stem(f"{file.stem}-{number}")
        writers[path] = RecordingWriter(path, metadata)
        return writers[path]

    with listen_at(listen, BACKLOG) as listener, removing(listen):
        proxying = asyncio.create_task(proxy(listener, lambda: connect(uri), new_writer))
        notes().print(f"recording clients of {address_of(listener, listen)}; press Ctrl-C to stop", soft_wrap=True)
        with progress(lambda: f"{len(writers)} clients, {decimal(sum(w.size for w in writers.values()))}"):
            try:
                await stop.wait(proxying, timeout=seconds)
            finally:
                proxying.cancel()
                await asyncio.wait([proxying])
    for path in writers:
        summarize(path)


async def serve(files: tuple[Path, ...], listen: Unix | Tcp, speed: float | None, endless: bool) -> None:
    """Serve the recordings, and send their events once a client has registered one."""
    recordings = [Recording.load(file) for file in files]
    stop = Stop()
    sent = 0
    async with FakeCharon.from_recordings(recordings, str(listen)) as charon:

        async def send() -> None:
            nonlocal sent
            names = {event.name or "" for recording in recordings for event in recording.events()}
            going_on = bool(names)
            while going_on:
                await any_registered(charon, names)
                for recording in recordings:
                    sent += await charon.replay(recording, speed)
                going_on = endless

        sending = asyncio.create_task(send())
        notes().print(f"serving {', '.join(map(str, files))} at {charon.address}; press Ctrl-C to stop", soft_wrap=True)
        with progress(lambda: f"commands: {len(charon.requests)}, events sent: {sent}"):
            try:
                await stop.wait(sending)
                await stop.wait()
            finally:
                sending.cancel()
                await asyncio.wait([sending])
        results().print(f"commands: {len(charon.requests)}, events sent: {sent}")


async def any_registered(charon: FakeCharon, events: Iterable[str]) -> None:
    waiting = [asyncio.create_task(charon.registered(event)) for event in events]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()


async def connect(address: Unix | Tcp) -> socket.socket:
    """Return a connected socket. Raises ConnectionClosed with the address if no daemon listens there."""
    try:
        async with asyncio.timeout(TIMEOUT):
            if isinstance(address, Unix):
                return await connect_unix(address.path)
            return await asyncio.to_thread(socket.create_connection, address)
    except OSError as error:
        raise ConnectionClosed(f"cannot connect to {address}: {error.strerror or error}") from error


async def daemon_text(address: Unix | Tcp) -> str:
    async with AsyncSession(str(address), timeout=TIMEOUT) as session:
        try:
            version = await session.call("version")
        except (CommandError, UnknownCommand):
            return "unknown version"
    return " ".join(str(version[key]) for key in ("daemon", "version") if key in version)


@contextmanager
def progress(text: Callable[[], str]) -> Iterator[None]:
    """Show `text()` while the block runs, if standard error is a terminal."""

    async def tick() -> None:
        while True:
            status.update(text())
            await asyncio.sleep(0.25)

    with notes().status(text()) as status:
        ticking = asyncio.create_task(tick())
        try:
            yield
        finally:
            ticking.cancel()


@contextmanager
def removing(address: Unix | Tcp) -> Iterator[None]:
    try:
        yield
    finally:
        if isinstance(address, Unix):
            Path(address.path).unlink(missing_ok=True)


def address_of(listener: socket.socket, address: Unix | Tcp) -> Unix | Tcp:
    return Tcp(address.host, listener.getsockname()[1]) if isinstance(address, Tcp) else address


def summarize(file: Path) -> None:
    """Print the packets of a recording by type and name."""
    recording = Recording.load(file)
    results().print(f"{file}: {recording.duration / 1e9:.1f} s, {recording.metadata['daemon']}", soft_wrap=True)
    table = Table("from", "packet", "name", "count", "bytes")
    for side in SIDES:
        count: Counter[tuple[int, str]] = Counter()
        size: Counter[tuple[int, str]] = Counter()
        for _, kind, name, message in recording.packets(side):
            count[kind, name or ""] += 1
            size[kind, name or ""] += len(message or b"")
        for kind, name in sorted(count):
            numbers = f"{count[kind, name]:,}", decimal(size[kind, name])
            table.add_row(side, KINDS[kind], name, *numbers)
    results().print(table)
