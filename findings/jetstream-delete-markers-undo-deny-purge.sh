#!/usr/bin/env bash
# nats-server 2.15.1: a stream that is created with subject_delete_marker_ttl and deny_purge can be purged. The server
# clears deny_purge and sets allow_rollup_hdrs, without an error.
#
# Surprising, because the server refuses the same pair when it is written out: deny_purge with allow_rollup_hdrs is the
# error "roll-ups require the purge permission", and an update that clears deny_purge is an error too. The lifetime of a
# marker does not suggest either member. Only the config in the reply shows that the protection is missing.
source "$(dirname "$0")/lib-nats.bash"
run_python <<'EOF'
import asyncio, json

import nats
from server import HOME, start

_, address = start("-js", "-sd", HOME)


async def main():
    client = await nats.connect(address)

    async def api(subject, **request):
        return json.loads((await client.request("$JS.API.STREAM." + subject, json.dumps(request).encode())).data)

    plain = await api("CREATE.PLAIN", name="PLAIN", deny_purge=True)
    update = await api("UPDATE.PLAIN", name="PLAIN", deny_purge=False)
    explicit = await api("CREATE.EXPLICIT", name="EXPLICIT", deny_purge=True, allow_rollup_hdrs=True)
    marked = await api("CREATE.MARKED", name="MARKED", deny_purge=True, subject_delete_marker_ttl=60 * 10**9)
    members = ("deny_purge", "allow_rollup_hdrs")
    plain_config, marked_config = ([reply["config"][name] for name in members] for reply in (plain, marked))
    purges = [await api("PURGE." + name) for name in ("PLAIN", "MARKED")]
    await client.close()
    print("deny_purge, allow_rollup_hdrs of a stream with deny_purge:", plain_config)
    print("the same with subject_delete_marker_ttl:", marked_config, "error:", marked.get("error"))
    print("deny_purge cleared by an update:", update["error"]["description"])
    print("deny_purge with allow_rollup_hdrs:", explicit["error"]["description"])
    print("purge of each stream:", *[reply.get("error") or "success" for reply in purges])
    assert plain_config == [True, False] and marked_config == [False, True] and "error" not in marked
    assert update["error"]["description"] == "stream configuration update can not cancel deny purge"
    assert explicit["error"]["description"] == "roll-ups require the purge permission"
    assert "error" in purges[0] and purges[1]["success"]


asyncio.run(main())
EOF
