"""The commands that change the state or the configuration of charon."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .. import _wire
from .._wire import Message
from ..errors import ConnectionClosed, RequestTimeout
from .common import FAILED, Client, NoDaemon, talks
from .output import ReceivedMessage, escaped, notes, shown

if TYPE_CHECKING:
    from ..blocking import Session, Stream
    from ..swanctl.load_plan import Report

_KINDS = {"conn": "name", "pool": "name", "authority": "name", "key": "id", "shared": "id"}
_ike = click.option("--ike", metavar="NAME", help="Name of the connection.")
_child = click.option("--child", metavar="NAME", help="Name of the child.")
_ike_id = click.option("--ike-id", type=int, help="Unique id of the IKE_SA.")
_child_id = click.option("--child-id", type=int, help="Unique id of the CHILD_SA.")
_loglevel = click.option("--loglevel", type=click.IntRange(-1, 4), help="Log level; above 2 the log contains keys.")


def progress(client: Client, doing: str, start: Callable[[Session[Message]], Stream[Message]]) -> None:
    """Run a long command with its log on standard error, and write its reply."""
    from ..results import LogLine
    from .event_lines import log_lines

    with client.session() as session, notes().status(doing):
        stream = start(session)
        for message in stream:
            for line in log_lines(LogLine.from_message(message)):
                notes().print(line, soft_wrap=True)
        reply = stream.response
    assert reply is not None  # the stream has ended without an error
    finish(client, doing, reply)


def finish(client: Client, doing: str, reply: Message, now: str = "done") -> None:
    if not client.output.for_people:
        client.output.message(ReceivedMessage(reply))
        return
    details = ", ".join(f"{key} {shown(value)}" for key, value in reply.to_dict().items() if key != "success")
    client.output.text(f"{doing}: {now}{f' ({details})' if details else ''}")


def need_selector(**selectors: object) -> None:
    if all(value is None for value in selectors.values()):
        names = [f"--{name.replace('_', '-')}" for name in selectors]
        raise click.UsageError(f"nothing selected: give {', '.join(names[:-1])} or {names[-1]}")


@click.command()
@_child
@_ike
@click.option("--init-limits", is_flag=True, help="Fail if charon is busy (charon.init_limit_*).")
@_loglevel
@talks
def initiate(client: Client, child: str | None, ike: str | None, init_limits: bool, loglevel: int | None) -> None:
    """Establish a CHILD_SA with the IKE_SA it needs, or an IKE_SA alone.

    After --timeout seconds, or Ctrl-C, charon continues trying.
    """
    need_selector(child=child, ike=ike)
    progress(
        client,
        "initiate",
        lambda session: session.initiate(child=child, ike=ike, init_limits=init_limits, loglevel=loglevel),
    )


@click.command()
@_child
@_ike
@_child_id
@_ike_id
@click.option("--force", is_flag=True, help="Close IKE_SAs even if the peer does not respond.")
@_loglevel
@talks
def terminate(
    client: Client,
    child: str | None,
    ike: str | None,
    child_id: int | None,
    ike_id: int | None,
    force: bool,
    loglevel: int | None,
) -> None:
    """Close all matching SAs, one after the other; --timeout applies to each."""
    need_selector(child=child, ike=ike, child_id=child_id, ike_id=ike_id)
    progress(
        client,
        "terminate",
        lambda session: session.terminate(
            child=child, ike=ike, child_id=child_id, ike_id=ike_id, force=force, loglevel=loglevel
        ),
    )


@click.command()
@_child
@_ike
@_child_id
@_ike_id
@click.option("--reauth", is_flag=True, help="Reauthenticate instead of rekeying an IKEv2 SA.")
@click.option("--wait", is_flag=True, help="Wait until every SA has been replaced, or fail after --timeout.")
@talks
def rekey(
    client: Client,
    child: str | None,
    ike: str | None,
    child_id: int | None,
    ike_id: int | None,
    reauth: bool,
    wait: bool,
) -> None:
    """Start rekeying all matching SAs; with --wait, wait for the result.

    charon may delay --reauth by 5 to 15 seconds if CHILD_SAs were rekeyed recently.
    """
    need_selector(child=child, ike=ike, child_id=child_id, ike_id=ike_id)
    with client.session() as session:
        start = partial(session.rekey, child=child, ike=ike, child_id=child_id, ike_id=ike_id, reauth=reauth)
        if not wait:
            finish(client, "rekey", start(), "started")
            return
        from ..results import IkeSa
        from .replacing import EVENTS, Replacing

        with session.listen(*EVENTS) as listener, notes().status("rekey"):
            listed = map(IkeSa.from_message, session.list_sas(child=child, ike=ike, child_id=child_id, ike_id=ike_id))
            waiting = Replacing(listed, child=child, child_id=child_id, reauth=reauth)
            reply = start()
            for line in waiting.wait(listener, client.timeout):
                notes().print(escaped(line), soft_wrap=True)
    finish(client, "rekey", reply)


@click.command()
@click.argument("file", required=False, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--creds", "credentials", is_flag=True, help="Load certificates, private keys and secrets.")
@click.option("--authorities", is_flag=True, help="Load authorities.")
@click.option("--pools", is_flag=True, help="Load pools.")
@click.option("--conns", "connections", is_flag=True, help="Load connections.")
@click.option("--clear", is_flag=True, help="Remove all credentials first, certificates too.")
@click.option("--noprompt", is_flag=True, help="Do not ask for passphrases and PINs.")
@click.option("--lenient", is_flag=True, help="Ignore failures of credentials and unloads in the exit code.")
@talks
def load(client: Client, file: Path | None, clear: bool, noprompt: bool, lenient: bool, **chosen: bool) -> None:
    """Load FILE as `swanctl --load-all` does, and unload everything that is not in it.

    The default FILE is swanctl.conf in $SWANCTL_DIR or /etc/swanctl. Certificates and keys are read from the
    directories next to it. With --creds, --authorities, --pools or --conns only these parts are loaded and unloaded.
    If an item could not be read, nothing of its kind is unloaded. Passphrases missing in the configuration are
    requested if standard input is a terminal.

    The exit code is 1 if any item was refused or could not be read; with --lenient only if an authority, a pool or a
    connection was not loaded, or the configuration cannot be parsed.
    """
    from ..blocking import Session
    from ..swanctl import read_config
    from ..swanctl.load_plan import PARTS

    parts = [part for part in PARTS if chosen[part]] or PARTS
    if clear and "credentials" not in parts:
        raise click.UsageError("--clear removes credentials: add --creds")
    plan = read_config(file, parts=parts, ask=None if noprompt or not sys.stdin.isatty() else ask)
    with Session(str(client.uri), timeout=client.timeout) as session, notes().status("load"):
        try:
            report = plan.load(session, clear=clear)
        except (ConnectionClosed, RequestTimeout) as error:
            raise NoDaemon(f"{escaped(str(error))}; only a part may be loaded: run the command again") from error
        warnings = plan.warnings(str(session.version()["version"])) if plan.connections else []
    write_report(client, report, warnings)
    if report.incomplete or (report.failed and not lenient):
        sys.exit(FAILED)


def ask(prompt: str) -> str:
    """Prompt for a secret on the terminal; empty if none was entered."""
    answer: str = click.prompt(escaped(prompt), default="", show_default=False, hide_input=True, err=True)
    return answer


def write_report(client: Client, report: Report, warnings: list[str]) -> None:
    """Write a report, in formats for programs as one message of lists."""
    lists = {
        "loaded": report.loaded,
        "unloaded": report.unloaded,
        "kept": report.kept,
        "skipped": report.skipped,
        "failed": report.failed,
        "warnings": warnings,
    }
    if not client.output.for_people:
        client.output.message(ReceivedMessage(Message(_wire.encode(lists))))
        return
    for name, lines in lists.items():
        for line in lines:
            if name in ("failed", "warnings"):
                notes().print(f"{name.removesuffix('s')}: {escaped(line)}", soft_wrap=True)
            else:
                client.output.text(f"{name} {escaped(line)}")
    client.output.text(", ".join(f"{len(lines)} {name}" for name, lines in lists.items() if name != "warnings"))


@click.command()
@click.argument("kind", type=click.Choice(list(_KINDS)))
@click.argument("name")
@talks
def unload(client: Client, kind: str, name: str) -> None:
    """Unload one item by name; keys and shared secrets by their id."""
    command = f"unload-{kind}"
    with client.session() as session:
        reply = session.call(command, {_KINDS[kind]: name})
    finish(client, command, reply)
