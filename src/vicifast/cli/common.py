"""What the commands share: exit codes, options, the session, and how a command ends."""

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
    FAILED: "charon said no, the output cannot be written, or something else failed",
    USAGE: "wrong use; nothing was sent",
    NO_DAEMON: "no connection, or it was lost, or no reply in time",
}

results = Console(markup=False, highlight=False)
notes = Console(stderr=True, markup=False, highlight=False)


class Group(click.Group):
    """Ends a command that failed with one line and the exit code of its error."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ViciError as error:
            raise failure(error) from error


class Failed(click.ClickException):
    """charon said no, or something else failed."""

    exit_code = FAILED


class WrongUse(click.ClickException):
    """Nothing was sent."""

    exit_code = USAGE


class NoDaemon(click.ClickException):
    """Nobody answers."""

    exit_code = NO_DAEMON


def failure(error: ViciError) -> click.ClickException:
    """The one line of an error, with its exit code."""
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
    """The common options of one run: which daemon, how long to wait, and what to write."""

    uri: Unix | Tcp
    timeout: float
    output: Output

    @contextmanager
    def session(self) -> Iterator[Session[Message]]:
        with Session(str(self.uri), timeout=self.timeout, values=Message) as session:
            yield session


uri_option = click.option(
    "--uri", callback=parse_endpoint, default=DEFAULT_ADDRESS, show_default=True, help="Where charon is."
)
watch_option = click.option(
    "--watch",
    "every",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="Ask again so often, until Ctrl-C.",
)


def talks(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the common options, as the `Client` that is its first argument."""

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
        help="Longest wait for an answer.",
    )(run)
    return uri_option(run)


@contextmanager
def until_interrupted() -> Iterator[None]:
    """Something without an end of its own: Ctrl-C or SIGTERM is its good end."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)
