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
    help="The TOML file; without one, defaults and the environment hold.",
)


# Those for the fleet need more, such as rich, than a bridge that runs; each is loaded when it is asked for.
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
    """Carry charon's events to NATS, and commands from NATS to charon: for one gateway, and for a fleet."""


@cli.command()
@_config_option
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="What goes to stderr, whatever the configuration says.",
)
def run(path: Path | None, log_level: str | None) -> None:
    """Run the bridge until SIGTERM or SIGINT; SIGHUP reads the configuration again."""
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
@click.option("--nats", is_flag=True, help="Also connect to NATS, and check its streams, buckets and limits.")
@click.option("--charon", is_flag=True, help="Also connect to each charon, and check its version and connections.")
def check(path: Path | None, nats: bool, charon: bool) -> None:
    """Validate the configuration, say what the bridge would do, and print all of it, secrets hidden.

    With --nats and --charon stderr has a line for each problem of JetStream and of charon: errors, warnings and notes.
    The exit status is 1 when the configuration is invalid, NATS or a charon cannot be reached, or there is an error;
    else 0.
    """
    settings = _or_exit(lambda: load(path))
    for line in plan(settings):
        click.echo(f"# {line}")
    click.echo(render(settings), nl=False)
    if nats or charon:
        _inspect(settings, nats, charon)


def _inspect(settings: Config, nats: bool, charon: bool) -> None:
    from .ops.inspection import inspect, inspect_charons

    logging.getLogger(__package__).addHandler(logging.NullHandler())  # each problem is shown once, by us
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
    help="A directory of *.recording files; they stand in for a daemon.",
)
def demo(recordings: Path) -> None:
    """Show the bridge at work on recorded traffic, with a nats-server of its own."""
    try:
        from rich.console import Console

        from .bus.nats_server import NatsServerError
        from .demo import DemoError, recorded_demo
    except ModuleNotFoundError as error:
        raise click.ClickException(f'the demo needs {error.name}; pip install "strongswan-vicifast[demo]"') from None
    try:
        asyncio.run(recorded_demo(Console(highlight=False), recordings))
    except (DemoError, NatsServerError, TimeoutError) as error:
        raise click.ClickException(str(error) or "nothing came in time") from None


@cli.command()
@click.option("--json-schema", "name", help="In its place the JSON Schema of that name, such as ike-updown or VICI_SA.")
@click.option("--list", "names", is_flag=True, help="In its place the names of the JSON Schemas.")
@click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write asyncapi.json and a file for each JSON Schema there.",
)
@click.option("--prefix", default=NatsConfig().prefix, show_default=True, help="What every subject begins with.")
def schema(name: str | None, names: bool, directory: Path | None, prefix: str) -> None:
    """Print an AsyncAPI document of all subjects and what is on them."""
    from .contract import asyncapi
    from .contract import schema as own

    if names:
        click.echo("\n".join(own.schemas()))
    elif name is not None:
        if name not in own.schemas():
            raise click.ClickException(f"there is no schema {name}; vicibridge schema --list names them")
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
