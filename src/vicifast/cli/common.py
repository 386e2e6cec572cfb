"""Shared by the commands: exit codes, options, the session, and error handling."""

from __future__ import annotations

import errno
import functools
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from .._wire import Message
from ..commands import DEFAULT_ADDRESS
from ..errors import ConnectionClosed, EncodeError, RequestTimeout, ViciError
from .output import FORMATS, Output, escaped

if TYPE_CHECKING:
    from ..address import Tcp, Unix
    from ..blocking import Session

TIMEOUT = 30.0
FAILED, USAGE, NO_DAEMON = 1, 2, 3
EXIT_CODES = {
    0: "done",
    FAILED: "charon reported an error, the output cannot be written, Ctrl-C, or another error",
    USAGE: "invalid usage; nothing was sent",
    NO_DAEMON: "no connection to charon, connection lost, or no reply in time",
}


_START = "; start charon, or give the address of its VICI socket with --uri"
_REMEDIES = {
    errno.ENOENT: _START,
    errno.ECONNREFUSED: _START,
    errno.EACCES: "; run as root, or as a member of the group that owns the socket",
}


class Group(click.Group):
    """Imports the module of a command when it runs; ends a failed command with a one-line error and its exit code.

    `table` has, by the name of each command, its module in `package` and the first sentence of its help: a list of the
    commands needs no module, and completion on Tab is as quick.
    """

    def __init__(self, *args: Any, table: Mapping[str, tuple[str, str]], package: str, **others: Any) -> None:
        super().__init__(*args, **others)
        self._modules = {name: f"{package}.{module}" for name, (module, _) in table.items()}
        for name, (_, text) in table.items():
            self.add_command(click.Command(name, help=text))

    def load(self, name: str) -> click.Command:
        """Import a command; raises KeyError if there is none with this name."""
        command: click.Command = getattr(import_module(self._modules[name]), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, listed, rest = super().resolve_command(ctx, args)
        return name, self.load(name) if name and listed else None, rest

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ViciError as error:
            raise failure(error) from error


class Failed(click.ClickException):
    """charon reported an error, or another error occurred."""

    exit_code = FAILED


class WrongUse(click.ClickException):
    """Invalid usage; nothing was sent."""

    exit_code = USAGE


class NoDaemon(click.ClickException):
    """charon is unreachable or does not reply."""

    exit_code = NO_DAEMON


def failure(error: ViciError) -> click.ClickException:
    """Convert an error to one line with its exit code."""
    if isinstance(error, ConnectionClosed | RequestTimeout):
        return NoDaemon(escaped(str(error)) + _REMEDIES.get(error.errno or 0, ""))
    return (WrongUse if isinstance(error, EncodeError) else Failed)(escaped(str(error)))


def parse_endpoint(ctx: click.Context, param: click.Parameter, value: str | None) -> Unix | Tcp | None:
    from ..address import parse_address

    try:
        return None if value is None else parse_address(value, any_port=param.name == "listen")
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


class Client(NamedTuple):
    """The common options of a command: the daemon's address, the timeout, and the output."""

    uri: Unix | Tcp
    timeout: float
    output: Output

    @contextmanager
    def session(self) -> Iterator[Session[Message]]:
        from ..blocking import Session

        with Session(str(self.uri), timeout=self.timeout, values=Message) as session:
            yield session


uri_option = click.option(
    "--uri", callback=parse_endpoint, default=DEFAULT_ADDRESS, show_default=True, help="Address of charon."
)
watch_option = click.option(
    "--watch",
    "every",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="Refresh interval; runs until Ctrl-C.",
)


def talks(function: Callable[..., None]) -> Callable[..., None]:
    """Add the common options to a command, and pass them as a `Client`, its first argument."""

    @functools.wraps(function)
    def run(uri: Unix | Tcp, timeout: float, form: str | None, **others: Any) -> None:
        function(Client(uri, timeout, Output(form)), **others)

    for name, form in reversed(FORMATS.items()):
        run = click.option(f"--{name}", "form", flag_value=name, default=None, help=form.help)(run)
    run = click.option(
        "--timeout",
        type=click.FloatRange(0, min_open=True),
        default=TIMEOUT,
        show_default=True,
        metavar="SECONDS",
        help="Maximum wait for a reply.",
    )(run)
    return uri_option(run)


@contextmanager
def until_interrupted() -> Iterator[None]:
    """Run a block that ends normally on Ctrl-C or SIGTERM."""
    # As SIGINT, for which asyncio.run() cancels its task; an exception raised at any point would leave tasks pending.
    before = signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)
