"""The commands that run a bridge and describe it; each imports what it runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..contract.nats_settings import NatsSettings

if TYPE_CHECKING:
    from ..config.model import Config

_config_option = click.option(
    "--config",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Configuration file in TOML. Default: built-in defaults and environment variables only.",
)


@click.command()
@_config_option
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="Level of the log on stderr; overrides the configuration.",
)
def run(path: Path | None, log_level: str | None) -> None:
    """Run the bridge until SIGTERM or SIGINT; SIGHUP reloads the configuration."""
    import asyncio

    from ..bus.nats_server import NatsServerError
    from ..config.file import load
    from ..ops import logsetup
    from ..ops.http import ListenError
    from ..service import serve

    def read() -> Config:
        settings = load(path)
        if log_level is None:
            return settings
        return settings.model_copy(update={"logging": settings.logging.model_copy(update={"level": log_level})})

    settings = _or_exit(read)
    logsetup.set_up(settings.logging)
    try:
        asyncio.run(serve(settings, read))
    except (ListenError, NatsServerError) as error:
        raise click.ClickException(str(error)) from None


@click.command()
@_config_option
@click.option("--nats", is_flag=True, help="Also connect to NATS and check its streams, buckets and limits.")
@click.option("--charon", is_flag=True, help="Also connect to each charon and check its version and connections.")
def check(path: Path | None, nats: bool, charon: bool) -> None:
    """Validate the configuration and print it in full, without secrets.

    Comments at the top say what the bridge would do. --nats and --charon print one line per problem on
    stderr: error, warning or note. The exit status is 1 if the configuration is invalid, NATS or a charon is
    unreachable, or an error was found; otherwise 0.
    """
    from ..bus.embedded_server import plan
    from ..config.file import load, render

    settings = _or_exit(lambda: load(path))
    for line in plan(settings):
        click.echo(f"# {line}")
    click.echo(render(settings), nl=False)
    if nats or charon:
        _inspect(settings, nats, charon)


def _inspect(settings: Config, nats: bool, charon: bool) -> None:
    import asyncio
    import logging

    from ..ops.inspection import inspect, inspect_charons

    logging.getLogger("vicibridge").addHandler(logging.NullHandler())  # each problem is printed once, below
    found = asyncio.run(inspect(settings)) if nats else []
    found += asyncio.run(inspect_charons(settings)) if charon else []
    for problem in found:
        click.echo(f"{problem.grade}: {problem.text}", err=True)
    if any(problem.grade == "error" for problem in found):
        sys.exit(1)


@click.command()
@click.option(
    "--recordings",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="Directory of *.recording files, replayed in place of a daemon.",
)
def demo(recordings: Path) -> None:
    """Run the bridge on recorded traffic with its own nats-server, and show the events."""
    import asyncio

    try:
        from rich.console import Console

        from ..bus.nats_server import NatsServerError
        from ..demo import DemoError, recorded_demo
    except ModuleNotFoundError as error:
        raise click.ClickException(f'the demo needs {error.name}; pip install "strongswan-vicifast[demo]"') from None
    try:
        asyncio.run(recorded_demo(Console(highlight=False, emoji=False), recordings))
    except (DemoError, NatsServerError, TimeoutError) as error:
        raise click.ClickException(str(error) or "timeout: no event or reply in time") from None


@click.command()
@click.option("--json-schema", "name", metavar="NAME", help="Print this JSON Schema, such as ike-updown or VICI_SA.")
@click.option("--list", "names", is_flag=True, help="Print the names of the JSON Schemas.")
@click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write asyncapi.json and one file per JSON Schema to this directory.",
)
@click.option("--prefix", default=NatsSettings.prefix, show_default=True, help="First part of every subject.")
def schema(name: str | None, names: bool, directory: Path | None, prefix: str) -> None:
    """Print an AsyncAPI document of all subjects and their payloads."""
    from ..contract import asyncapi
    from ..contract import schema as own

    if names:
        click.echo("\n".join(own.schemas()))
    elif name is not None:
        if name not in own.schemas():
            raise click.ClickException(f"unknown schema {name}; vicibridge schema --list prints the names")
        click.echo(_json(own.document(name)))
    elif directory is not None:
        files = {"asyncapi": asyncapi.document(prefix)} | {each: own.document(each) for each in own.schemas()}
        try:
            directory.mkdir(parents=True, exist_ok=True)
            for each, content in files.items():
                (directory / f"{each}.json").write_text(f"{_json(content)}\n", "utf-8")
        except OSError as error:
            raise click.ClickException(f"{directory}: {error.strerror}") from None
    else:
        click.echo(_json(asyncapi.document(prefix)))


def _json(content: object) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False)


def _or_exit(read: Callable[[], Config]) -> Config:
    from ..config.file import SettingsProblem

    try:
        return read()
    except SettingsProblem as error:
        for problem in error.problems:
            click.echo(problem, err=True)
        sys.exit(1)
