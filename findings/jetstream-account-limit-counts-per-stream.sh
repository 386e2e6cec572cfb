#!/usr/bin/env bash
# nats-server 2.15.1: max_consumers of an account limits the consumers of each of its streams, not those of the account:
# with a limit of 2 an account with three streams has six consumers, and the account's own report says 6 of 2. A third
# consumer of one stream is refused with "maximum consumers limit reached".
source "$(dirname "$0")/lib-nats.bash"
cat > "$work/server.conf" <<END
jetstream { store_dir: "$work/js" }
accounts { A { jetstream { max_consumers: 2 }, users: [{ user: a, password: a }] } }
END
run_python <<'END'
import asyncio

import nats
from nats.js.api import ConsumerConfig
from nats.js.errors import APIError
from server import HOME, start

_, address = start("-c", HOME / "server.conf")


async def main():
    client = await nats.connect(address, user="a", password="a")
    jetstream = client.jetstream()
    for stream in ("S1", "S2", "S3"):
        await jetstream.add_stream(name=stream, subjects=[stream])
        for durable in ("C1", "C2"):
            await jetstream.add_consumer(stream, ConsumerConfig(durable_name=durable))
    account = await jetstream.account_info()
    print("consumers:", account.consumers, "limit:", account.limits.max_consumers)
    try:
        await jetstream.add_consumer("S1", ConsumerConfig(durable_name="C3"))
        refused = None
    except APIError as error:
        refused = error.description
    print("a third consumer of one stream:", refused)
    await client.close()
    assert account.consumers == 6 and account.limits.max_consumers == 2
    assert refused == "maximum consumers limit reached"


asyncio.run(main())
END
echo "as described: the limit of an account holds for each stream"
