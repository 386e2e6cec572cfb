#!/usr/bin/env bash
# nats-py 2.16.0: an endpoint of nats.micro awaits its coroutine for one request before it begins the next.
#
# The handler is an async function, as with HTTP frameworks for asyncio, where requests overlap while a
# handler awaits. Here four requests that sleep for 0.3 seconds take 1.2 seconds, and a request that waits for
# a slow backend delays all others of the endpoint. No option of EndpointConfig changes that.
source "$(dirname "$0")/lib-nats.bash"
run_python <<'EOF'
import asyncio, time

import nats
import nats.micro
from server import start

_, address = start("--name", "micro")


async def main():
    client = await nats.connect(address)
    service = await nats.micro.add_service(client, name="service", version="1.0.0")

    async def serve(request):
        await asyncio.sleep(0.3)
        await request.respond(b"")

    await service.add_endpoint(name="slow", handler=serve)
    began = time.monotonic()
    await asyncio.gather(*[client.request("slow", b"", timeout=10) for _ in range(4)])
    took = time.monotonic() - began
    await service.stop()
    await client.close()
    print(f"four requests of 0.3 s at once took {took:.1f} s")
    assert took >= 1.2


asyncio.run(main())
EOF
