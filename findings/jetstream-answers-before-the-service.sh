#!/usr/bin/env bash
# nats-server 2.15.1: a stream that captures the subject of a service replies to its requests before the service
# does.
#
# JetStream sends its acknowledgement of the stored message to the reply subject of the request. The requester
# accepts this first reply, {"stream":"ALL","seq":1}, and the service's reply is dropped; neither side gets an
# error. So adding a stream over "orders.>", to keep the events there, changes the result of every request
# there.
source "$(dirname "$0")/lib-nats.bash"
run_python <<'EOF'
import asyncio, json

import nats
from server import HOME, start

_, address = start("-js", "-sd", HOME)


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
