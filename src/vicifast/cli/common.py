"""Shared by the commands: exit codes, options, the session, and error handling."""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import click
from rich.console import Console

from .._wire import Message
from ..address import Tcp, Unix, parse_address
from ..blocking import Session
from ..commands import DEFAULT_ADDRESS
from ..errors import ConnectionClosed, EncodeError, RequestTimeout, ViciError
from .output import FORMATS, Output, shown

TIMEOUT = 30.0
FAILED, USAGE, NO_DAEMON = 1, 2, 3
EXIT_CODES = {
    0: "done",
    FAILED: "charon reported an error, the output cannot be written, or another error occurred",
    USAGE: "invalid usage; nothing was sent",
    NO_DAEMON: "no connection to charon, connection lost, or no reply in time",
}

results = Console(markup=False, highlight=False)
notes = Console(stderr=True, markup=False, highlight=False)


class Group(click.Group):
    """Ends a failed command with a one-line error and its exit code."""

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
        return NoDaemon(shown(error))
    return (WrongUse if isinstance(error, EncodeError) else Failed)(shown(error))


def parse_endpoint(ctx: click.Context, param: click.Parameter, value: str | None) -> Unix | Tcp | None:
    try:
        return None if value is None else parse_address(value, any_port=param.name == "listen")
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@dataclass(frozen=True)
class Client:
    """The common options of a command: the daemon's address, the timeout, and the output."""

    uri: Unix | Tcp
    timeout: float
    output: Output

    @contextmanager
    def session(self) -> Iterator[Session[Message]]:
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
        function(Client(uri, timeout, Output(form, results)), **others)

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
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)
