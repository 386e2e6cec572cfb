"""Lists the fleet: every gateway, its charon, how long that runs and how many SAs it has.

python examples/inventory.py nats://127.0.0.1:4222
"""

import asyncio
import sys

from vicibridge.client import Fleet


async def main(url: str) -> None:
    async with Fleet(url) as fleet:
        answers = fleet.everyone(timeout=10).stats()
        async for answer in answers:
            said = answer.response
            if said is None:
                print(f"{answer.node}: {answer.error}")
                continue
            print(f"{answer.node}: running {said['uptime']['running']}, SAs {said['ikesas']['total']}")
        for node in answers.missing:
            print(f"{node}: no answer")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    asyncio.run(main(sys.argv[1]))
