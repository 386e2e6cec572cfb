"""Reports each tunnel that goes down, with a durable consumer, so that no event is missed while it does not run.

python examples/alarm.py nats://127.0.0.1:4222
"""

import asyncio
import sys

from vicibridge.client import Fleet

from vicifast.results import ChildUpDown, parse_event


async def main(url: str) -> None:
    async with Fleet(url) as fleet, fleet.subscribe(events=["child-updown.down"], durable="alarm") as events:
        async for envelope in events:
            match parse_event(envelope.event, envelope.data):
                case ChildUpDown(ike, child):
                    print(f"ALARM {envelope.node}: {child.name} of {ike.name} is down", flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    asyncio.run(main(sys.argv[1]))
