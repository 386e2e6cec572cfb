"""Collects the events and the mirror of leaf nodes at their hub.

To add a node, run it again with all nodes. The user must be allowed to create streams.

    python examples/hub.py nats://admin:password@hub.example:4222 gw1 gw2
"""

import asyncio
import sys

import nats
from nats.js.api import DiscardPolicy, ExternalStream, StreamConfig, StreamSource

BUCKET = {
    "max_msgs_per_subject": 1,
    "discard": DiscardPolicy.NEW,
    "allow_direct": True,
    "allow_rollup_hdrs": True,
    "allow_msg_ttl": True,  # nats-server 2.11 or newer: the key of a stopped bridge expires
}
STREAMS = {"VICI": {}, "KV_VICI_SA": BUCKET, "KV_VICI_CONN": BUCKET, "KV_VICI_NODE": BUCKET}


async def main(url: str, *nodes: str) -> None:
    client = await nats.connect(url)
    jetstream = client.jetstream()
    present = {stream.config.name for stream in await jetstream.streams_info()}
    for name, options in STREAMS.items():
        # A leaf's domain is the name of its first node, unless the configuration says otherwise.
        sources = [StreamSource(name=name, external=ExternalStream(api=f"$JS.{node}.API")) for node in nodes]
        change = jetstream.update_stream if name in present else jetstream.add_stream
        await change(StreamConfig(name=name, sources=sources, **options))
        print(f"{name}: from {', '.join(nodes)}")
    await client.close()


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    asyncio.run(main(*sys.argv[1:]))
