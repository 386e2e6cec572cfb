#!/usr/bin/env bash
# nats-py 2.16.0: on a server without JetStream the errors contain only None, and differ by method.
#
# jetstream().stream_info() and key_value() raise "ServiceUnavailableError: code=None err_code=None
# description='None'", and publish() raises NoStreamResponseError, "no response from stream". None of them
# says that JetStream is off, although the INFO with which the server greets each client says whether it is
# on.
source "$(dirname "$0")/lib-nats.bash"
run_python <<'EOF'
import asyncio

import nats
from server import start

_, address = start("--name", "without")


async def main():
    client = await nats.connect(address)
    jetstream, errors = client.jetstream(), []
    reads = jetstream.account_info(), jetstream.stream_info("S"), jetstream.key_value("B")
    for call in (*reads, jetstream.publish("s", b"")):
        try:
            await call
        except Exception as error:
            errors.append((type(error).__name__, str(error)))
            print(*errors[-1], sep=": ")
    await client.close()
    nothing = "nats: ServiceUnavailableError: code=None err_code=None description='None'"
    assert errors[:3] == [("ServiceUnavailableError", nothing)] * 3
    assert errors[3] == ("NoStreamResponseError", "nats: no response from stream")


asyncio.run(main())
EOF
