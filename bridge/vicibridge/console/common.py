"""What the commands for the fleet share: how to reach NATS, exit codes, and how a command ends."""

from __future__ import annotations

import asyncio
import functools
import getpass
import json
import logging
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
from pydantic import ValidationError
from rich.console import Group, RenderableType
from rich.text import Text

from vicifast.cli.common import EXIT_CODES, FAILED, NO_DAEMON, NoDaemon, WrongUse, failure
from vicifast.cli.output import shown
from vicifast.errors import ViciError

from ..client import Busy, Denied, Fleet, Unavailable
from ..config.file import SettingsProblem, explain, load
from ..config.model import NatsConfig

DENIED = 4
CODES = {
    **EXIT_CODES,
    FAILED: "charon or a bridge said no, the output cannot be written, or something else failed",
    NO_DAEMON: "no connection to NATS, no bridge or no charon there, or no answer in time",
    DENIED: "not allowed by the bridge or by NATS",
}
EPILOG = "\b\nExit codes:\n" + "\n".join(f"  {code}  {meaning}" for code, meaning in CODES.items())

T = TypeVar("T")

_CONTEXT = {  # what the contexts of NATS's own command line call our keys
    "creds": "creds",
    "nkey": "nkey",
    "user": "user",
    "password": "password",
    "token": "token",
    "ca": "tls_ca",
    "cert": "tls_cert",
    "key": "tls_key",
    "tls_first": "tls_first",
    "inbox_prefix": "inbox_prefix",
}


class NotAllowed(click.ClickException):
    """The bridge or NATS does not let us."""

    exit_code = DENIED


def code_of(error: ViciError) -> int:
    """Return the exit code for an error."""
    return ended(error).exit_code


def ended(error: ViciError) -> click.ClickException:
    """Return what ends the program with the line and the exit code of an error."""
    match error:
        case Denied():
            return NotAllowed(shown(error))
        case Unavailable() | Busy():
            return NoDaemon(shown(error))
    return failure(error)


@dataclass(frozen=True)
class Reach:
    """The common options of one run: which NATS, and how long to wait."""

    nats: NatsConfig
    timeout: float

    def run(self, work: Callable[[Fleet], Awaitable[T]]) -> T:
        """Do something with the fleet; its errors end the program."""

        async def connected() -> T:
            async with Fleet(self.nats.settings(), timeout=self.timeout, user=_user()) as fleet:
                with _reported():
                    return await work(fleet)

        try:
            return asyncio.run(connected())
        except ViciError as error:
            raise ended(error) from error


class _Stderr(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        click.echo(click.style(shown(record.getMessage()), fg="yellow"), err=True)


@contextmanager
def _reported() -> Iterator[None]:
    """Write to stderr what becomes of the connection: that it was lost, why there is no other yet, and the next."""
    logger, handler = logging.getLogger("vicibridge"), _Stderr()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def below_trouble(fleet: Fleet, picture: RenderableType) -> RenderableType:
    """Return a picture of what the fleet was, below why it is not read any more while NATS is not connected."""
    return picture if fleet.trouble is None else Group(Text(shown(fleet.trouble), style="yellow"), picture)


def _user() -> str | None:
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # this user has no name
        return None
    return name if name.isascii() and name.isprintable() else None


_OPTIONS = [
    click.option(
        "--server", "servers", multiple=True, envvar="NATS_URL", show_envvar=True, metavar="URL", help="Where NATS is."
    ),
    click.option(
        "--context",
        envvar="NATS_CONTEXT",
        show_envvar=True,
        metavar="NAME",
        help="A context of NATS's own command line.",
    ),
    click.option(
        "--config",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        help="A bridge's configuration, of which [nats] counts.",
    ),
    click.option("--creds", envvar="NATS_CREDS", show_envvar=True, metavar="FILE", help="Credentials."),
    click.option("--nkey", envvar="NATS_NKEY", show_envvar=True, metavar="FILE", help="The seed of an nkey."),
    click.option("--user", envvar="NATS_USER", show_envvar=True, help="A user of NATS."),
    click.option("--password", envvar="NATS_PASSWORD", show_envvar=True, help="The user's; better in NATS_PASSWORD."),
    click.option("--token", envvar="NATS_TOKEN", show_envvar=True, help="A token; better in NATS_TOKEN."),
    click.option("--tls-ca", envvar="NATS_CA", show_envvar=True, metavar="FILE", help="Who may certify the server."),
    click.option("--tls-cert", envvar="NATS_CERT", show_envvar=True, metavar="FILE", help="Our certificate."),
    click.option("--tls-key", envvar="NATS_KEY", show_envvar=True, metavar="FILE", help="The key of that."),
    click.option("--tls-first", is_flag=True, default=None, help="Begin with TLS, for servers with handshake_first."),
    click.option("--prefix", metavar="SUBJECT", help="What stands before every subject, if it is not vici."),
    click.option("--inbox-prefix", metavar="SUBJECT", help="What stands before the subjects of answers to us."),
    click.option(
        "--timeout",
        type=click.FloatRange(0, min_open=True),
        default=30.0,
        show_default=True,
        metavar="SECONDS",
        help="Longest wait for an answer.",
    ),
]


def reaches(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the common options, as the `Reach` that is its first argument."""

    @functools.wraps(function)
    def run(servers: tuple[str, ...], context: str | None, config: Path | None, timeout: float, **others: Any) -> None:
        given = {key: others.pop(key) for key in _KEYS}
        given["servers"] = [url.strip() for text in servers for url in text.split(",")] or None
        nats = find_nats({key: value for key, value in given.items() if value is not None}, context, config)
        function(Reach(nats, timeout), **others)

    for option in reversed(_OPTIONS):
        run = option(run)
    return run


_KEYS = (
    "creds",
    "nkey",
    "user",
    "password",
    "token",
    "tls_ca",
    "tls_cert",
    "tls_key",
    "tls_first",
    "prefix",
    "inbox_prefix",
)


def find_nats(given: Mapping[str, object], context: str | None, config: Path | None) -> NatsConfig:
    """Return where NATS is: what was given, over a context, over the configuration and environment of a bridge.

    An identity that is given replaces one that is configured.
    """
    try:
        base = load(config).nats
    except SettingsProblem as error:
        raise WrongUse(str(error)) from None
    over: dict[str, Any] = {**(read_context(context) if context else {}), **given}
    values = base.model_dump(exclude_unset=True, exclude={"embedded", "leaf"})
    identity = {"user", "password", "token", "creds", "nkey"}
    if identity.intersection(over) or any("@" in url for url in over.get("servers", ())):
        values = {key: value for key, value in values.items() if key not in identity}
    try:
        return NatsConfig(**{"servers": base.urls, **values, **over})
    except ValidationError as error:
        raise WrongUse("\n".join(map(explain, error.errors()))) from None


def read_context(name: str) -> dict[str, object]:
    """Return our keys from a context that NATS's command line keeps."""
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    path = home / "nats" / "context" / f"{name}.json"
    try:
        said = json.loads(path.read_text("utf-8"))
        url = said.get("url") or ""
    except (OSError, ValueError, AttributeError) as error:
        raise WrongUse(f"no context {name}: {path}: {error}") from None
    values: dict[str, object] = {ours: said[theirs] for theirs, ours in _CONTEXT.items() if said.get(theirs)}
    for key in ("creds", "nkey", "tls_ca", "tls_cert", "tls_key"):
        if key in values:
            values[key] = Path(str(values[key])).expanduser()
    return {**values, **({"servers": url.split(",")} if url else {})}
