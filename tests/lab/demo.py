"""`make demo CHARON=real`: the bridge's demonstration on the lab's two charons."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable

from rich.console import Console
from vicibridge.bus.nats_server import NatsServerError
from vicibridge.demo import DemoError, run_demo

from . import Lab, LabError, sas

COUNT = 20
STAYING = 5


async def _demo(console: Console, lab: Lab) -> None:
    async def drive(heading: Callable[[str], None]) -> None:
        heading(f"Two real charons bring {COUNT} SAs up")
        names = await sas.up(lab, COUNT)
        await sas.send(lab, names)
        heading("The CHILD_SAs are rekeyed, then the IKE_SAs")
        await sas.rekey_child(lab, names)
        await sas.rekey_ike(lab, names)
        heading("The peer moves to another address")
        await sas.update(lab, names)
        heading(f"All SAs but {STAYING} are closed")
        await sas.terminate(lab, names[STAYING:])

    updown = COUNT + COUNT - STAYING
    expected = {"ike-updown": updown, "child-updown": updown, "ike-update": COUNT}  # both sides may rekey
    await run_demo(console, lab.right.address, drive, expected)


def main() -> None:
    try:
        with Lab() as lab:
            asyncio.run(_demo(Console(highlight=False), lab))
    except (DemoError, LabError, NatsServerError, TimeoutError) as error:
        sys.exit(f"Error: {str(error) or 'nothing came in time'}")


if __name__ == "__main__":
    main()
