#!/usr/bin/env bash
# nats-py 2.16.0, nats-server 2.15.1: each keys(), history() and stopped watch of a KV bucket leaves a
# consumer behind.
#
# These methods create an ephemeral consumer and unsubscribe, but do not delete it. The server keeps it for
# five minutes. A program that lists the keys every second has 300 of them, and a stream with max_consumers
# refuses the next read, though the program has no watch open.
source "$(dirname "$0")/lib-nats.bash"
run_python <<'EOF'
import asyncio

import nats
from nats.js.errors import APIError
from server import HOME, start

_, address = start("-js", "-sd", HOME)


async def main():
    client = await nats.connect(address)
    jetstream = client.jetstream()
    bucket = await jetstream.create_key_value(bucket="B")
    await bucket.put("key", b"value")
    stream = await jetstream.stream_info("KV_B")
    await jetstream.update_stream(stream.config.evolve(max_consumers=10))
    for read in (bucket.keys, lambda: bucket.history("key")):
        await read()
    watcher = await bucket.watchall()
    await watcher.stop()
    consumers = await jetstream.consumers_info("KV_B")
    thresholds = {consumer.config.inactive_threshold for consumer in consumers}
    print("consumers after keys(), history() and a stopped watch:", len(consumers), "kept for", thresholds, "seconds")
    refused = None
    for count in range(len(consumers), 20):
        try:
            await bucket.keys()
        except APIError as error:
            refused = error.description
            break
    print(f"keys() after {count} reads, with max_consumers=10:", refused)
    await client.close()
    assert len(consumers) == 3 and thresholds == {300.0} and refused == "maximum consumers limit reached"


asyncio.run(main())
EOF
