"""The query commands, and `call`, which runs any command."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import click

from .. import _wire
from .._wire import Message
from ..commands import COMMANDS
from ..errors import ViciError
from . import tables
from .common import Client, talks, until_interrupted, watch_option
from .output import ReceivedMessage, results

if TYPE_CHECKING:
    from ..blocking import Session

_ike = click.option("--ike", metavar="NAME", help="Only this connection.")
_child = click.option("--child", metavar="NAME", help="Only children with this name.")
_name = click.option("--name", metavar="NAME", help="Only the entry with this name.")


def ask(
    session: Session[Message], command: str, request: Mapping[str, object], event: str | None = None
) -> Iterator[ReceivedMessage]:
    """Yield the messages of a command as they arrive, and its reply unless that is empty."""
    known = COMMANDS.get(command)
    event = event or (known.event if known is not None else None)
    if event is None:
        yield ReceivedMessage(session.call(command, request))
        return
    stream = session.stream(command, request, event)
    for message in stream:
        yield ReceivedMessage(message, event)
    if stream.response:
        yield ReceivedMessage(stream.response)


def query(
    client: Client, command: str, keys: Mapping[str, object], view: tables.View, every: float | None = None
) -> None:
    """Run a read-only command and show its messages, repeatedly if `every` is given."""
    request = {key: value for key, value in keys.items() if value not in (None, False)}
    with client.session() as session:
        if every is None:
            show(client, ask(session, command, request), view)
        elif client.output.for_people and results().is_terminal:
            from rich.live import Live

            console = results()
            with until_interrupted(), Live(console=console, screen=True, auto_refresh=False) as live:
                while True:
                    found = view(list(ask(session, command, request)))
                    live.update(found if isinstance(found, str) else found.top(console.height), refresh=True)
                    time.sleep(every)
        else:
            with until_interrupted():
                while True:
                    show(client, ask(session, command, request), view)
                    time.sleep(every)


def show(client: Client, messages: Iterator[ReceivedMessage], view: tables.View) -> None:
    if client.output.for_people:
        client.output.show(view(list(messages)))
        return
    for received in messages:
        client.output.message(received)


@click.command()
@_ike
@_child
@click.option("--ike-id", type=int, help="Only the IKE_SA with this unique id.")
@click.option("--child-id", type=int, help="Only the CHILD_SA with this unique id.")
@click.option("--noblock", is_flag=True, help="Skip SAs that charon is processing.")
@watch_option
@talks
def sas(
    client: Client,
    ike: str | None,
    child: str | None,
    ike_id: int | None,
    child_id: int | None,
    noblock: bool,
    every: float | None,
) -> None:
    """List the SAs."""
    keys = {"ike": ike, "child": child, "ike-id": ike_id, "child-id": child_id, "noblock": noblock}
    query(client, "list-sas", keys, tables.sas, every)


@click.command()
@_ike
@talks
def conns(client: Client, ike: str | None) -> None:
    """List the loaded connections."""
    query(client, "list-conns", {"ike": ike}, tables.conns)


@click.command()
@click.option("--type", "kind", metavar="TYPE", help="Only X509, X509_AC, X509_CRL, OCSP_RESPONSE or PUBKEY.")
@click.option("--flag", metavar="FLAG", help="Only X.509 certificates with the flag NONE, CA, AA or OCSP.")
@click.option("--subject", metavar="NAME", help="Only certificates with this subject.")
@talks
def certs(client: Client, kind: str | None, flag: str | None, subject: str | None) -> None:
    """List certificates and public keys."""
    query(client, "list-certs", {"type": kind, "flag": flag, "subject": subject}, tables.certs)


@click.command()
@_name
@click.option("--leases", is_flag=True, help="Include the leases, online and offline.")
@watch_option
@talks
def pools(client: Client, name: str | None, leases: bool, every: float | None) -> None:
    """List the pools of virtual addresses."""
    query(client, "get-pools", {"name": name, "leases": leases}, tables.pools, every)


@click.command()
@watch_option
@talks
def stats(client: Client, every: float | None) -> None:
    """Show charon's statistics."""
    query(client, "stats", {}, tables.plain, every)


@click.command()
@_name
@click.option("--all", "each", is_flag=True, help="Show each connection instead of the totals.")
@watch_option
@talks
def counters(client: Client, name: str | None, each: bool, every: float | None) -> None:
    """Show the IKE message counters."""
    query(client, "get-counters", {"name": name, "all": each}, tables.counters, every)


@click.command()
@click.option("--drop", is_flag=True, help="Only drop policies.")
@click.option("--pass", "let_pass", is_flag=True, help="Only pass policies.")
@click.option("--trap", is_flag=True, help="Only trap policies.")
@_ike
@_child
@talks
def policies(client: Client, drop: bool, let_pass: bool, trap: bool, ike: str | None, child: str | None) -> None:
    """List trap, drop and pass policies; all three kinds by default."""
    every_kind = not (drop or let_pass or trap)
    kinds = {"drop": drop or every_kind, "pass": let_pass or every_kind, "trap": trap or every_kind}
    query(client, "list-policies", {**kinds, "ike": ike, "child": child}, tables.policies)


def parse_arguments(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, object]:
    """Parse `KEY=VALUE` and `KEY@FILE`, where a repeated key makes a list, or a single JSON object."""
    if len(values) == 1 and values[0].lstrip().startswith("{"):
        try:
            return dict(_wire.decode(_wire.from_json(values[0]), values=bytes))
        except ViciError as error:
            raise click.BadParameter(str(error)) from None
    request: dict[str, object] = {}
    for key, value in map(parse_argument, values):
        before = request.get(key)
        if before is None:
            request[key] = value
        elif isinstance(before, list):
            before.append(value)
        else:
            request[key] = [before, value]
    return request


def parse_argument(text: str) -> tuple[str, str | bytes]:
    key, file_mark, file = text.partition("@")
    if file_mark and "=" not in key:
        try:
            with open(file, "rb") as opened:
                content = opened.read(_wire.MAX_VALUE + 1)
        except OSError as error:
            raise click.BadParameter(f"{file}: {error.strerror}") from None
        if len(content) > _wire.MAX_VALUE:
            raise click.BadParameter(f"{file} is larger than {_wire.MAX_VALUE} bytes, the limit of a value")
        return key, content
    key, separator, value = text.partition("=")
    if not separator:
        raise click.BadParameter(f"{text!r} is not KEY=VALUE, KEY@FILE or a JSON object")
    return key, value


def complete_command(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in COMMANDS if name.startswith(incomplete)]


@click.command()
@click.argument("command", shell_complete=complete_command)
@click.argument("request", nargs=-1, metavar="[KEY=VALUE | KEY@FILE | JSON]...", callback=parse_arguments)
@click.option(
    "--event", metavar="NAME", help="Event that the command streams; needed only for commands unknown to vicifast."
)
@talks
def call(client: Client, command: str, request: dict[str, object], event: str | None) -> None:
    """Run any command and write its messages and its reply.

    A repeated KEY makes a list; KEY@FILE reads the value from a file. A JSON object can contain any request, including
    sections, and bytes as {"$base64": "..."}.

    \b
    vicifast call get-pools name=branches leases=yes
    vicifast call load-cert type=X509 flag=CA data@ca.pem
    vicifast call load-pool '{"branches": {"addrs": "10.3.0.0/16"}}'
    """
    with client.session() as session:
        for received in ask(session, command, request, event):
            client.output.message(received)
