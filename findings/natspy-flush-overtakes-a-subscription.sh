#!/usr/bin/env bash
# nats-py 2.16.0: flush() does not wait for a subscription made before it. subscribe() queues its SUB, while flush() writes
# its PING at once, so the PING leaves first, and its PONG says nothing of the SUB. A request that another client sends then
# finds no responders, now and then. A second flush() follows the SUB. Seen here as the order of the commands that a server
# receives: PING, SUB, PING.
source "$(dirname "$0")/lib-nats.bash"
run_python <<'END'
import asyncio

import nats

INFO = b'INFO {"server_id": "S", "version": "2.15.1", "max_payload": 1048576, "headers": true, "proto": 1}\r\n'


async def main():
    received = []

    async def serve(reader, writer):
        writer.write(INFO)
        while line := await reader.readline():
            received.append(line.split()[0].decode())
            if received[-1] == "PING":
                writer.write(b"PONG\r\n")

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    client = await nats.connect(f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    received.clear()
    await client.subscribe("a")
    await client.flush()
    await client.flush()
    print("a server receives", received)
    assert received == ["PING", "SUB", "PING"], received
    await client.close()
    server.close()


asyncio.run(main())
END
echo "as described: the PING of flush() overtakes a subscription"
