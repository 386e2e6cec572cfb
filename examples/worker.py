"""One of several workers: each event goes to one of them, and to another one if that exits before it is done.

python examples/worker.py nats://127.0.0.1:4222 &
python examples/worker.py nats://127.0.0.1:4222 &
"""

import asyncio
import sys

from vicibridge.client import Fleet


async def main(url: str) -> None:
    async with Fleet(url) as fleet, fleet.subscribe(durable="workers", queue="workers") as events:
        async for envelope in events:
            print(f"{envelope.node} {envelope.boot} {envelope.seq} {envelope.event}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    asyncio.run(main(sys.argv[1]))
