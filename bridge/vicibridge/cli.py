"""The command line of the bridge."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import click

from .bus.embedded_server import plan
from .config.file import SettingsProblem, load, render
from .config.model import Config, NatsConfig
from .ops import logsetup

_config_option = click.option(
    "--config",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Configuration file in TOML. Default: built-in defaults and environment variables only.",
)


# Fleet commands need more packages, such as rich, than a running bridge, so each module is loaded on use.
_FLEET = {"call": "call", "nodes": "inventory", "sas": "inventory", "tail": "tail", "top": "top"}


class _Group(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *_FLEET])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _FLEET:
            return super().get_command(ctx, cmd_name)
        module = import_module(f".console.{_FLEET[cmd_name]}", __package__)
        command: click.Command = getattr(module, cmd_name)
        return command


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="strongswan-vicifast")
def cli() -> None:
    """Publish charon's events to NATS and run commands from NATS on charon; inspect a fleet of gateways."""


@cli.command()
@_config_option
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="Level of the log on stderr; overrides the configuration.",
)
def run(path: Path | None, log_level: str | None) -> None:
    """Run the bridge until SIGTERM or SIGINT; SIGHUP reloads the configuration."""
    from .bus.nats_server import NatsServerError
    from .ops.http import ListenError
    from .service import serve

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


@cli.command()
@_config_option
@click.option("--nats", is_flag=True, help="Also connect to NATS and check its streams, buckets and limits.")
@click.option("--charon", is_flag=True, help="Also connect to each charon and check its version and connections.")
def check(path: Path | None, nats: bool, charon: bool) -> None:
    """Validate the configuration and print it in full, without secrets.

    Comments at the top say what the bridge would do. --nats and --charon print one line per problem on
    stderr: error, warning or note. The exit status is 1 if the configuration is invalid, NATS or a charon is
    unreachable, or an error was found; otherwise 0.
    """
    settings = _or_exit(lambda: load(path))
    for line in plan(settings):
        click.echo(f"# {line}")
    click.echo(render(settings), nl=False)
    if nats or charon:
        _inspect(settings, nats, charon)


def _inspect(settings: Config, nats: bool, charon: bool) -> None:
    from .ops.inspection import inspect, inspect_charons

    logging.getLogger(__package__).addHandler(logging.NullHandler())  # each problem is printed once, below
    found = asyncio.run(inspect(settings)) if nats else []
    found += asyncio.run(inspect_charons(settings)) if charon else []
    for problem in found:
        click.echo(f"{problem.grade}: {problem.text}", err=True)
    if any(problem.grade == "error" for problem in found):
        sys.exit(1)


@cli.command()
@click.option(
    "--recordings",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="Directory of *.recording files, replayed in place of a daemon.",
)
def demo(recordings: Path) -> None:
    """Run the bridge on recorded traffic with its own nats-server, and show the events."""
    try:
        from rich.console import Console

        from .bus.nats_server import NatsServerError
        from .demo import DemoError, recorded_demo
    except ModuleNotFoundError as error:
        raise click.ClickException(f'the demo needs {error.name}; pip install "strongswan-vicifast[demo]"') from None
    try:
        asyncio.run(recorded_demo(Console(highlight=False), recordings))
    except (DemoError, NatsServerError, TimeoutError) as error:
        raise click.ClickException(str(error) or "timeout: no event or reply in time") from None


@cli.command()
@click.option("--json-schema", "name", metavar="NAME", help="Print this JSON Schema, such as ike-updown or VICI_SA.")
@click.option("--list", "names", is_flag=True, help="Print the names of the JSON Schemas.")
@click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write asyncapi.json and one file per JSON Schema to this directory.",
)
@click.option("--prefix", default=NatsConfig().prefix, show_default=True, help="First part of every subject.")
def schema(name: str | None, names: bool, directory: Path | None, prefix: str) -> None:
    """Print an AsyncAPI document of all subjects and their payloads."""
    from .contract import asyncapi
    from .contract import schema as own

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
    try:
        return read()
    except SettingsProblem as error:
        for problem in error.problems:
            click.echo(problem, err=True)
        sys.exit(1)
