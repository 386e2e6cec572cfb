"""Terminates and initiates a child on one gateway after the other; stops at the first failure.

The bridges must allow it: `allow = ["@read", "@operate"]` in [commands].

    python examples/reinitiate.py nats://127.0.0.1:4222 lan gw1 gw2
"""

import asyncio
import sys

from vicibridge.client import Fleet

from vicifast.errors import CommandError, ViciError


async def renew(fleet: Fleet, node: str, child: str) -> None:
    gateway = fleet.node(node)
    try:
        await gateway.terminate(child=child, timeout=10).wait()
    except CommandError as error:
        print(f"{node}: {error.errmsg}")  # no SA was up
    await gateway.initiate(child=child, timeout=10).wait()
    found = [sa async for sa in gateway.list_sas(child=child)]
    children = [c for sa in found for ike in sa.values() for c in ike.get("child-sas", {}).values()]
    if not any(c.get("name") == child and c.get("state") == "INSTALLED" for c in children):
        raise RuntimeError(f"{node}: {child} is not installed")


async def main(url: str, child: str, nodes: list[str]) -> int:
    async with Fleet(url) as fleet:
        for node in nodes:
            try:
                await renew(fleet, node, child)
            except (ViciError, RuntimeError) as error:
                print(f"stopped: {error}")
                return 1
            print(f"{node}: {child} is up")
    return 0


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    sys.exit(asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3:])))
