"""Shared by the fleet commands: connection options, exit codes and error handling."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from vicifast.cli.common import EXIT_CODES, FAILED, NO_DAEMON, NoDaemon, WrongUse, failure
from vicifast.cli.output import escaped
from vicifast.errors import ViciError

from ..config import ENV_PREFIX
from ..contract.nats_settings import NatsSettings, check_prefix, check_readable

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..client import Fleet

DENIED = 4
CODES = {
    **EXIT_CODES,
    FAILED: "charon or a bridge reported an error, the mirror has an invalid value, the output cannot be written, or "
    "another error occurred",
    NO_DAEMON: "NATS, the bridge or charon is unreachable, or did not reply in time",
    DENIED: "denied by the bridge or by NATS",
}
EPILOG = "\b\nExit codes:\n" + "\n".join(f"  {code}  {meaning}" for code, meaning in CODES.items())

T = TypeVar("T")

_CONTEXT = {  # keys of a context of the `nats` command line, and the keys of [nats]
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
    """The bridge or NATS denied the request."""

    exit_code = DENIED


def code_of(error: ViciError) -> int:
    """Return the exit code for an error."""
    return ended(error).exit_code


def ended(error: ViciError) -> click.ClickException:
    """Convert an error to one line with its exit code."""
    from ..client import Busy, Denied, Unavailable

    match error:
        case Denied():
            return NotAllowed(escaped(str(error)))
        case Unavailable() | Busy():
            return NoDaemon(escaped(str(error)))
    return failure(error)


class Reach(NamedTuple):
    """The common options of a command: the NATS connection and the timeout."""

    nats: NatsSettings
    timeout: float

    def run(self, work: Callable[[Fleet], Awaitable[T]]) -> T:
        """Connect and run `work`; an error ends the program with its exit code."""

        import asyncio

        from ..client import Fleet

        async def connected() -> T:
            async with Fleet(self.nats, timeout=self.timeout, user=_user()) as fleet:
                with _reported():
                    return await work(fleet)

        try:
            return asyncio.run(connected())
        except ViciError as error:
            raise ended(error) from error


def warn(text: str) -> None:
    """Write a line to standard error."""
    click.echo(click.style(escaped(text), fg="yellow"), err=True)


@contextmanager
def _reported() -> Iterator[None]:
    """Report on stderr when the connection is lost, why reconnecting fails, and when it succeeds."""
    import logging

    class Stderr(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            warn(record.getMessage())

    logger, handler = logging.getLogger("vicibridge"), Stderr()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def below_trouble(fleet: Fleet, picture: RenderableType) -> RenderableType:
    """Put the reason above the last known state while NATS is not connected."""
    if fleet.trouble is None:
        return picture
    from rich.console import Group
    from rich.text import Text

    return Group(Text(escaped(fleet.trouble), style="yellow"), picture)


def _user() -> str | None:
    import getpass

    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # the user has no entry in the password database
        return None
    return name if name.isascii() and name.isprintable() else None


_OPTIONS = [
    click.option(
        "--server",
        "servers",
        multiple=True,
        envvar="NATS_URL",
        show_envvar=True,
        metavar="URL",
        help="NATS server; repeatable, or a comma-separated list.",
    ),
    click.option(
        "--context",
        envvar="NATS_CONTEXT",
        show_envvar=True,
        metavar="NAME",
        help="Context of the nats command line.",
    ),
    click.option(
        "--config",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        help="Configuration file of a bridge; its [nats] section is used.",
    ),
    click.option(
        "--creds", envvar="NATS_CREDS", show_envvar=True, metavar="FILE", help="Credentials file: JWT and seed."
    ),
    click.option("--nkey", envvar="NATS_NKEY", show_envvar=True, metavar="FILE", help="File with the seed of an nkey."),
    click.option("--user", envvar="NATS_USER", show_envvar=True, help="User name."),
    click.option("--password", envvar="NATS_PASSWORD", show_envvar=True, help="Password; prefer the variable."),
    click.option("--token", envvar="NATS_TOKEN", show_envvar=True, help="Token; prefer the variable."),
    click.option(
        "--tls-ca", envvar="NATS_CA", show_envvar=True, metavar="FILE", help="CA certificates for the server."
    ),
    click.option("--tls-cert", envvar="NATS_CERT", show_envvar=True, metavar="FILE", help="Client certificate."),
    click.option("--tls-key", envvar="NATS_KEY", show_envvar=True, metavar="FILE", help="Private key for --tls-cert."),
    click.option(
        "--tls-first",
        is_flag=True,
        default=None,
        help="Start with TLS, for servers with handshake_first.",
    ),
    click.option("--prefix", metavar="SUBJECT", help="First part of every subject. Default: vici."),
    click.option("--inbox-prefix", metavar="SUBJECT", help="Prefix of the reply inboxes. Default: _INBOX."),
    click.option(
        "--timeout",
        type=click.FloatRange(0, min_open=True),
        default=30.0,
        show_default=True,
        metavar="SECONDS",
        help="Maximum wait for a reply.",
    ),
]


def reaches(function: Callable[..., None]) -> Callable[..., None]:
    """Add the common options to a command; its first argument is the `Reach` built from them."""

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


_FILES = ("creds", "nkey", "tls_ca", "tls_cert", "tls_key")
_TYPES = {"servers": list, "tls_first": bool, **dict.fromkeys(_FILES, str | Path)}  # of the others: str


def find_nats(given: Mapping[str, object], context: str | None, config: Path | None) -> NatsSettings:
    """Return the NATS settings: options override a context, which overrides a bridge's configuration and environment.

    An identity in the options or the context replaces a configured one.
    """
    if config is None and not any(name.upper().startswith(ENV_PREFIX) for name in os.environ):
        with suppress(TypeError, ValueError):  # which the model explains
            return _unconfigured({**_chosen(context), **given})
    return _configured(given, context, config)


def _unconfigured(over: Mapping[str, Any]) -> NatsSettings:
    """Return the settings without the model of the configuration, which takes longer to import than a command runs."""
    for key, value in over.items():
        if not isinstance(value, _TYPES.get(key, str)):
            raise TypeError(f"{key} is {value!r}")
    for key in {"prefix", "inbox_prefix"} & over.keys():
        check_prefix(over[key])
    return NatsSettings(**{**over, **{key: check_readable(Path(over[key])) for key in _FILES if key in over}})


def _configured(given: Mapping[str, object], context: str | None, config: Path | None) -> NatsSettings:
    from pydantic import ValidationError

    from ..config.file import SettingsProblem, explain, load
    from ..config.model import NatsConfig

    try:
        base = load(config).nats
    except SettingsProblem as error:
        raise WrongUse(str(error)) from None
    over: dict[str, Any] = {**_chosen(context), **given}
    values = base.model_dump(exclude_unset=True, exclude={"embedded", "leaf"})
    identity = {"user", "password", "token", "creds", "nkey"}
    if identity.intersection(over) or any("@" in url for url in over.get("servers", ())):
        values = {key: value for key, value in values.items() if key not in identity}
    try:
        return NatsConfig(**{"servers": base.urls, **values, **over}).settings()
    except ValidationError as error:
        raise WrongUse("\n".join(map(explain, error.errors()))) from None


def _chosen(context: str | None) -> dict[str, object]:
    return read_context(context) if context else {}


def read_context(name: str) -> dict[str, object]:
    """Return the [nats] keys from a context of the `nats` command line."""
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    path = home / "nats" / "context" / f"{name}.json"
    try:
        content = json.loads(path.read_text("utf-8"))
        url = content.get("url") or ""
    except (OSError, ValueError, AttributeError) as error:
        raise WrongUse(f"cannot read context {name}: {path}: {error}") from None
    values: dict[str, object] = {ours: content[theirs] for theirs, ours in _CONTEXT.items() if content.get(theirs)}
    for key in _FILES:
        if key in values:
            values[key] = Path(str(values[key])).expanduser()
    return {**values, **({"servers": url.split(",")} if url else {})}
