#!/usr/bin/env bash
# nats-server 2.15.1: a stream with subject_delete_marker_ttl gets allow_rollup_hdrs although the request denies it, and
# loses deny_purge although the request sets it. The reply has no warning. A program that compares a stream with the
# configuration that created it finds differences, and an administrator believes that purging is denied.
source "$(dirname "$0")/lib-nats.bash"
run_python <<'END'
import asyncio
import json

import nats
from server import HOME, start

_, address = start("-js", "-sd", HOME)
ASKED = {"allow_rollup_hdrs": False, "deny_purge": True}


async def main():
    client = await nats.connect(address)
    stored = {}
    for name, more in (("PLAIN", {}), ("MARKS", {"allow_msg_ttl": True, "subject_delete_marker_ttl": 10**9})):
        config = {"name": name, "subjects": [name], "storage": "file", **ASKED, **more}
        reply = await client.request(f"$JS.API.STREAM.CREATE.{name}", json.dumps(config).encode())
        answer = json.loads(reply.data)
        assert "error" not in answer, answer
        stored[name] = {key: answer["config"].get(key, False) for key in ASKED}
        print(name, "asked for", ASKED, "and has", stored[name])
    await client.close()
    assert stored["PLAIN"] == ASKED and stored["MARKS"] == {"allow_rollup_hdrs": True, "deny_purge": False}


asyncio.run(main())
END
echo "as described: subject_delete_marker_ttl changes two other settings"
