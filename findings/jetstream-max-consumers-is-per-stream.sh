#!/usr/bin/env bash
# nats-server 2.15.1: the limit max_consumers of an account applies to each of its streams, not to the account.
#
# Surprising, because max_streams beside it limits the whole account, and nats.js and nats.net document max_consumers
# as the number of consumers that "an account can create". The account's information shows the total beside the limit
# that it exceeds: here 4 consumers, max_consumers 2. To bound the consumers of a tenant, max_streams must be set too.
# (See nats-io/nats-server#1322.)
source "$(dirname "$0")/lib-nats.bash"
run_python <<'EOF'
import asyncio

import nats
from nats.js.errors import APIError
from server import HOME, start

configuration = HOME / "server.conf"
configuration.write_text(f"""
jetstream {{ store_dir: "{HOME}/store" }}
accounts {{ TENANT {{ jetstream {{ max_streams: 2, max_consumers: 2 }}, users: [{{ user: u, password: p }}] }} }}
""")
_, address = start("-c", configuration)


async def main():
    client = await nats.connect(address, user="u", password="p")
    jetstream = client.jetstream()
    created = {}
    for stream in ("A", "B"):
        await jetstream.add_stream(name=stream)
        try:
            for created[stream] in range(4):
                await jetstream.add_consumer(stream, durable_name=f"c{created[stream]}")
        except APIError as error:
            print(f"stream {stream} after {created[stream]} consumers:", error.description)
    try:
        await jetstream.add_stream(name="C")
        third = "created"
    except APIError as error:
        third = error.description
    account = await jetstream.account_info()
    await client.close()
    print("third stream, with max_streams 2:", third)
    print("consumers of the account:", account.consumers, "with max_consumers", account.limits.max_consumers)
    assert third == "maximum number of streams reached"
    assert created == {"A": 2, "B": 2} and account.consumers == 4 and account.limits.max_consumers == 2


asyncio.run(main())
EOF
