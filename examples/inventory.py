"""Lists the gateways of the fleet with the uptime of charon and its number of SAs.

python examples/inventory.py nats://127.0.0.1:4222
"""

import asyncio
import sys

from vicibridge.client import Fleet


async def main(url: str) -> None:
    async with Fleet(url) as fleet:
        answers = fleet.everyone(timeout=10).stats()
        async for answer in answers:
            stats = answer.response
            if stats is None:
                print(f"{answer.node}: {answer.error}")
                continue
            print(f"{answer.node}: running {stats['uptime']['running']}, SAs {stats['ikesas']['total']}")
        for node in answers.missing:
            print(f"{node}: no answer")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    asyncio.run(main(sys.argv[1]))
