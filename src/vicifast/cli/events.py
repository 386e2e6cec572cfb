"""The commands that follow events and the log."""

from __future__ import annotations

import time

import click

from ..commands import EVENTS
from ..errors import UnknownEvent
from .common import Client, talks, until_interrupted
from .output import ReceivedMessage, notes

STANDALONE = tuple(event.name for event in EVENTS.values() if event.standalone)


def follow(client: Client, names: tuple[str, ...], named: bool) -> None:
    """Write events until interrupted; events that charon does not know are skipped, unless it knows none."""
    with client.session() as session, until_interrupted():
        listener = session.listen(*names)
        try:
            listener.ready()
        except UnknownEvent as error:
            if set(listener.unknown) >= set(names):
                raise
            notes().print(f"{error}; continuing without it")
        if client.output.for_people:
            from .event_lines import event_lines
        for name, message in listener:
            if client.output.for_people:
                for line in event_lines(name, message):
                    client.output.text(f"{time.strftime('%H:%M:%S')} {line}")
            else:
                client.output.message(ReceivedMessage(message, name), named)


def complete_event(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in STANDALONE if name.startswith(incomplete)]


@click.command()
@talks
def log(client: Client) -> None:
    """Follow charon's log until Ctrl-C."""
    follow(client, ("log",), named=False)


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=complete_event)
@talks
def events(client: Client, names: tuple[str, ...]) -> None:
    """Follow events until Ctrl-C; without NAME, all events except the log.

    In JSON and msgpack each event is a map with its name, `event`, and its `message`.
    """
    follow(client, names or tuple(name for name in STANDALONE if name != "log"), named=True)
