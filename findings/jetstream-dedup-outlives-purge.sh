#!/usr/bin/env bash
# nats-server 2.15.1: JetStream remembers message ids across a purge of the whole stream, but not across a
# restart.
#
# A message that is sent again after a purge, with its Nats-Msg-Id, is acknowledged as a duplicate with the
# sequence of the purged message. The publisher treats it as stored; the stream stays empty. After a restart
# of the server the same message is stored. (Reported for purges by subject as nats-io/nats-server#6782.)
source "$(dirname "$0")/lib-nats.bash"
run_python <<'EOF'
import asyncio

import nats
from server import HOME, start


async def main():
    outcomes = []
    server, address = start("-js", "-sd", HOME)
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
            server, address = start("-js", "-sd", HOME)
            client = await nats.connect(address)
            stream = client.jetstream()
        again = await stream.publish("s", b"x", headers={"Nats-Msg-Id": "1"})
        outcomes.append((bool(again.duplicate), again.seq, (await stream.stream_info("S")).state.messages))
        print("{}: duplicate={}, sequence {}, messages in the stream {}".format(when, *outcomes[-1]))
    await client.close()
    assert outcomes == [(True, 1, 0), (False, 2, 1)]


asyncio.run(main())
EOF
