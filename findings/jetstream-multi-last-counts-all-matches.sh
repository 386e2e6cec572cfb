#!/usr/bin/env bash
# nats-server 2.15.1: a direct get with multi_last is refused with 413 "Too Many Results" when more than 1024 subjects
# match, even with "batch": 10. The limit is on what matches, not on what is sent, so a large bucket cannot be read in
# pages this way, as get with next_by_subj and batch can.
source "$(dirname "$0")/lib-nats.bash"
run_python <<'END'
import asyncio
import json

import nats
from nats.js.api import StreamConfig
from server import HOME, start

_, address = start("-js", "-sd", HOME)


async def main():
    client = await nats.connect(address)
    jetstream = client.jetstream()
    await jetstream.add_stream(StreamConfig(name="S", subjects=["s.*"], allow_direct=True))

    async def first_reply(count, request):
        for number in range(count):
            await jetstream.publish(f"s.{number}", b"")
        inbox = client.new_inbox()
        replies = await client.subscribe(inbox)
        await client.publish("$JS.API.DIRECT.GET.S", json.dumps(request).encode(), reply=inbox)
        return (await replies.next_msg(5)).headers

    many = {"multi_last": ["s.*"], "batch": 10}
    at_limit = await first_reply(1024, many)
    print("1024 subjects:", at_limit["Nats-Subject"])
    over = await first_reply(1025, many)
    print("1025 subjects:", over["Status"], over["Description"])
    paged = await first_reply(0, {"seq": 1, "next_by_subj": "s.*", "batch": 10})
    print("1025 subjects, next_by_subj:", paged["Nats-Subject"])
    await client.close()
    assert at_limit["Nats-Subject"] and over["Status"] == "413" and paged["Nats-Subject"]


asyncio.run(main())
END
echo "as described: multi_last counts all matches"
