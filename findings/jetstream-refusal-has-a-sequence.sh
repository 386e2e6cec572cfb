#!/usr/bin/env bash
# nats-server 2.15.1: the reply to a publish that JetStream refuses has the members of an acknowledgement in
# addition to the error.
#
# The reply is {"error": {...}, "stream": "S", "seq": 0}. A publisher that recognises an acknowledgement by
# its members "stream" and "seq" counts the message as stored; only "error" shows that it is not.
source "$(dirname "$0")/lib-nats.bash"
run_python <<'EOF'
import asyncio, json

import nats
from server import HOME, start

_, address = start("-js", "-sd", HOME)


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
