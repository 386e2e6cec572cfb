#!/usr/bin/env bash
# nats-py 2.16.0: user and password in a server's URL are sent without percent-decoding.
#
# A password with "@" is written as %40 in a URL (RFC 3986). The client sends "%40" to the server, which
# refuses it. A URL with a second, bare "@", which the RFC does not allow, is accepted.
source "$(dirname "$0")/lib-nats.bash"
run_python <<'EOF'
import asyncio

import nats
from urllib.parse import quote
from server import start

_, address = start("--user", "u", "--pass", "p@ss")


async def attempt(address, **options):
    async def ignore(error):
        pass

    try:
        client = await nats.connect(address, allow_reconnect=False, error_cb=ignore, **options)
    except nats.errors.Error as error:
        return str(error)
    await client.close()
    return "connected"


async def main():
    place = address.removeprefix("nats://")
    options = await attempt(address, user="u", password="p@ss")
    encoded = await attempt(f"nats://u:{quote('p@ss')}@{place}")
    plain = await attempt(f"nats://u:p@ss@{place}")
    print("options:          ", options)
    print("u:p%40ss@host:    ", encoded)
    print("u:p@ss@host:      ", plain)
    assert options == plain == "connected" and "Authorization Violation" in encoded


asyncio.run(main())
EOF
