#!/usr/bin/env bash
# nats-py 2.16.0, nats-server 2.15.1: a key of a KV bucket whose TTL has expired is absent for keys() and
# watchers, but not for get() and create().
#
# With limit_marker_ttl the server replaces the expired value with a marker. The watcher reports PURGE
# and keys() omits the key. get() returns an entry whose value and operation are None, where it raises
# KeyNotFoundError for a deleted key; and create() raises KeyWrongLastSequenceError until the marker has
# expired too, so that a lease cannot be taken again.
source "$(dirname "$0")/lib-nats.bash"
run_python <<'EOF'
import asyncio

import nats
from nats.js.api import KeyValueConfig
from nats.js.errors import KeyNotFoundError, KeyWrongLastSequenceError, NoKeysError
from server import HOME, start

_, address = start("-js", "-sd", HOME)


async def outcome(awaitable):
    try:
        return await awaitable
    except Exception as error:
        return type(error)


async def main():
    client = await nats.connect(address)
    bucket = await client.jetstream().create_key_value(KeyValueConfig(bucket="B", limit_marker_ttl=60))
    await bucket.create("lease", b"mine", msg_ttl=1)
    watcher = await bucket.watch("lease")
    entries = [await watcher.updates(timeout=5)]
    while entries[-1] is None or entries[-1].operation is None:
        entries.append(await watcher.updates(timeout=10))
    await watcher.stop()
    entry, keys = await outcome(bucket.get("lease")), await outcome(bucket.keys())
    created = await outcome(bucket.create("lease", b"yours"))
    await bucket.delete("lease")
    deleted = await outcome(bucket.get("lease"))
    await client.close()
    print("watcher:             ", entries[-1].operation)
    print("keys():              ", keys.__name__)
    print("get():               ", entry)
    print("create():            ", created.__name__)
    print("get() when deleted:  ", deleted.__name__)
    assert (entries[-1].operation, keys, deleted) == ("PURGE", NoKeysError, KeyNotFoundError)
    assert (entry.value, entry.operation, created) == (None, None, KeyWrongLastSequenceError)


asyncio.run(main())
EOF
