"""`python -m tests.lab.picture`: records `vicibridge sas --watch` on two real charons as docs/static/sas-watch.svg."""

from __future__ import annotations

import asyncio
import io
import os
import pty
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.text import Text

from . import Lab, sas

COLUMNS, LINES = 92, 20
PICTURE = Path(__file__).resolve().parents[2] / "docs" / "static" / "sas-watch.svg"
_SCREENS = re.compile(rb"\x1b\[H|\x1b\[\?1049[hl]")  # rich goes to the upper left corner for each picture


def _config(lab: Lab) -> str:
    nodes = (("branch", lab.left.address), ("hq", lab.right.address))
    gateways = "".join(f'[[gateway]]\nnode = "{node}"\nvici = "{vici}"\n' for node, vici in nodes)
    return (
        f'[nats]\nservers = ["{lab.nats.url}"]\n[spool]\npath = "{lab.directory}"\n[http]\nlisten = ""\n'
        f"[mirror]\ninterval = 1\n{gateways}"
    )


async def _last_screen(lab: Lab) -> str:
    """Return what the command has drawn on its terminal before Ctrl-C."""
    master, terminal = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(COLUMNS), "LINES": str(LINES), "TERM": "xterm-256color"}
    program = [sys.executable, "-m", "vicibridge", "sas", "--watch", "--node", "hq", "--server", lab.nats.url]
    watching = subprocess.Popen(program, stdin=terminal, stdout=terminal, stderr=terminal, env=environment)
    os.close(terminal)
    loop, drawn = asyncio.get_running_loop(), bytearray()

    def read() -> None:
        with suppress(OSError):  # the terminal is gone
            drawn.extend(os.read(master, 65536))

    loop.add_reader(master, read)
    try:
        async with asyncio.timeout(20):
            while drawn.count(b"site-005") < 2:
                await asyncio.sleep(0.1)
    except TimeoutError:
        sys.exit(f"the table was not drawn:\n{drawn.decode(errors='replace')}")
    finally:
        loop.remove_reader(master)
        watching.kill()
        watching.wait()
        os.close(master)
    screens = [screen for screen in _SCREENS.split(bytes(drawn)) if b"site-005" in screen]
    return screens[-1].decode().replace("\r\n", "\n")


async def _record(lab: Lab) -> str:
    config = lab.directory / "bridge.toml"
    config.write_text(_config(lab))
    bridge = subprocess.Popen(
        [sys.executable, "-m", "vicibridge", "run", "--config", config], stderr=subprocess.DEVNULL
    )
    try:
        names = await sas.up(lab, 5)
        await sas.send(lab, names)
        await sas.rekey_ike(lab, names[1:2])
        await asyncio.sleep(3)  # the comparison brings the counters; ages other than 0 look better
        return await _last_screen(lab)
    finally:
        bridge.terminate()
        bridge.wait()


def main() -> None:
    with Lab(nats=True) as lab:
        screen = asyncio.run(_record(lab))
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    console.print(Text.from_ansi(screen.rstrip()))
    picture = re.sub(r"@font-face \{.*?\}\s*", "", console.export_svg(title="vicibridge sas --watch"), flags=re.DOTALL)
    PICTURE.write_text(picture.replace("Fira Code", "DejaVu Sans Mono"), "utf-8")  # no font from the network
    print(f"wrote {PICTURE}")


if __name__ == "__main__":
    main()
