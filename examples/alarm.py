"""Says when a tunnel goes down; a durable consumer, so that nothing is missed while this program is away.

vicibridge run --config bridge.toml        # somewhere; then
python examples/alarm.py nats://127.0.0.1:4222
"""

import asyncio
import sys

from vicibridge.client import Fleet


async def main(url: str) -> None:
    async with Fleet(url) as fleet, fleet.subscribe(events=["child-updown"], durable="alarm") as events:
        async for envelope in events:
            if envelope.subject.endswith(".down"):
                names = [name for name, value in envelope.data.items() if isinstance(value, dict)]
                print(f"ALARM {envelope.node}: {', '.join(names)} is down", flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
