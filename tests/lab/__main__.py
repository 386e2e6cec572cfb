"""An interactive lab: two charons with SAs between them and a NATS server, until Ctrl-C."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import FrameType

import click
from rich.console import Console
from rich.table import Table

from vicifast.errors import ViciError

from . import Lab, LabError, sas

Step = Callable[[Lab, list[str]], Awaitable[None]]

STEPS: dict[str, tuple[Step, str]] = {
    "initiate": (sas.initiate, "bring the SAs up (again)"),
    "send": (sas.send, "send a packet through each SA and one back"),
    "rekey": (sas.rekey_child, "rekey every CHILD_SA"),
    "rekey-ike": (sas.rekey_ike, "rekey every IKE_SA"),
    "update": (sas.update, "move the left gateway to another address (MOBIKE)"),
    "terminate": (sas.terminate, "close every SA"),
}
PAUSE = 1.0

_BRIDGE = """\
[nats]
servers = ["{url}"]

[[gateway]]
node = "left"
vici = "{left}"

[[gateway]]
node = "right"
vici = "{right}"

[spool]
path = "{spool}"

[commands]
allow = ["@read", "@operate"]

[http]
listen = ""
"""


def _steps(context: click.Context, parameter: click.Parameter, value: str) -> list[str]:
    steps = [step.strip() for step in value.split(",") if step.strip()]
    if unknown := [step for step in steps if step not in STEPS]:
        raise click.BadParameter(f"{unknown[0]!r} is none of {', '.join(STEPS)}")
    return steps


_EPILOG = "\b\nSteps for --run:\n" + "\n".join(f"  {name:10} {what}" for name, (_, what) in STEPS.items())


@click.command(epilog=_EPILOG)
@click.option("--sas", "count", type=click.IntRange(1, 20000), default=20, show_default=True, help="How many SAs.")
@click.option("--nats/--no-nats", default=True, show_default=True, help="With a NATS server.")
@click.option("--run", "steps", callback=_steps, default="", metavar="STEP,...", help="Go through steps, then end.")
@click.option(
    "--for",
    "seconds",
    type=click.FloatRange(min=0),
    help="Duration in seconds; --run is repeated until then.",
)
def main(count: int, nats: bool, steps: list[str], seconds: float | None) -> None:
    """Two real charons with SAs between them and a NATS server, until Ctrl-C.

    Needs root and Linux. Nothing outside a temporary directory is touched, and nothing is left.
    """
    signal.signal(signal.SIGTERM, _terminated)
    console = Console(highlight=False)
    try:
        with Lab(nats=nats) as lab:
            asyncio.run(_session(console, lab, nats, count, steps, seconds))
    except (LabError, ViciError) as error:
        raise click.ClickException(str(error)) from None
    except KeyboardInterrupt:
        console.print("\nAll stopped.")


def _terminated(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


async def _session(console: Console, lab: Lab, nats: bool, count: int, steps: list[str], seconds: float | None) -> None:
    began = time.monotonic()
    names = await sas.up(lab, count)
    console.print(f"[bold]{len(names)} SAs up[/] in {time.monotonic() - began:.1f} s\n")
    _introduce(console, lab, nats)
    console.print()
    if seconds is None and not steps:
        console.print("[bold]Ctrl-C[/] stops everything.")
        await asyncio.Event().wait()
    elif seconds is None:
        await _go_through(console, lab, names, steps)
    else:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while True:
                    await _go_through(console, lab, names, steps)
                    await asyncio.sleep(PAUSE)


async def _go_through(console: Console, lab: Lab, names: list[str], steps: list[str]) -> None:
    for name in steps:
        work, what = STEPS[name]
        began = time.monotonic()
        with console.status(what):
            await work(lab, names)
        console.print(f"{name:10} {what:50} [dim]{time.monotonic() - began:6.2f} s[/]")


def _introduce(console: Console, lab: Lab, nats: bool) -> None:
    left, right = lab.left.address, lab.right.address
    places = Table.grid(padding=(0, 2))
    places.add_row("left", left)
    places.add_row("right", right)
    commands = [
        f"swanctl --list-sas --uri {left}",
        f"swanctl --monitor-sa --uri {right}",
        f"swanctl --rekey --child site-001-lan --uri {left}",
        f"{_program('vicifast')} record right.recording --uri {right} --event log --event child-updown",
        f"nsenter --target {lab.left.namespace.pid} --net ip addr",
    ]
    if nats:
        places.add_row("nats", lab.nats.url)
        config = lab.directory / "bridge.toml"
        config.write_text(_BRIDGE.format(url=lab.nats.url, left=left, right=right, spool=lab.directory / "spool"))
        commands.append(f"{_program('vicibridge')} run --config {config}")
    places.add_row("logs", str(lab.directory))
    console.print(places, soft_wrap=True)
    console.print("\n[bold]To try[/]")
    for command in commands:
        console.print("  " + command, markup=False, soft_wrap=True)


def _program(name: str) -> str:
    """Return how to start a program of ours from where the lab runs: an environment need not be activated."""
    return name if shutil.which(name) else f"{sys.executable} -m {name}"


if __name__ == "__main__":
    main()
