#!/usr/bin/env bash
# nats-py 2.16.0, nats-server 2.15.1: when a KV bucket is deleted and created again, an open watch is silent for
# about 20 seconds, then reports updates again, except for as many as the old bucket had.
#
# The missing heartbeats make the client create the watch's ordered consumer again, from the sequence after the
# last one of the old stream, though the new stream begins at 1. Surprising, because neither the watch nor error_cb
# reports anything, and the watch works afterwards, so the gap is not visible: here the keys new1 to new3 are
# missing, because the old bucket had three updates.
source "$(dirname "$0")/lib-nats.bash"
run_python <<'EOF'
import asyncio, time

import nats
from nats.errors import TimeoutError
from server import HOME, start

_, address = start("-js", "-sd", HOME)


async def main():
    errors = []

    async def record(error):
        errors.append(error)

    client = await nats.connect(address, error_cb=record)
    jetstream = client.jetstream()

    async def create(prefix, count):
        bucket = await jetstream.create_key_value(bucket="B")
        for number in range(1, count + 1):
            await bucket.put(f"{prefix}{number}", b"")
        return bucket

    async def read(watcher):
        keys = []
        try:
            while True:
                entry = await watcher.updates(timeout=2)
                keys += [entry.key] if entry else []
        except TimeoutError:
            return keys

    watcher = await (await create("old", 3)).watchall()
    before = await read(watcher)
    await jetstream.delete_key_value("B")
    began = time.monotonic()
    bucket = await create("new", 5)
    while not await jetstream.consumers_info("KV_B") and time.monotonic() < began + 40:
        await asyncio.sleep(0.2)
    silent = time.monotonic() - began
    after = await read(watcher)
    everything = await read(await bucket.watchall())
    await client.close()
    print("watch before:", *before)
    print(f"after {silent:.0f} seconds:", *after)
    print("new watch:", *everything)
    print("calls of error_cb:", len(errors))
    assert before == ["old1", "old2", "old3"] and 10 < silent < 30
    assert after == ["new4", "new5"] and everything == ["new1", "new2", "new3", "new4", "new5"] and not errors


asyncio.run(main())
EOF
