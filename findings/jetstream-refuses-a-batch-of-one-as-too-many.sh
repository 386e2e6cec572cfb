#!/usr/bin/env bash
# nats-server 2.15.1: DIRECT.GET with multi_last and "batch": 1 is refused with "413 Too Many Results" if more than 1024
# subjects match.
#
# Surprising, because one result was requested, and the last message of a batch has Nats-Num-Pending and
# Nats-UpTo-Sequence in order to request the next one. The limit counts what matches, not what is sent. A program that
# reads a bucket in small pages works until the 1025th key, and then cannot read any page. next_by_subj
# with a batch has no such limit: here it returns all 1025 messages in one.
source "$(dirname "$0")/lib-nats.bash"
run_python <<'EOF'
import asyncio, json

import nats
from server import HOME, start

_, address = start("-js", "-sd", HOME)


async def main():
    client = await nats.connect(address)
    jetstream = client.jetstream()
    await jetstream.add_stream(name="S", subjects=["s.*"], max_msgs_per_subject=1, allow_direct=True)

    async def get(**request):
        replies = await client.subscribe(client.new_inbox())
        await client.publish("$JS.API.DIRECT.GET.S", json.dumps(request).encode(), reply=replies.subject)
        count = 0
        while "Status" not in (headers := (await replies.next_msg(timeout=10)).headers):
            count += 1
        print(f"{request}: {count} messages, then", headers["Status"], headers["Description"])
        return count, headers["Status"]

    for number in range(1024):
        await jetstream.publish(f"s.{number}")
    assert await get(multi_last=["s.*"], batch=1) == (1, "204")
    await jetstream.publish("s.1024")
    print("and with one more subject:")
    assert await get(multi_last=["s.*"], batch=1) == (0, "413")
    assert await get(next_by_subj="s.*", seq=1, batch=2000) == (1025, "204")
    await client.close()


asyncio.run(main())
EOF
